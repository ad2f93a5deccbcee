"""How long a flow is kept without packets is read from connection tracking's settings, whenever it is asked for."""

from pathlib import Path

import pytest

from igd.core.mapping import TransportProtocol
from igd.host import flow_timeouts
from tests.firewall.three_hosts import new_namespace

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP


def write(name: str, value: str) -> None:
    Path(flow_timeouts.DIRECTORY, f"nf_conntrack_{name}").write_text(value)


@pytest.mark.root
def test_the_settings_are_those_of_the_network_namespace_at_the_moment() -> None:
    with new_namespace():
        assert flow_timeouts.idle_seconds(TCP) == 432_000, "the kernel's default"
        write("tcp_timeout_established", "7440")
        assert flow_timeouts.idle_seconds(TCP) == 7440
        with new_namespace():
            assert flow_timeouts.idle_seconds(TCP) == 432_000


@pytest.mark.root
@pytest.mark.parametrize(("new", "lasting"), [("30", "180"), ("90", "60")])
def test_a_flow_of_udp_is_kept_for_the_shorter_of_two_timeouts(new: str, lasting: str) -> None:
    with new_namespace():
        write("udp_timeout", new)
        write("udp_timeout_stream", lasting)
        assert flow_timeouts.idle_seconds(UDP) == min(int(new), int(lasting))


@pytest.mark.parametrize("protocol", TransportProtocol)
def test_without_connection_tracking_there_is_no_answer(
    protocol: TransportProtocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_timeouts, "DIRECTORY", tmp_path)
    with pytest.raises(FileNotFoundError):
        flow_timeouts.idle_seconds(protocol)
    for name in ("tcp_timeout_established", "udp_timeout", "udp_timeout_stream"):
        write(name, "")
    with pytest.raises(ValueError, match="invalid literal"):
        flow_timeouts.idle_seconds(protocol)
