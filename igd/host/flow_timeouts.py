"""For how long connection tracking keeps a flow without packets, as the server's settings are at the moment."""

from pathlib import Path

from igd.core.mapping import TransportProtocol

DIRECTORY = Path("/proc/sys/net/netfilter")

_SETTINGS = {
    TransportProtocol.TCP: "nf_conntrack_tcp_timeout_established",
    TransportProtocol.UDP: "nf_conntrack_udp_timeout_stream",
}
"""The timeouts of flows with packets in both directions. A UDP flow without an answer is forgotten sooner."""


def idle_seconds(protocol: TransportProtocol) -> int:
    """Return the timeout of this protocol's flows; OSError, or ValueError if it is no number."""
    return int((DIRECTORY / _SETTINGS[protocol]).read_text())
