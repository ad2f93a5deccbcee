"""Behind a firewall that drops, PCP opens a way to a peer's own IPv6 address, and closes it again."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from igd.core.mapping import TransportProtocol
from igd.firewall.site import MARK
from igd.host.clock import boottime
from igd.wire.pcp.opcodes import Map
from tests.e2e import stored
from tests.e2e.pcp_client import C1_IPV6, NONCE, granted, map_port
from tests.e2e.serving import mappings, rules, serving
from tests.lab import Answer, Host, Lab, answering, ask, call, put, swallows, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol as Word

pytestmark = requires_root

PROTOCOLS: dict[TransportProtocol, Word] = {TransportProtocol.TCP: "tcp", TransportProtocol.UDP: "udp"}
REACHED = Answer("2001:470:60::2", "who am I?")


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("nft", "conntrack", "iptables-legacy-save")


@contextmanager
def _programs(client: Host) -> Iterator[None]:
    with answering(client, 8043, "tcp", ipv6=True), answering(client, 8043, "udp", ipv6=True):
        yield


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_pinhole_is_open_until_it_is_deleted(backend: str) -> None:
    with Lab(forward="drop") as lab:
        before = rules(lab)
        with serving(lab, f'[firewall]\nbackend = "{backend}"\n'), _programs(lab.c1):
            for protocol, word in PROTOCOLS.items():
                assert swallows(lab.srv, lab.net, C1_IPV6, 8043, word)
                mapped = granted(map_port(lab.c1, 8043, protocol, source=C1_IPV6))
                assert mapped == Map(NONCE, protocol, 8043, 8043, ip_address(C1_IPV6))
                with call(lab.net, C1_IPV6, 8043, word) as remote:
                    assert put(remote) == REACHED
                    assert len(_marked_flows(lab)) == 1
                    granted(map_port(lab.c1, 8043, protocol, source=C1_IPV6, lifetime=0))
                    # Not that the talk is over: a late packet of c1's is one that goes out, as all of c1's may.
                    until(lambda: _marked_flows(lab) == [])
                assert swallows(lab.srv, lab.net, C1_IPV6, 8043, word)
        assert rules(lab) == before


def _marked_flows(lab: Lab) -> list[str]:
    """Return the IPv6 flows that bear our mark."""
    mark = f"{MARK:#x}/{MARK:#x}"
    return lab.srv.run("conntrack", "-L", "-f", "ipv6", "--mark", mark).stdout.splitlines()


def test_a_pinhole_ends_with_its_lease() -> None:
    """No lease of PCP is shorter than two minutes: what is left of them is shortened in the store."""
    with Lab(forward="drop") as lab, _programs(lab.c1):
        with serving(lab):
            granted(map_port(lab.c1, 8043, source=C1_IPV6))
            granted(map_port(lab.c1, 8043, TransportProtocol.UDP, source=C1_IPV6))
            for word in PROTOCOLS.values():
                assert ask(lab.net, C1_IPV6, 8043, word) == REACHED
        stored.change(lab, "UPDATE lease SET expires = ?", boottime() + 3)
        with serving(lab):
            until(lambda: not mappings(lab))
            for word in PROTOCOLS.values():
                assert swallows(lab.srv, lab.net, C1_IPV6, 8043, word)
