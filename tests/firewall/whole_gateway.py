"""A whole gateway on the real kernel and a real store, asked by peers: for tests of what may go wrong in it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from ipaddress import IPv4Address

from igd.core.mapping import Claim, Endpoint, TransportProtocol
from igd.core.request import Mapped, MapPort, Refusal, Reply, UnmapInternal, UnmapPorts
from igd.firewall.kernel import Kernel
from igd.firewall.nft.nftables import Nftables
from tests.firewall.test_kernel_properties import C1_6, OWNERS, Running
from tests.gateway_harness import C1, peer

UDP = TransportProtocol.UDP
INSIDE = 8080
NONCE = b"twelve bytes"
Changing = MapPort | UnmapPorts | UnmapInternal
Trouble = Callable[[Running], AbstractContextManager[object]]


def opening(port: int, source: IPv4Address = C1, lifetime: int = 300) -> MapPort:
    """Return a request for a port mapping to INSIDE."""
    return MapPort(UDP, Endpoint(source, INSIDE), port, lifetime)


def pinhole(port: int) -> MapPort:
    """Return a request for a pinhole, as PCP makes it."""
    return MapPort(UDP, Endpoint(C1_6, port), None, 300, any_port=True, claim=Claim(by_internal=True, nonce=NONCE))


OPEN, RENEW, CLOSE = opening(2000), opening(1024, lifetime=4000), UnmapPorts(UDP, range(1024, 1025))
OPEN_6, CLOSE_6 = pinhole(8081), UnmapInternal(UDP, C1_6, INSIDE, Claim(by_internal=True, nonce=NONCE))
REFUSED = Refusal.SYSTEM_FAILURE


async def ask(gateway: Running, request: Changing) -> Reply:
    """Send a request as the peer whose address is to be mapped, or as c1 to delete a mapping."""
    return await gateway.harness.ask(request, request.internal.address if isinstance(request, MapPort) else C1)


@asynccontextmanager
async def serving(gateway: Running) -> AsyncIterator[Running]:
    """Start the gateway, with a port mapping and a pinhole."""
    await gateway.start()
    for request in (opening(1024), pinhole(INSIDE)):
        assert isinstance(await ask(gateway, request), Mapped)
    gateway.check()
    try:
        yield gateway
    finally:
        await gateway.harness.ledger.close()
        gateway.store.close()


@asynccontextmanager
async def during(trouble: Trouble, gateway: Running) -> AsyncIterator[None]:
    """Cause this trouble in the thread that changes kernel and store."""
    ledger = gateway.harness.ledger
    with ExitStack() as stack:
        await ledger.in_worker(lambda: stack.enter_context(trouble(gateway)))
        try:
            yield
        finally:
            await ledger.in_worker(stack.close)


def parts(gateway: Running) -> Kernel:
    """Return what its backend is made of."""
    assert isinstance(gateway.backend, Kernel)
    return gateway.backend


def own_table(gateway: Running) -> Nftables:
    """Return its backend for nftables."""
    mappings = parts(gateway).mappings
    assert isinstance(mappings, Nftables)
    return mappings


CROWD: Sequence[IPv4Address] = [IPv4Address("10.100.1.0") + number for number in range(60)]


def invite(gateway: Running) -> None:
    """Add so many peers that one transaction of all their mappings is large."""
    gateway.harness.peers.all = (*OWNERS, *(peer(str(address), f"{address}/32") for address in CROWD))


async def ask_together(gateway: Running) -> list[Reply]:
    """Have one change each of a crowd wait for the same transaction."""
    ledger = gateway.harness.ledger
    async with ledger._writing:
        asking = [asyncio.create_task(ask(gateway, opening(2000 + n, each))) for n, each in enumerate(CROWD)]
        while len(ledger._queue) < len(CROWD):  # noqa: ASYNC110 - the queue has no event
            await asyncio.sleep(0)
    return await asyncio.gather(*asking)
