"""A file that cannot be read is an error with the cause and the remedy; one that is not read is named."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from igd import config_file

NOBODY = "nobody"
READ = "import sys; from pathlib import Path; from igd import config_file; print(config_file.read(Path(sys.argv[1])))"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a directory like /etc/igd, which everybody may enter; pytest's own are root's alone."""
    etc = Path(mkdtemp())
    etc.chmod(0o755)
    (etc / "igd").mkdir()
    yield etc / "igd"
    rmtree(etc)


def error_of(path: Path) -> str:
    try:
        config_file.read(path)
    except ValueError as error:
        return str(error)
    raise AssertionError("it was read")


@pytest.mark.parametrize(
    "data",
    [b"a = 1\nb = 2\n", b"a = 1\r\nb = 2\r\n", b"a = 1\rb = 2\r", b"\xef\xbb\xbfa = 1\nb = 2\n"],
    ids=["LF", "CRLF", "CR", "BOM"],
)
def test_every_editors_text_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "wg0.toml"
    path.write_bytes(data)
    assert config_file.read(path) == "a = 1\nb = 2\n"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("a = 1".encode("utf-16"), "it is UTF-16, and must be UTF-8: iconv -f UTF-16 -t UTF-8 {path} > new && mv new"),
        (b"\xfe\xff\0a", "it is UTF-16, and must be UTF-8: iconv"),
        ("a = 1\n".encode("utf-16-le"), "it is not a text file: line 1 has a byte 0x00"),
        (b"\x7fELF\n\1\0", "it is not a text file: line 2 has a byte 0x00"),
        ("a = 'b'\n#\u00fc".encode("latin-1"), "line 2 is not UTF-8 (byte 0xfc): save the file as UTF-8"),
    ],
)
def test_what_is_not_text_is_named(tmp_path: Path, data: bytes, error: str) -> None:
    path = tmp_path / "wg0.toml"
    path.write_bytes(data)
    assert error_of(path).startswith(error.format(path=path))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wg0.toml"
    assert error_of(path) == "No such file or directory"
    path.symlink_to("elsewhere.toml")
    assert config_file.is_present(path), "a link to nothing must not mean the defaults"
    assert error_of(path) == "No such file or directory (it is a symbolic link to elsewhere.toml)"
    path.unlink()
    path.symlink_to("wg0.toml")
    assert error_of(path) == "Too many levels of symbolic links"
    path.unlink()
    path.mkdir()
    assert error_of(path) == "it is a directory; igd reads one file of this name"
    assert error_of(path / "a" / "b") == "No such file or directory"
    (tmp_path / "igd").touch()
    assert config_file.is_present(tmp_path / "igd/wg0.toml"), "a file in place of the directory is an error, too"
    assert error_of(tmp_path / "igd/wg0.toml") == "Not a directory"


def read_as_nobody(path: Path) -> subprocess.CompletedProcess[str]:
    command = ["setpriv", f"--reuid={NOBODY}", "--regid=nogroup", "--clear-groups"]
    sources = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["env", *(f"{key}={value}" for key, value in sources.items()), *command, sys.executable, "-c", READ, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}
    return done


@pytest.mark.root
@pytest.mark.parametrize("barrier", ["file", "directory", "directory above", "target of a link"])
def test_the_command_in_the_message_lets_the_user_read(directory: Path, barrier: str) -> None:
    path = directory / "wg 0.toml"
    path.write_text("a = 1", encoding="utf-8")
    place = {"file": path, "directory": directory, "directory above": directory.parent}.get(barrier, path)
    place.chmod(0o600 if place == path else 0o700)
    mode = f"{place.stat().st_mode & 0o777:04o}"
    if barrier == "target of a link":
        path = directory / "link.toml"
        path.symlink_to(place)
    error = read_as_nobody(path).stderr.strip().splitlines()[-1].removeprefix("ValueError: ")
    verb = "read" if place.is_file() else "enter"
    reason, _, remedy = error.partition(": ")
    assert reason == f"user nobody may not {verb} {place} (mode {mode}, root:root)"
    subprocess.run(["sh", "-ec", remedy], check=True)
    assert read_as_nobody(path).stdout == "a = 1\n"
    assert place.stat().st_mode & 0o007 == 0, "nobody else may read it"
    assert shlex.split(remedy)[:2] == ["chgrp", "nogroup"]


