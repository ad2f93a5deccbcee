"""The subcommands and their exit status: 0 success, 1 failure, 2 wrong usage."""

import base64
import importlib
import json
import os
import socket
import tempfile
import tomllib
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from igd import VERSION, cli
from igd.commands.command import FAILED, MISUSED, OK
from igd.firewall import kernel
from igd.firewall.backend import FirewallError
from igd.firewall.site import MARK
from igd.operator import admin_client
from igd.process.instance import Instance

MAPPING: dict[str, object] = {
    "protocol": "TCP",
    "external_port": 8043,
    "internal_address": "10.100.0.2",
    "internal_port": 80,
    "remotes": [],
    "lease": 300,
    "static": False,
    "suspended": False,
    "peer": "key=",
    "description": "ü\x1b",
}


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr("igd.config.DIRECTORY", tmp_path)
    monkeypatch.setattr("igd.process.host_check.host_warnings", lambda *_: [])  # whatever this machine is like
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["igd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"igd {VERSION}\n"


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    output = capsys.readouterr().out
    assert {word.split()[0] for word in output.splitlines() if word.startswith("    ")} >= cli.COMMANDS.keys()
    for name in cli.COMMANDS:
        assert run(monkeypatch, name, "--help") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("serve",),
        ("run",),
        ("run", "a b"),
        ("list", "a/b"),
        ("stop", ""),
        ("check", "a", "b"),
        ("list", "wg0", "-x"),
    ],
)
def test_wrong_usage_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *arguments) == MISUSED
    assert "usage: igd" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "add wg0 icmp 1 10.100.0.2",
        "add wg0 tcp 0 10.100.0.2",
        "add wg0 tcp 0000000080 10.100.0.2",
        "add wg0 tcp \u0661 10.100.0.2",
        "add wg0 tcp 1 x",
        "add wg0 tcp 1 10.100.0.2 70000",
        "add wg0 tcp any 10.100.0.2",
        "add wg0 tcp 1 10.100.0.2 --seconds -1",
        "add wg0 tcp 1 10.100.0.2 --seconds 99999999999",
        "add wg0 tcp 1 10.100.0.2 --description a\n",
        "revoke wg0",
        "revoke wg0 tcp",
        "revoke wg0 tcp 0",
        "revoke wg0 tcp 9-8",
        "revoke wg0 tcp 70000",
        "revoke wg0 --to 10.100.0.0/24",
        "revoke wg0 --peer ",
    ],
)
def test_a_change_with_wrong_arguments_asks_no_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert run(monkeypatch, *words.split(" ")) == MISUSED
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err


@pytest.mark.parametrize("words", ["add wg0 tcp 1 10.100.0.2", "revoke wg0 tcp 1", "reload wg0", "reload"])
def test_a_change_without_a_daemon_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("igd.process.instance.DIRECTORY", tmp_path / "none")
    assert run(monkeypatch, *words.split(" ")) == FAILED
    assert capsys.readouterr().err.startswith("igd: igd is not running for ")


def test_check_prints_the_whole_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "wg0.toml"
    path.write_text("http_port = 5000", encoding="utf-8")
    for subject in (str(path), "wg0"):
        assert run(monkeypatch, "check", subject) == 0
        output = capsys.readouterr()
        assert "http_port = 5000\n" in output.out
        assert output.err == ""


def test_check_warns_about_the_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("igd.process.host_check.host_warnings", lambda *_: ["no IPv4 default route"])
    assert run(monkeypatch, "check") == OK
    assert "default route" not in capsys.readouterr().err, "the defaults are of no host"
    assert run(monkeypatch, "check", "wg0") == OK
    assert capsys.readouterr().err.endswith("igd: warning: no IPv4 default route\n")

    def fail(*_: object) -> list[str]:
        raise OSError("too many open files")

    monkeypatch.setattr("igd.process.host_check.host_warnings", fail)
    assert run(monkeypatch, "check", "wg0") == OK
    assert capsys.readouterr().err.endswith("igd: warning: this host cannot be examined: too many open files\n")


