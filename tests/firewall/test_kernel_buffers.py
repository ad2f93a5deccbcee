"""Netlink's buffers are too small for what is asked at once, or for the answers: nothing is lost, and nobody waits."""

import socket
import time
from collections.abc import AsyncIterator

import pytest

from igd.core.request import Refusal, Unmapped, UnmapPorts
from igd.firewall.nft.nftables import Nftables
from tests.firewall.capabilities import without_net_admin
from tests.firewall.test_kernel_properties import Running, running
from tests.firewall.three_hosts import run
from tests.firewall.whole_gateway import (
    CROWD,
    REFUSED,
    UDP,
    ask,
    ask_together,
    during,
    invite,
    opening,
    own_table,
    serving,
)

pytestmark = pytest.mark.root

TRY = 10  # seconds that Netlink waits for an answer
SMALL = 3500  # octets, of which the kernel grants twice as many: enough for one change and for the whole table


@pytest.fixture
async def on_nftables() -> AsyncIterator[Running]:
    """Return a gateway with a port mapping and a pinhole, in a network namespace of its own."""
    with running("nftables") as gateway:
        async with serving(gateway):
            yield gateway


def _shrink(table: Nftables, option: int, size: int) -> None:
    table.netlink._socket.setsockopt(socket.SOL_SOCKET, option, size)


async def test_what_is_too_much_for_one_transaction_is_made_true_one_by_one(
    on_nftables: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the buffer must not grow, by the policy of a security module or a container."""
    invite(on_nftables)
    table = own_table(on_nftables)
    sent: list[int] = []
    send = table.netlink._send_datagram

    def sending(data: bytes) -> None:
        sent.append(len(data))
        send(data)

    monkeypatch.setattr(table.netlink, "_enlarge", lambda *_: None)
    monkeypatch.setattr(table.netlink, "_send_datagram", sending)
    _shrink(table, socket.SO_SNDBUF, SMALL)
    assert not [reply for reply in await ask_together(on_nftables) if isinstance(reply, Refusal)]
    assert max(sent) > 2 * SMALL, "all of them were too much"
    on_nftables.check()
    assert len(on_nftables.harness.table) == len(CROWD) + 2


async def test_a_crowd_that_is_refused_leaves_no_port_reserved(on_nftables: Running) -> None:
    """Without the right, the buffer cannot grow either (EMSGSIZE, and then EPERM for each)."""
    invite(on_nftables)
    _shrink(own_table(on_nftables), socket.SO_SNDBUF, 2500)
    async with during(lambda _gateway: without_net_admin(), on_nftables):
        assert await ask_together(on_nftables) == [REFUSED] * len(CROWD)
        on_nftables.check()
    assert not [reply for reply in await ask_together(on_nftables) if isinstance(reply, Refusal)]
    on_nftables.check()


async def test_answers_for_which_there_is_no_room_are_not_waited_for(on_nftables: Running) -> None:
    """ENOBUFS; and a socket that is not read empty afterwards would not be answered again (TRY for each)."""
    for port in range(2000, 2060):
        await ask(on_nftables, opening(port))
    _shrink(own_table(on_nftables), socket.SO_RCVBUF, 1)
    run("nft", "flush", "map", "inet", "igd_wg0", "mappings")  # an error for each that is to go
    began = time.monotonic()
    assert await ask(on_nftables, UnmapPorts(UDP, range(2000, 2060))) == REFUSED
    on_nftables.check()
    assert isinstance(await ask(on_nftables, UnmapPorts(UDP, range(2000, 2060))), Unmapped)
    on_nftables.check()
    assert time.monotonic() - began < TRY