@pytest.mark.root
def test_root_is_warned_of_what_the_service_may_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "wg0.toml"
    path.touch(0o644)
    monkeypatch.setattr(config_file, "SERVICE_USER", NOBODY)
    assert config_file.service_denial(path) is None
    path.chmod(0o640)
    assert str(config_file.service_denial(path)) == (
        f"user nobody may not read {path} (mode 0640, root:root): chgrp nogroup {path} && chmod g+r {path}"
    )
    path.unlink()
    path.symlink_to("/root/wg0.toml")
    hidden = config_file.service_denial(path)
    assert hidden is not None
    assert hidden.text.startswith("user nobody may not enter /root (mode ")
    assert str(hidden).endswith(": igd@.service hides it, so put the file itself in /etc/igd, and no symbolic link")
    monkeypatch.setattr(config_file, "SERVICE_USER", "nobody-has-this-name")
    assert config_file.service_denial(path) is None, "the service is not installed"


UNREAD = ["wg0.conf", "wg0", "WG0.toml", "wg0.toml.txt", "wg0.TOML", "igd.toml", "igd.conf", "Wg0.Conf"]


@pytest.mark.parametrize("name", [*UNREAD, "wg1.toml", "../igd.toml", "../igd.conf", "../wg0.toml"])
def test_a_file_that_is_not_read_because_of_its_name_is_named(directory: Path, name: str) -> None:
    (directory / name).touch()
    named = directory.parent / name[3:] if name.startswith("../") else directory / name
    reason = f"the configuration of wg0 is {directory}/wg0.toml, which does not exist: the defaults are in force"
    assert config_file.unread(directory / "wg0.toml") == [f"{named} is not read: {reason}"]


def test_the_file_of_another_interface_that_exists_is_not_named(directory: Path) -> None:
    (directory / "lo.toml").touch()
    assert config_file.unread(directory / "wg0.toml") == []


def test_beside_a_file_that_is_read_only_look_alikes_are_named(directory: Path) -> None:
    for name in (*UNREAD, "wg0.toml", "wg1.toml", "wg0.1.toml", "README"):
        (directory / name).touch()
    assert config_file.unread(directory / "wg0.toml") == [
        f"{directory}/{name} is not read: the configuration of wg0 is {directory}/wg0.toml, and no other file"
        for name in sorted(UNREAD)
    ]


@pytest.mark.parametrize("name", ["wg0.toml~", ".wg0.toml.swp", "wg0.toml.bak", "wg0.toml.dpkg-old", "notes", "wg0.d/"])
def test_a_copy_is_not_named(directory: Path, name: str) -> None:
    if name.endswith("/"):
        (directory / name).mkdir()
    else:
        (directory / name).touch()
    assert config_file.unread(directory / "wg0.toml") == []


def test_the_target_of_a_link_is_read(directory: Path) -> None:
    (directory / "igd.toml").touch()
    (directory / "wg0.toml").symlink_to("igd.toml")
    (directory / "WG0.toml").symlink_to("igd.toml")
    assert config_file.unread(directory / "wg0.toml") == []


@pytest.mark.root
def test_a_link_to_where_the_user_may_not_look_is_named(directory: Path) -> None:
    (directory / "igd.conf").symlink_to("/root/igd.conf")
    os.seteuid(65534)
    try:
        (sentence,) = config_file.unread(directory / "wg0.toml")
    finally:
        os.seteuid(0)
    assert sentence.startswith(f"{directory}/igd.conf is not read: ")


def test_without_a_directory_no_file_is_named(tmp_path: Path) -> None:
    assert config_file.unread(tmp_path / "igd" / "wg0.toml") == []


@pytest.mark.parametrize(
    ("name", "read"),
    [("igd/wg0.toml", True), ("igd/wg0.conf", False), ("igd/igd.toml", False), ("wg0.toml", False), ("a/b.conf", True)],
)
def test_a_file_whose_name_is_wrong_where_it_lies(tmp_path: Path, name: str, *, read: bool) -> None:
    directory = tmp_path / "igd"
    expected = f"{tmp_path / name} is not read: `igd run INTERFACE` reads {directory}/INTERFACE.toml"
    assert config_file.misnamed(tmp_path / name, directory) == (None if read else expected)
