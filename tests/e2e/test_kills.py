"""kill -9 at random moments while all protocols are busy: no mapping is lost or doubled, and no flow is interrupted."""

import logging
import os
import random
import signal
import time
from contextlib import ExitStack

import pytest

from tests.e2e.killed_clients import (
    FILTERED,
    FILTERED_6,
    IN_SETS,
    SET,
    Client,
    Granted,
    Spot,
    by_natpmp,
    by_pcp,
    by_upnp,
)
from tests.e2e.live_flow import LiveFlow, Through
from tests.e2e.pcp_client import C1_IPV6
from tests.e2e.serving import C1, C2, listed, start, upnpc
from tests.firewall.test_kernel_properties import HELD, Backend
from tests.lab import Lab
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

log = logging.getLogger(__name__)

KILLS = int(os.environ.get("IGD_KILLS", "3"))
"""How often igd is killed with each backend; by hand 100."""

C2_IPV6 = "2001:470:100::3"
OLD = [Through("tcp", 8043), Through("udp", 8044)]
CONFIG = """
[limits]
requests_per_second = 100000

[firewall]
backend = "{}"
"""


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft", "iptables-legacy-save")


def clients(lab: Lab) -> list[Client]:
    """Return a client for each protocol on each peer."""
    made = []
    for number, (host, address, address6) in enumerate(((lab.c1, C1, C1_IPV6), (lab.c2, C2, C2_IPV6))):
        first = 3000 + 100 * number

        def spots(
            begin: int, count: int, address: str = address, protocols: tuple[str, ...] = ("TCP", "UDP")
        ) -> list[Spot]:
            return [Spot(protocols[port % len(protocols)], address, port) for port in range(begin, begin + count)]

        made += [
            Client(by_upnp(host), spots(first, 10)),
            Client(by_natpmp(host), spots(first + 20, 10)),
            Client(by_pcp(host, FILTERED), spots(first + 40, 8)),
            Client(by_pcp(host, IN_SETS), spots(first + 60, 3 * SET, protocols=("UDP",)), SET),
            Client(by_pcp(host, FILTERED_6), spots(first + 80, 8, address6)),
        ]
    return made


@pytest.mark.timeout(300 + 30 * KILLS)
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_kills_lose_double_and_interrupt_nothing(lab: Lab, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rng = random.Random(10)
    process = start(lab, CONFIG.format(backend))
    upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "604800")
    upnpc(lab.c1, "-a", C1, "8044", "8044", "udp", "604800")
    flows, peers = [LiveFlow(lab, through) for through in OLD], clients(lab)
    with ExitStack() as stack:
        for flow in flows:
            stack.enter_context(flow.running())
        for _ in range(KILLS):
            with ExitStack() as asking:
                for client in peers:
                    asking.enter_context(client.running(random.Random(rng.random())))
                time.sleep(rng.uniform(0.05, 1.0))  # any moment
                process.signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
            process = start(lab)
            _check(lab, backend, peers)
        assert not any(flow.failure for flow in flows), [flow.failure for flow in flows]
    assert process.stop() == 0
    assert all(flow.exchanges for flow in flows)
    responses = sum(client.responses for client in peers)
    gaps = [f"{flow.exchanges} exchanges, the longest in {flow.gap:.3f} s" for flow in flows]
    log.info("%d kills, %d responses; %s", KILLS, responses, "; ".join(gaps))


def _check(lab: Lab, backend: Backend, peers: list[Client]) -> None:
    """Compare what the clients were told with what igd and the kernel have."""
    found = listed(lab)
    table = {Spot(each["protocol"], each["internal_address"], each["internal_port"]): each for each in found.mappings}
    outside = [(spot.protocol, each["external_port"]) for spot, each in table.items() if ":" not in spot.address]
    assert len(set(outside)) == len(outside) == len([spot for spot in table if ":" not in spot.address])
    with lab.srv.entered():
        held = HELD[backend]()
    assert held == {
        (
            spot.protocol.lower(),
            each["external_port"],
            spot.address if ":" in spot.address else f"{spot.address}:{spot.port}",
        )
        for spot, each in table.items()
    }
    for client in peers:
        for spot in client.spots:
            mapping, known = table.pop(spot, None), client.known.get(spot)
            if spot in client.doubtful:
                client.known.pop(spot, None)
                if mapping:
                    client.known[spot] = Granted(
                        mapping["external_port"], mapping["lease"], found.begin, found.end, in_set=True
                    )
            elif known is None:
                assert mapping is None, f"{spot} was deleted"
            else:
                assert mapping is not None, f"{spot} was granted"
                assert mapping["external_port"] == known.external_port
                assert known.admits(mapping["lease"], found.begin, found.end), (mapping, known)
    assert sorted(spot.port for spot in table) == [through.port for through in OLD]
