"""For how long connection tracking keeps a flow without packets, as the server's settings are at the moment."""

from pathlib import Path

from igd.core.mapping import TransportProtocol

DIRECTORY = Path("/proc/sys/net/netfilter")

_SETTINGS = {
    TransportProtocol.TCP: ("nf_conntrack_tcp_timeout_established",),
    TransportProtocol.UDP: ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"),
}
"""The timeouts of a protocol's flows; of UDP, before packets have gone to and fro for two seconds, and after."""


def idle_seconds(protocol: TransportProtocol) -> int:
    """Return how long a flow of UDP, or an established one of TCP, is kept at least without packets.

    OSError, or ValueError for what is no number. The settings are those of the calling thread's network namespace.
    """
    return min(int((DIRECTORY / name).read_text()) for name in _SETTINGS[protocol])
