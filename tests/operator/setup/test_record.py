"""What setup does is undone byte for byte; what the operator changed since is kept, and only our lines go."""

import json
import os
import stat
from pathlib import Path

import pytest

from igd.operator import replaced_file
from igd.operator.setup import record
from igd.operator.setup.steps import Step, Write
from igd.operator.setup.wg_quick_hooks import START, STOP, with_lines

BEFORE = b"[Interface]\r\nMTU = 1420"
LINES = (START, STOP)
AFTER = with_lines(BEFORE, LINES)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "DIRECTORY", tmp_path / "lib" / "igd-setup")
    (tmp_path / "lib").mkdir()
    return tmp_path


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "wg0.conf"
    path.write_bytes(BEFORE)
    path.chmod(0o600)
    return path


def edit(path: Path) -> Step:
    return Step("a reason", (Write(path, path.read_bytes(), AFTER, LINES, separable=True),))


def carry_out(*steps: Step) -> None:
    with record.opened("wg0") as recorded:
        recorded.carry_out(steps)


def undo() -> list[str]:
    with record.opened("wg0") as recorded:
        return [*recorded.undo(), *recorded.notes]


def everything(directory: Path) -> dict[str, bytes | str]:
    """Return all that there is below a directory."""
    return {
        str(path): "directory" if path.is_dir() else path.read_bytes() for path in directory.rglob("*") if path.exists()
    }


def test_nothing_is_left(directory: Path, conf: Path) -> None:
    before = everything(directory)
    drop_in = directory / "etc" / "igd@wg0.service.d" / "x.conf"
    log = directory / "log"
    carry_out(
        edit(conf),
        Step("", (Write(drop_in, None, b"[Service]\n"),)),
        Step(
            "",
            do=(
                ("mkdir", "-p", f"{directory}/var/igd/wg0"),
                ("touch", f"{directory}/var/igd/wg0/leases"),
                ("touch", str(log)),
            ),
            undo=(("rm", str(log)),),
            makes=(directory / "var" / "igd",),
            fills=(directory / "var" / "igd" / "wg0",),
        ),
    )
    assert conf.read_bytes() == AFTER
    assert stat.S_IMODE(drop_in.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE((record.DIRECTORY / "wg0").stat().st_mode) == 0o700
    assert stat.S_IMODE((record.DIRECTORY / "wg0" / "1-wg0.conf").stat().st_mode) == 0o600
    assert (record.DIRECTORY / "wg0" / "1-wg0.conf").read_bytes() == BEFORE
    assert undo() == []
    assert everything(directory) == before


def test_what_was_there_before_is_not_removed(directory: Path) -> None:
    (directory / "var").mkdir()
    (directory / "var" / "leases").touch()
    before = everything(directory)
    carry_out(Step("", do=(("touch", f"{directory}/var/more"),), undo=(), fills=(directory / "var",)))
    assert undo() == []
    assert everything(directory).keys() == {*before, f"{directory}/var/more"}


def test_mode_and_owner_stay(conf: Path) -> None:
    if os.geteuid() == 0:
        os.chown(conf, 7, 8)
    conf.chmod(0o640)
    before = conf.stat()
    for act in (lambda: carry_out(edit(conf)), undo):
        act()
        now = conf.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_symbolic_link_stays_one(conf: Path) -> None:
    link = conf.with_name("link.conf")
    link.symlink_to(conf)
    carry_out(edit(link))
    assert (link.is_symlink(), conf.read_bytes()) == (True, AFTER)
    undo()
    assert (link.is_symlink(), conf.read_bytes()) == (True, BEFORE)


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        (AFTER + b"# mine\r\n", with_lines(BEFORE, ()) + b"# mine\r\n"),
        (f"[Interface]\nSaveConfig = true\n{START}\n{STOP}\n".encode(), b"[Interface]\nSaveConfig = true\n"),
        (f"[Interface]\n{STOP}\n".encode(), b"[Interface]\n"),
        (b"[Interface]\n", b"[Interface]\n"),
    ],
    ids=["edited", "written anew by wg-quick", "one line gone", "both gone"],
)  # fmt: skip
def test_of_a_file_that_was_changed_since_only_our_lines_go(conf: Path, changed: bytes, left: bytes) -> None:
    carry_out(edit(conf))
    conf.write_bytes(changed)
    assert undo() == []
    assert conf.read_bytes() == left


def test_a_file_that_is_gone_stays_gone(conf: Path) -> None:
    carry_out(edit(conf))
    conf.unlink()
    assert undo() == []
    assert not conf.exists()


def test_a_file_of_ours_that_was_changed_since_stays(directory: Path) -> None:
    path = directory / "wg0.toml"
    carry_out(Step("", (Write(path, None, b"[firewall]\n"),)))
    path.write_bytes(b"[firewall]\nhairpin = false\n")
    assert undo() == [f"{path} was changed since setup wrote it, and stays as it is"]
    assert path.read_bytes() == b"[firewall]\nhairpin = false\n"


