"""Names from wg-quick's file become sections of the configuration, which stays valid and otherwise as it was."""

import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd import cli
from igd.commands.command import FAILED, MISUSED, OK
from igd.config import Config, ConfigError, load, parse
from igd.operator.names import add, named
from tests.operator.test_wg_quick import INTERFACE, KEY, OTHER, SECRET

LAPTOP = ["[peers.laptop]", f'public_key = "{KEY}"']


def conf(*peers: tuple[str, str]) -> str:
    """Return wg-quick's file with these names and keys."""
    sections = (f"# {name}\n[Peer]\nPublicKey = {key}\nPresharedKey = {SECRET}\n" for name, key in peers)
    return INTERFACE + "\n".join(sections)


def test_what_the_configuration_lacks_is_named() -> None:
    config = parse(f'[peers.desk]\npublic_key = "{OTHER}"\n', Path("wg0.toml"))
    found = named(conf(("phone", OTHER), ("laptop", KEY)), config)
    assert found.sections == LAPTOP
    assert found.notes == []


def test_the_same_name_twice_gets_a_number() -> None:
    config = parse(f'[peers.laptop]\npublic_key = "{SECRET}"\n', Path("wg0.toml"))
    found = named(conf(("laptop", KEY), ("Laptop", OTHER)), config)
    assert [line for line in found.sections if line.startswith("[")] == ["[peers.laptop-2]", "[peers.Laptop-3]"]


def test_a_long_name_is_shortened_and_stays_unique() -> None:
    found = named(conf(("a" * 70, KEY), ("a" * 65, OTHER)), Config())
    headers = [line for line in found.sections if line.startswith("[")]
    assert headers == [f"[peers.{'a' * 64}]", f"[peers.{'a' * 62}-2]"]


def test_a_peer_that_cannot_be_named_is_noted() -> None:
    found = named(conf(("", KEY), ("laptop", "nonsense")), Config())
    assert found.sections == []
    assert found.notes == [
        f"no comment above the [Peer] of {KEY} names it",
        "a section [Peer] (laptop) has no valid PublicKey",
    ]


def test_a_key_that_occurs_twice_is_named_once() -> None:
    assert named(conf(("laptop", KEY), ("old", KEY)), Config()).sections == LAPTOP


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_characters="\n")), st.sampled_from([KEY, OTHER, "x"]))), st.text()
)
def test_whatever_the_file_has_the_sections_are_valid_and_hold_no_secret(
    peers: list[tuple[str, str]], other: str
) -> None:
    found = named(conf(*peers) + other, Config())
    lines = "\n".join([*found.sections, *found.notes])
    assert SECRET not in lines
    parse("\n".join(found.sections), Path("wg0.toml"))


# Adding them to a file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "igd" / "wg0.toml"


def test_a_new_file_can_be_read_by_the_service(path: Path) -> None:
    add(LAPTOP, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert load(path).policies.name_of(KEY) == "laptop"


@pytest.mark.parametrize(
    "before",
    [
        b"http_port = 5000\n# mine\n[limits]\nmappings_per_peer = 3 # few\n",
        b"http_port = 5000",
        b"http_port = 5000\r\n",
        b"\xef\xbb\xbfhttp_port = 5000\n",
        f'http_port = 5000\n[peers.desk]\npublic_key = "{OTHER}"\n'.encode(),
        f'http_port = 5000\n[peers]\ndesk = {{ public_key = "{OTHER}" }}\n'.encode(),
    ],
)
def test_what_the_file_has_stays_as_it_is(path: Path, before: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(before)
    path.chmod(0o640)
    inode = path.stat().st_ino
    add(LAPTOP, path)
    assert path.read_bytes().startswith(before)
    assert load(path).http_port == 5000
    assert load(path).policies.name_of(KEY) == "laptop"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_ino != inode, "the file is replaced, so that nobody reads half of it"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owner_and_group_stay(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    os.chown(path, 7, 8)
    path.chmod(0o600)
    add(LAPTOP, path)
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (7, 8, 0o600)


def test_a_symbolic_link_stays_one(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "real.toml")
    (tmp_path / "real.toml").write_text("http_port = 5000\n")
    add(LAPTOP, path)
    assert path.is_symlink()
    assert load(tmp_path / "real.toml").policies.name_of(KEY) == "laptop"


@pytest.mark.parametrize(
    "before",
    [
        f'peers = {{ desk = {{ public_key = "{OTHER}" }} }}\n',
        f'[peers.desk]\npublic_key = "{KEY}"\n',
        f'[peers.laptop]\npublic_key = "{OTHER}"\n',
        "[unfinished",
        "nonsense = 1\n",
    ],
)
def test_nothing_is_written_if_the_result_would_be_invalid(path: Path, before: str) -> None:
    path.parent.mkdir()
    path.write_text(before)
    with pytest.raises(ConfigError, match=str(path)):
        add(LAPTOP, path)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


# The command


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "wg-quick.conf"
    path.write_text(conf(("laptop", KEY)))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["igd", "names", "wg0", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_names_are_printed_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: Path, path: Path
) -> None:
    assert run(monkeypatch, "--from", source, "--config", path) == OK
    printed = capsys.readouterr()
    assert tomllib.loads(printed.out) == {"peers": {"laptop": {"public_key": KEY}}}
    assert printed.err == ""
    assert not path.exists()


def test_names_are_written_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: Path, path: Path
) -> None:
    assert run(monkeypatch, "--from", source, "--config", path, "--write") == OK
    assert f"added to {path}; igd reload" in capsys.readouterr().out
    written = path.read_bytes()
    assert run(monkeypatch, "--from", source, "--config", path, "--write") == OK
    assert capsys.readouterr().err == f"igd: every peer of {source} has its section in {path}\n"
    assert path.read_bytes() == written


def test_a_file_without_comments_is_an_error_with_what_to_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: Path, path: Path
) -> None:
    source.write_text(conf(("", KEY)))
    assert run(monkeypatch, "--from", source, "--config", path, "--write") == FAILED
    assert capsys.readouterr().err.splitlines() == [
        f"igd: {source}: no comment above the [Peer] of {KEY} names it",
        f'igd: {source}: write a line such as "# laptop" above [Peer]',
    ]
    assert not path.exists()


def test_a_missing_file_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    assert run(monkeypatch, "--from", path, "--config", path) == FAILED
    assert capsys.readouterr().err == f"igd: {path}: No such file or directory; --from FILE names wg-quick's file\n"


def test_an_invalid_configuration_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: Path, path: Path
) -> None:
    path.parent.mkdir()
    path.write_text("http_port = 0\n")
    assert run(monkeypatch, "--from", source, "--config", path, "--write") == MISUSED
    assert capsys.readouterr().err.startswith(f"igd: {path}: http_port: 0: must be")
    assert path.read_text() == "http_port = 0\n"
