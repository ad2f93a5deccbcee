"""A peer is removed, or an address is taken from it or routed elsewhere: mappings, rules and live flows end."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from igd.core.mapping import TransportProtocol
from igd.firewall.site import MARK
from tests.e2e import control
from tests.e2e.pcp_client import C1_IPV6, GATEWAY6, granted, map_port
from tests.e2e.serving import C1, C2, PUBLIC, REMOTE, mappings, rules, serving
from tests.lab import Answer, Host, Lab, answering, ask, call, put, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol as Word
from tests.lab.wireguard import Iptables

pytestmark = requires_root

C2_IPV6 = "2001:470:100::3"
REMOTE_IPV6 = "2001:470:60::2"
PORT, PORT6 = 8043, 8046  # a socat that listens for IPv6 has the port of both versions
PROTOCOLS: dict[TransportProtocol, Word] = {TransportProtocol.TCP: "tcp", TransportProtocol.UDP: "udp"}
BACKENDS = pytest.mark.parametrize(("backend", "iptables"), [("nftables", "nft"), ("iptables", "legacy")])


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("nft", "conntrack", "iptables-legacy-save")


@contextmanager
def _talking(backend: str, iptables: Iptables) -> Iterator[Lab]:
    """A lab whose FORWARD drops, with flows through c1's mappings and pinholes, TCP and UDP each."""
    config = f'[firewall]\nbackend = "{backend}"\n'
    with Lab(forward="drop", iptables=iptables) as lab, serving(lab, config), ExitStack() as talks:
        for protocol, word in PROTOCOLS.items():
            for inside, port, outside, remote in (
                (C1, PORT, PUBLIC, REMOTE),
                (C1_IPV6, PORT6, C1_IPV6, REMOTE_IPV6),
            ):
                talks.enter_context(answering(lab.c1, port, word, ipv6=":" in inside))
                granted(map_port(lab.c1, port, protocol, source=inside, external_port=port))
                talk = talks.enter_context(call(lab.net, outside, port, word))
                assert put(talk) == Answer(remote, "who am I?")
        assert len(_flows(lab, "ipv4")) == len(_flows(lab, "ipv6")) == 2
        yield lab


def _key(client: Host) -> str:
    return client.run("wg", "show", "wg0", "public-key").stdout.strip()


def _flows(lab: Lab, family: str) -> list[str]:
    """Return the mapped flows of a family."""
    mark = f"{MARK:#x}/{MARK:#x}"
    return lab.srv.run("conntrack", "-L", "-f", family, "--mark", mark).stdout.splitlines()


def _await_end(lab: Lab, *, left: str) -> None:
    """Wait until only the mappings to the address `left` (or "") exist; assert the same of rules and flows."""
    until(lambda: {mapping["internal_address"] for mapping in mappings(lab)} <= {left})
    in_kernel = rules(lab) + lab.srv.run("ip6tables-legacy-save").stdout
    for address, port, family in ((C1, PORT, "ipv4"), (C1_IPV6, PORT6, "ipv6")):
        assert bool(re.search(rf"\b{port}\b", in_kernel)) is (address == left)
        assert len(_flows(lab, family)) == (2 if address == left else 0)


@BACKENDS
def test_a_removed_peer(backend: str, iptables: Iptables) -> None:
    with _talking(backend, iptables) as lab:
        _wg_set(lab, lab.c1, "remove")
        _await_end(lab, left="")


@BACKENDS
@pytest.mark.parametrize(("kept", "lost"), [(C1, C1_IPV6), (C1_IPV6, C1)])
def test_an_address_that_is_taken_from_its_peer(backend: str, iptables: Iptables, kept: str, lost: str) -> None:
    with _talking(backend, iptables) as lab:
        _wg_set(lab, lab.c1, "allowed-ips", kept)
        _await_end(lab, left=kept)
        _wg_set(lab, lab.c1, "allowed-ips", f"{kept},{lost}")
        protocol = TransportProtocol.TCP
        granted(map_port(lab.c1, PORT if lost == C1 else PORT6, protocol, source=lost))


