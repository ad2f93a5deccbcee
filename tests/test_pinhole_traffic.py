"""A peer asks what has passed through its pinholes, and for how long flows are kept; the page, for all mappings."""

from collections.abc import Collection
from ipaddress import IPv6Address

import pytest

from igd.core.mapping import AnyMapping, Endpoint, Pinhole, TransportProtocol
from igd.core.request import (
    GetPinholeTimeout,
    GetPinholeTraffic,
    Mapped,
    MapPort,
    PinholeTimeout,
    PinholeTraffic,
    Refusal,
    UnmapPinhole,
)
from igd.firewall.backend import FirewallError, Traffic
from igd.firewall.pretend import Pretend
from igd.ledger import READ_AT_ONCE
from tests.gateway_harness import C1, C2, GatewayHarness, entry, peer

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
IPV6 = IPv6Address("2001:470:100::2")


class CountingKernel(Pretend):
    """Counts as many packets for each mapping as the number of its port; records how many are read at once."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []
        self.trouble: FirewallError | None = None

    def traffic(self, mappings: Collection[AnyMapping]) -> list[Traffic | None]:
        """Return the counts of those that are held."""
        self.read.append(len(mappings))
        if self.trouble:
            raise self.trouble
        return [Traffic(each.external_port, 0) if each.key in self.entries else None for each in mappings]


async def started() -> tuple[GatewayHarness, CountingKernel, int]:
    """Return a gateway, its kernel, and the UniqueID of a pinhole to port 8043."""
    kernel = CountingKernel()
    harness = GatewayHarness(backend=kernel)
    harness.peers.all = (peer("c1", f"{C1}/32", f"{IPV6}/128"), peer("c2", f"{C2}/32"))
    await harness.start()
    reply = await harness.ask(MapPort(UDP, Endpoint(IPV6, 8043), 8043, 300))
    assert isinstance(reply, Mapped)
    assert isinstance(reply.mapping, Pinhole)
    return harness, kernel, reply.mapping.unique_id


async def test_the_packets_of_ones_own_pinhole() -> None:
    harness, _kernel, number = await started()
    assert await harness.ask(GetPinholeTraffic(number)) == PinholeTraffic(8043)
    assert await harness.ask(GetPinholeTraffic(number), C2) is Refusal.NO_SUCH_MAPPING
    await harness.ask(UnmapPinhole(number))
    assert await harness.ask(GetPinholeTraffic(number)) is Refusal.NO_SUCH_MAPPING


async def test_nothing_is_claimed_of_what_the_kernel_cannot_tell(caplog: pytest.LogCaptureFixture) -> None:
    """That no packet came would be another answer (709), by which a client looks for another way."""
    harness, kernel, number = await started()
    kernel.trouble = FirewallError("not counted")
    assert await harness.ask(GetPinholeTraffic(number)) is Refusal.SYSTEM_FAILURE
    assert "GetPinholeTraffic cannot be answered: not counted" in caplog.messages


async def test_a_pinhole_that_is_closed_while_it_is_read_is_none() -> None:
    harness, kernel, number = await started()
    kernel.entries = {}
    assert await harness.ask(GetPinholeTraffic(number)) is Refusal.NO_SUCH_MAPPING


async def test_the_counts_of_many_are_read_in_pieces_between_which_changes_are_made() -> None:
    harness, kernel, _number = await started()
    many = [entry(port) for port in range(2000, 2000 + 3 * READ_AT_ONCE // 2)]
    await harness.ledger.take_over(many, [], harness.ledger.addresses)
    found = await harness.ledger.traffic([each.mapping for each in many])
    assert found == [Traffic(each.mapping.external_port, 0) for each in many]
    assert kernel.read == [READ_AT_ONCE, READ_AT_ONCE // 2]
    assert await harness.ledger.traffic([]) == []


async def test_timeouts_are_read_at_each_request(caplog: pytest.LogCaptureFixture) -> None:
    harness, _kernel, _number = await started()
    seconds = {UDP: 30}
    harness.gateway.idle_seconds = lambda protocol: seconds[protocol] if protocol in seconds else int("")
    assert await harness.ask(GetPinholeTimeout(UDP)) == PinholeTimeout(30)
    seconds[UDP] = 60
    assert await harness.ask(GetPinholeTimeout(UDP)) == PinholeTimeout(60)
    assert await harness.ask(GetPinholeTimeout(TCP)) is Refusal.SYSTEM_FAILURE

    def missing(_protocol: TransportProtocol) -> int:
        raise FileNotFoundError(2, "No such file or directory", "/proc/sys/net/netfilter/nf_conntrack_udp_timeout")

    harness.gateway.idle_seconds = missing
    assert await harness.ask(GetPinholeTimeout(UDP)) is Refusal.SYSTEM_FAILURE
    assert "nf_conntrack_udp_timeout" in caplog.messages[-1]
