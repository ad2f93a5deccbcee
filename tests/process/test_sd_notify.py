"""systemd learns what igd does; where it cannot, igd goes on."""

import socket
from pathlib import Path

import pytest

from igd.process.sd_notify import notify


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    received = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    received.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return received


def test_states_are_sent(systemd: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    with systemd:
        notify("READY=1", "STATUS=Serving")
        assert systemd.recv(4096) == b"READY=1\nSTATUS=Serving"
    assert caplog.messages == []


def test_a_name_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("")  # the kernel chooses a name that nobody has
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{systemd.getsockname()[1:].decode()}")
        notify("READY=1")
        assert systemd.recv(4096) == b"READY=1"


@pytest.mark.parametrize("path", ["nothing", "closed", "file", "x" * 200, "@nobody"])
def test_a_socket_that_cannot_be_reached_is_logged(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as closed:
        closed.bind(str(tmp_path / "closed"))
    (tmp_path / "file").touch()
    name = path if path.startswith("@") else str(tmp_path / path)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1", "STATUS=Serving")
    (message,) = caplog.messages
    assert message.startswith(f"NOTIFY_SOCKET {name}: ")
    assert message.endswith(": systemd was not notified of READY=1 STATUS=Serving")


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert caplog.messages == []