@pytest.mark.parametrize(
    ("subject", "warning"),
    [
        ((), "no file and no interface is given: these are the defaults"),
        (("wg1",), "{directory}/wg0.conf is not read: "),
        (("wg0",), "{directory}/wg0.conf is not read: the configuration of wg0 is {directory}/wg0.toml, which does"),
        (
            ("{directory}/wg0.conf",),
            "{directory}/wg0.conf is not read: `igd run INTERFACE` reads {directory}/INTERFACE",
        ),
        (("eth9",), "there is no {directory}/eth9.toml: these are the defaults"),
    ],
)
def test_check_says_what_it_shows(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    subject: tuple[str, ...],
    warning: str,
) -> None:
    """A file of another name is shown when asked for; the output remains a configuration."""
    (tmp_path / "wg0.conf").write_text("http_port = 5000" if "/" in "".join(subject) else "", encoding="utf-8")
    if subject == ("wg1",):
        (tmp_path / "wg0.conf").rename(tmp_path / "wg1.conf")
        warning = warning.replace("wg0", "wg1")
    assert run(monkeypatch, "check", *(word.format(directory=tmp_path) for word in subject)) == 0
    output = capsys.readouterr()
    assert output.err.startswith(f"igd: warning: {warning.format(directory=tmp_path)}")
    assert len(output.err.splitlines()) == 1
    assert tomllib.loads(output.out)["http_port"] == (5000 if "/" in "".join(subject) else 2869)


def test_check_reads_a_file_in_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A name without a slash is a file if there is one, or if it ends like one, and else an interface."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").write_text("http_port = 5000", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    assert run(monkeypatch, "check", "mine") == 0
    assert "http_port = 5000\n" in capsys.readouterr().out
    assert run(monkeypatch, "check", "yours.toml") == MISUSED
    assert capsys.readouterr().err == f"igd: {tmp_path}/here/yours.toml: No such file or directory\n"
    assert run(monkeypatch, "check", "a b") == MISUSED
    assert capsys.readouterr().err.startswith("igd: 'a b' is not an interface name")


@pytest.mark.parametrize(
    ("address", "public"),
    [("10.0.0.5", False), ("100.64.7.7", False), ("169.254.1.1", False), ("203.0.113.7", False), ("60.60.60.1", True)],
)
def test_a_private_external_address_is_allowed_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    address: str,
    *,
    public: bool,
) -> None:
    (tmp_path / "wg0.toml").write_text(f'external_address = "{address}"', encoding="utf-8")
    sentence = f"external_address {address} is not a public address, and clients refuse such addresses"
    assert run(monkeypatch, "check", "wg0") == OK
    assert (f"igd: warning: {sentence}" in capsys.readouterr().err) is not public
    with Instance("wg0").lock():
        assert run(monkeypatch, "run", "wg0") == FAILED
    assert any(message.startswith(sentence) for message in caplog.messages) is not public


@pytest.mark.parametrize("command", ["check", "run"])
def test_the_way_out_is_not_the_wireguard_interface(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "wg0.toml").write_text('external_interface = "wg0"', encoding="utf-8")
    assert run(monkeypatch, command, "wg0") == MISUSED
    assert "wg0.toml: external_interface: 'wg0': this is the WireGuard interface itself" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("check", "{path}"), ("run", "wg0", "--config", "{path}"), ("run", "wg0")])
def test_an_invalid_configuration_exits_with_2_and_prints_a_line_per_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "wg0.toml"
    path.write_text("http_port = 0\nnonsense = 1", encoding="utf-8")
    assert run(monkeypatch, *(argument.format(path=path) for argument in arguments)) == MISUSED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"igd: {path}: ") for line in lines)


def test_a_configuration_named_on_the_command_line_must_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "run", "wg0", "--config", str(tmp_path / "none")) == MISUSED
    assert "No such file" in capsys.readouterr().err


@pytest.mark.root
def test_an_unreadable_directory_is_not_treated_as_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir(mode=0o700)
    monkeypatch.setattr("igd.config.DIRECTORY", tmp_path / "etc")
    importlib.import_module("igd.process.background")  # that user may be unable to read Python's files
    os.seteuid(65534)
    try:
        assert run(monkeypatch, "run", "wg0") == MISUSED
    finally:
        os.seteuid(0)
    assert "wg0.toml: user nobody may not enter /" in capsys.readouterr().err