@BACKENDS
def test_an_address_that_moves_to_another_peer(backend: str, iptables: Iptables) -> None:
    """The new owner is served once the move was noticed."""
    with _talking(backend, iptables) as lab:
        for word, addresses in (("add", (f"{C1}/32", f"{C1_IPV6}/128")), ("del", (f"{C2}/32", f"{C2_IPV6}/128"))):
            for address in addresses:
                lab.c2.run("ip", "address", word, address, "dev", "wg0")
        _wg_set(lab, lab.c2, "allowed-ips", f"{C2},{C2_IPV6},{C1},{C1_IPV6}")
        _await_end(lab, left="")
        for protocol, word in PROTOCOLS.items():
            mapped = granted(map_port(lab.c2, PORT, protocol, source=C1, external_port=PORT))
            granted(map_port(lab.c2, PORT6, protocol, source=C1_IPV6))
            with answering(lab.c2, PORT, word), answering(lab.c2, PORT6, word, ipv6=True):
                assert ask(lab.net, PUBLIC, mapped.external_port, word).source == REMOTE
                assert ask(lab.net, C1_IPV6, PORT6, word).source == REMOTE_IPV6
        assert {mapping["peer"] for mapping in mappings(lab)} == {_key(lab.c2)}


MOVES = {
    "through another interface": "route add {} dev ens0",
    "by a rule": "rule add to {} lookup 100",
    "an address of the server": "address add {} dev lo",
    "an address of the tunnel": "address add {} dev wg0",
    "blackhole": "route add blackhole {}",
}


@BACKENDS
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_an_address_that_is_routed_elsewhere(backend: str, iptables: Iptables, move: str) -> None:
    with _talking(backend, iptables) as lab:
        lab.srv.run("ip", "-4", "route", "add", "default", "via", REMOTE, "table", "100")
        lab.srv.run("ip", "-6", "route", "add", "default", "via", REMOTE_IPV6, "table", "100")
        lab.srv.run("ip", "-4", *move.format(f"{C1}/32").split())
        _await_end(lab, left=C1_IPV6)
        lab.srv.run("ip", "-6", *move.format(f"{C1_IPV6}/128").split())
        _await_end(lab, left="")


def test_a_tunnel_that_goes_down_and_up_keeps_its_mappings() -> None:
    """The kernel keeps its IPv4 addresses, and with them the route to the peers, but no IPv6 addresses.

    c2's address is routed elsewhere after that: when its mapping is gone, the routes were looked at.
    """
    with _talking("nftables", "nft") as lab:
        assert control.add(lab.c2, {"InternalClient": C2}) == 200
        lab.srv.run("ip", "link", "set", "wg0", "down")
        lab.srv.run("ip", "link", "set", "wg0", "up")
        lab.srv.run("ip", "route", "add", f"{C2}/32", "dev", "ens0")
        until(lambda: len(mappings(lab)) == 4)
        lab.srv.run("ip", "address", "add", f"{GATEWAY6}/64", "dev", "wg0")
        lab.srv.run("ip", "route", "add", f"{C1_IPV6}/128", "dev", "wg0")
        assert ask(lab.net, PUBLIC, PORT).source == REMOTE
        assert ask(lab.net, C1_IPV6, PORT6).source == REMOTE_IPV6


@BACKENDS
def test_a_peer_that_is_removed_and_added_at_once_keeps_its_mappings(backend: str, iptables: Iptables) -> None:
    """c2 is removed by the same command: when its mapping is gone, the peers were read."""
    with _talking(backend, iptables) as lab:
        assert control.add(lab.c2, {"InternalClient": C2}) == 200
        c1, c2 = _key(lab.c1), _key(lab.c2)
        lab.srv.run(
            *f"wg set wg0 peer {c1} remove peer {c1} allowed-ips {C1},{C1_IPV6} peer {c2} remove".split(),
        )
        until(lambda: c2 not in {mapping["peer"] for mapping in mappings(lab)})
        assert len(mappings(lab)) == 4
        assert len(_flows(lab, "ipv4")) == len(_flows(lab, "ipv6")) == 2


def _wg_set(lab: Lab, client: Host, *words: str) -> None:
    lab.srv.run("wg", "set", "wg0", "peer", _key(client), *words)