def test_two_rounds_are_undone(directory: Path, conf: Path) -> None:
    """As after an upgrade of igd, or a second interface's firewall."""
    before = everything(directory)
    carry_out(edit(conf))
    more = with_lines(AFTER, ["PostUp = echo"])
    carry_out(Step("", (Write(conf, AFTER, more, ("PostUp = echo",), separable=True),)))
    assert undo() == []
    assert everything(directory) == before


def test_between_two_rounds_the_operator_edited(conf: Path) -> None:
    carry_out(edit(conf))
    edited = conf.read_bytes().replace(b"1420", b"1400")
    conf.write_bytes(edited)
    carry_out(
        Step("", (Write(conf, edited, with_lines(edited, ["PostUp = echo"]), ("PostUp = echo",), separable=True),))
    )
    assert undo() == []
    assert conf.read_bytes() == b"[Interface]\r\nMTU = 1400\r\n"


def rule_in(conf: Path, new: Path) -> Step:
    """Return a step like ufw's: its commands write files that the program owns, and the deletion leaves a trace."""
    return Step(
        "",
        do=(("sh", "-c", f"echo rule >> {conf}; touch {new}"),),
        undo=(("sh", "-c", f"sed -i /rule/d {conf}; echo deleted >> {conf}"),),
        tracks=(conf, new),
    )


def test_a_file_that_commands_change_is_restored(directory: Path, conf: Path) -> None:
    before = everything(directory)
    carry_out(rule_in(conf, directory / "zone.xml"))
    assert undo() == []
    assert everything(directory) == before


def test_a_file_that_commands_and_the_operator_changed_is_left_to_the_commands(directory: Path, conf: Path) -> None:
    conf.write_bytes(b"first\n")
    carry_out(rule_in(conf, directory / "zone.xml"))
    conf.write_bytes(b"first\nrule\nmine\n")
    assert undo() == []
    assert conf.read_bytes() == b"first\nmine\ndeleted\n"


# What goes wrong


def test_if_a_step_fails_those_before_it_are_undone(directory: Path, conf: Path) -> None:
    before = everything(directory)
    with pytest.raises(OSError, match=r"^false: status 1$"):
        carry_out(
            edit(conf),
            Step("", do=(("touch", str(directory / "half")), ("false",)), undo=(("rm", str(directory / "half")),)),
        )
    assert everything(directory) == before


def test_a_file_that_was_changed_while_the_operator_thought_is_not_touched(directory: Path, conf: Path) -> None:
    step = edit(conf)
    conf.write_bytes(b"[Interface]\n")
    before = everything(directory)
    with pytest.raises(OSError, match="was changed meanwhile"):
        carry_out(step)
    assert everything(directory) == before


@pytest.mark.parametrize("written", [False, True])
def test_after_a_loss_of_power_in_a_step_it_is_undone(
    directory: Path, conf: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """The record is written before the step begins; how far that came does not matter."""
    before = everything(directory)
    real = replaced_file.replace

    class PowerLossError(BaseException):
        pass

    def fail(path: Path, content: bytes, mode: int = 0o644) -> None:
        if path != conf or written:
            real(path, content, mode)
        if path == conf:
            raise PowerLossError

    with monkeypatch.context() as patch:
        patch.setattr(record.Record, "_undo_behind", lambda *_: [])
        patch.setattr(replaced_file, "replace", fail)
        with pytest.raises(PowerLossError):
            carry_out(edit(conf))
    assert undo() == []
    assert everything(directory) == before


def test_commands_that_cannot_undo_are_reported_and_do_not_stop_the_rest(directory: Path, conf: Path) -> None:
    """Such as `ufw delete` for a rule that the operator has deleted."""
    before = everything(directory)
    carry_out(edit(conf), Step("", do=(("true",),), undo=(("false",), ("no-such-program-of-igds", "x"))))
    assert undo() == ["false: status 1", "no-such-program-of-igds x: there is no such program"]
    assert everything(directory) == before


def test_a_file_that_cannot_be_restored_stays_in_the_record(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(edit(conf))
    real = replaced_file.replace

    def fail(path: Path, content: bytes, mode: int = 0o644) -> None:
        if path == conf:
            raise OSError(30, "Read-only file system", str(path))
        real(path, content, mode)

    with monkeypatch.context() as patch:
        patch.setattr(replaced_file, "replace", fail)
        assert undo() == [f"[Errno 30] Read-only file system: '{conf}'"]
    assert conf.read_bytes() == AFTER
    assert undo() == []
    assert conf.read_bytes() == BEFORE


def test_a_damaged_record_is_an_error_that_names_the_copies(conf: Path) -> None:
    carry_out(edit(conf))
    (record.DIRECTORY / "wg0" / "record.json").write_text(json.dumps({"steps": 1}))
    with pytest.raises(OSError, match=r"record.json is damaged; copies of the files"):
        undo()
    assert (record.DIRECTORY / "wg0" / "1-wg0.conf").read_bytes() == BEFORE


def test_two_at_once_are_refused(conf: Path) -> None:
    with record.opened("wg0"), pytest.raises(OSError, match="another igd setup wg0 is running"):
        carry_out(edit(conf))
    assert conf.read_bytes() == BEFORE
    carry_out(edit(conf))