def test_an_error_becomes_the_status_of_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What systemd shows stays when the log is gone: its first line."""
    (tmp_path / "wg0.toml").write_text("http_port = 0\nnonsense = 1", encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert run(monkeypatch, "run", "wg0") == MISUSED
        first, _ = capsys.readouterr().err.splitlines()
        assert systemd.recv(4096).decode() == f"STATUS={first.removeprefix('igd: ')}"


def test_a_file_that_is_not_read_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "wg0.conf").touch()
    (tmp_path / "given").touch()
    with Instance("wg0").lock():
        assert run(monkeypatch, "run", "wg0", "--config", str(tmp_path / "given")) == FAILED
        assert caplog.messages == []
        assert run(monkeypatch, "run", "wg0") == FAILED
    assert [message.partition(":")[0] for message in caplog.messages] == [f"{tmp_path}/wg0.conf is not read"]


def test_a_second_instance_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Instance("wg0").lock():
        assert run(monkeypatch, "run", "wg0") == FAILED
    assert capsys.readouterr().err == f"igd: wg0: another igd (process {os.getpid()}) serves it already\n"


@pytest.mark.parametrize("command", ["list", "status"])
def test_a_query_without_a_daemon_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(monkeypatch, command, "wg0") == FAILED
    output = capsys.readouterr()
    assert output.err.startswith("igd: igd is not running for wg0")
    assert output.out == ""


@pytest.mark.parametrize("command", ["list", "status"])
def test_a_query_says_what_the_daemon_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    instance = Instance("wg0")
    with instance.lock():
        for missing, reason in (("wg0 to be up", "igd waits for wg0 to be up"), ("", "igd is starting for wg0")):
            instance.report_waiting(missing)
            assert run(monkeypatch, command, "wg0") == FAILED
            assert capsys.readouterr() == ("", f"igd: {reason}\n")
    assert run(monkeypatch, command, "wg0") == FAILED
    assert capsys.readouterr().err.startswith("igd: igd is not running for wg0")


def test_what_the_daemon_waits_for_does_not_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever controls the daemon's user may have written it."""
    instance = Instance("wg0")
    with instance.lock():
        (instance.runtime_directory / "lock").write_bytes(b"1\n\x1b[2J\xff" + b"x" * 1_000_000)
        assert run(monkeypatch, "list", "wg0") == FAILED
    error = capsys.readouterr().err
    assert error.startswith("igd: igd waits for \\x1b[2J")
    assert len(error) < 10_000


def test_mappings_are_listed_as_text_and_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], directories: Path
) -> None:
    requested: list[tuple[Path, str]] = []

    def get(directory: Path, path: str) -> list[dict[str, object]]:
        requested.append((directory, path))
        return [MAPPING]

    monkeypatch.setattr(admin_client, "get", get)
    assert run(monkeypatch, "list", "wg0") == 0
    output = capsys.readouterr().out
    assert "10.100.0.2:80" in output
    assert "\x1b" not in output
    assert run(monkeypatch, "list", "wg0", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"interface": "wg0", **MAPPING}]
    assert requested == [(directories / "run", "/mappings")] * 2


def test_stop_cleans_up_even_without_a_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleared: list[tuple[str, int | None]] = []
    monkeypatch.setattr(kernel, "remove_everything", lambda name, *_: cleared.append((name, Instance(name).process())))
    assert run(monkeypatch, "stop", "wg0") == 0
    assert cleared == [("wg0", os.getpid())], "under the lock, so that a new daemon does not lose its rules"
    expected = "igd was not running for wg0; what a killed one may have left in the firewall was removed\n"
    assert capsys.readouterr() == (expected, "")


@pytest.mark.parametrize(("ended", "printed"), [("stopped", ""), ("killed", "left in the firewall was removed\n")])
def test_stop_prints_that_it_had_to_kill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: str, printed: str
) -> None:
    monkeypatch.setattr(Instance, "stop", lambda *_: ended)
    monkeypatch.setattr(kernel, "remove_everything", lambda *_: None)
    assert run(monkeypatch, "stop", "wg0") == 0
    output = capsys.readouterr().out
    assert output.endswith(printed)
    assert bool(output) == bool(printed)


@pytest.mark.root
@pytest.mark.parametrize("existing", [True, False], ids=["lock of a daemon", "no directory"])
def test_another_user_is_told_who_may_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, existing: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setenv("RUNTIME_DIRECTORY", f"{directory}/run")
        if existing:
            with Instance("wg0").lock():
                pass
        os.seteuid(64000)
        try:
            assert run(monkeypatch, "stop", "wg0") == FAILED
        finally:
            os.seteuid(0)
    assert capsys.readouterr() == ("", "igd: only root and its own user may stop the igd of wg0: sudo igd stop wg0\n")


def test_stop_ends_the_flows_of_static_mappings_which_are_not_stored(
    monkeypatch: pytest.MonkeyPatch, directories: Path
) -> None:
    key = base64.b64encode(bytes(32)).decode()
    static = 'static = ["tcp 443 10.100.0.2 443"]'
    (directories / "wg0.toml").write_text(f'[peers.laptop]\npublic_key = "{key}"\n{static}\n')
    cleared: list[object] = []
    monkeypatch.setattr(kernel, "remove_everything", lambda *arguments: cleared.extend(arguments))
    assert run(monkeypatch, "stop", "wg0") == 0
    assert cleared == ["wg0", MARK, (IPv4Network("10.100.0.2/32"),)]


def test_a_failed_cleanup_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise FirewallError("not permitted")

    monkeypatch.setattr(kernel, "remove_everything", fail)
    assert run(monkeypatch, "stop", "wg0") == FAILED
    assert capsys.readouterr().err == "igd: wg0: not permitted\n"
