"""What is mapped goes into the tunnel or nowhere, wherever the address is now; what is not ours passes as before."""

import contextlib
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from igd.core.mapping import Change
from igd.firewall.nft.internal_addresses import RELEASE_SECONDS
from igd.firewall.nft.nftables import Nftables
from tests.firewall.calling import TRANSPORTS, Transport, call_from_remote, caller, listener, swallows
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, elements, listing
from tests.firewall.three_hosts import EXTERNAL, PEER, REMOTE, ThreeHosts, joined, new_namespace, run
from tests.lab.swallowed import ALL_PACKETS, sends_nothing

pytestmark = pytest.mark.root

PORT, INSIDE, OTHER = 8043, 80, 9000
SERVER, AWAY = "10.100.0.1", IPv4Address("10.100.0.77")

TO_SERVER = {
    "on the loopback interface": f"address add {PEER}/32 dev lo",
    "on the external interface": f"address add {PEER}/24 dev ext0",
    "on the tunnel's interface": f"address add {PEER}/32 dev wg0",
    "as a local route": f"route add local {PEER} dev lo",
    "as a broadcast address": f"route add broadcast {PEER} dev wg0 table local",
}
PAST_TUNNEL = {
    "by a route": f"route add {PEER} dev lan0",
    "by a rule for forwarded packets": f"rule add iif ext0 to {PEER} lookup 100",
    "back to the internet": f"route add {PEER} via {REMOTE}",
}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    found: Transport = request.param
    return found


@pytest.fixture
def server(hosts: ThreeHosts, gateway: Nftables, transport: Transport) -> ThreeHosts:
    """Return the hosts, with a mapping to the peer, and a network behind another interface of the server."""
    for command in (
        "link add lan0 type veth peer name lan0-end",
        "link set lan0-end up",
        "link set lan0 up",
        f"neighbour add {PEER} lladdr 02:00:00:00:00:03 dev lan0 nud permanent",
        f"route add {PEER} dev lan0 table 100",
    ):
        run("ip", *command.split())
    gateway.replace_all([EXTERNAL], [entry(PORT, INSIDE, transport)], now=0)
    return hosts


@contextlib.contextmanager
def private_service(hosts: ThreeHosts, transport: Transport) -> Iterator[socket.socket]:
    """A service of the server itself, at all of its addresses; nothing may come to it in the block."""
    with listener(hosts.server, transport, INSIDE) as service:
        yield service
        assert not select.select([service], [], [], 0)[0]


@pytest.mark.parametrize("move", TO_SERVER.values(), ids=TO_SERVER)
def test_new_flows_do_not_reach_the_server(server: ThreeHosts, transport: Transport, move: str) -> None:
    with private_service(server, transport):
        run("ip", *move.split())
        assert swallows(server.server, server.remote, transport, (str(EXTERNAL), PORT))


@pytest.mark.parametrize("move", PAST_TUNNEL.values(), ids=PAST_TUNNEL)
def test_new_flows_do_not_leave_by_another_interface(server: ThreeHosts, transport: Transport, move: str) -> None:
    run("ip", *move.split())
    assert swallows(server.server, server.remote, transport, (str(EXTERNAL), PORT))


def test_nothing_leaves_by_another_interface_while_the_tunnel_is_down(server: ThreeHosts, transport: Transport) -> None:
    run("ip", "route", "add", "default", "via", REMOTE)
    run("ip", "link", "set", "wg0", "down")
    assert swallows(server.server, server.remote, transport, (str(EXTERNAL), PORT))


@pytest.mark.parametrize("move", [*TO_SERVER.values(), *PAST_TUNNEL.values()], ids=[*TO_SERVER, *PAST_TUNNEL])
def test_a_flow_of_before_does_not_follow_the_address(server: ThreeHosts, transport: Transport, move: str) -> None:
    with contextlib.ExitStack() as stack:
        remote = stack.enter_context(_talk(server, transport, stack))
        stack.enter_context(private_service(server, transport))
        run("ip", *move.split())
        assert _is_swallowed(server, remote)


def test_a_flow_whose_mapping_has_just_ended_does_not_either(
    server: ThreeHosts, gateway: Nftables, transport: Transport
) -> None:
    """Flows are ended after their mapping, which may take a moment; a repair of the table may come between."""
    with contextlib.ExitStack() as stack:
        remote = stack.enter_context(_talk(server, transport, stack))
        stack.enter_context(private_service(server, transport))
        run("ip", "address", "add", f"{PEER}/32", "dev", "lo")
        gateway.apply([Change(entry(PORT, INSIDE, transport), None)], now=0)
        assert _is_swallowed(server, remote)
        gateway.replace_all([EXTERNAL], [], now=0)
        assert _is_swallowed(server, remote)


def test_an_error_about_an_answer_reaches_the_peer(hosts: ThreeHosts, gateway: Nftables) -> None:
    """It goes in the flow's original direction, and has another protocol."""
    gateway.replace_all([EXTERNAL], [entry(PORT, INSIDE)], now=0)
    with listener(hosts.peer, "udp", INSIDE) as peer:
        with caller(hosts.remote, "udp", PORT) as remote:
            remote.send(b"hello")
            peer.connect(peer.recvfrom(64)[1])
        peer.send(b"answer to a socket that was closed")
        with pytest.raises(ConnectionRefusedError):
            peer.recv(64)


@pytest.mark.parametrize("to", [SERVER, REMOTE])
def test_the_operators_own_redirections_pass_whatever_their_mark(
    server: ThreeHosts, transport: Transport, to: str
) -> None:
    run("nft", "-f", "-", text=_redirection(to))
    where = server.server if to == SERVER else server.remote
    with listener(where, transport, INSIDE, to) as service:
        assert call_from_remote(server, transport, OTHER, service)


def _redirection(to: str) -> str:
    return f"""
    table ip operator {{
        chain redirections {{
            type nat hook prerouting priority dstnat;
            ip daddr {EXTERNAL} meta l4proto {{ tcp, udp }} th dport {OTHER} \
ct mark set ct mark | 0x10000000 dnat to {to}:{INSIDE}
        }}
        chain sources {{
            type nat hook postrouting priority srcnat;
            oifname ext0 masquerade
        }}
    }}
    """


def test_mapped_flows_of_another_instance_pass(server: ThreeHosts, transport: Transport) -> None:
    """Here it serves wg1, and this one's flows leave through wg0; both have the same mark and external address."""
    with contextlib.closing(Nftables(replace(SITE, wireguard="wg1"))) as other:
        other.replace_all([EXTERNAL], [entry(PORT + 1, peer=AWAY)], now=0)
        with listener(server.peer, transport, INSIDE) as peer:
            assert call_from_remote(server, transport, PORT, peer) == REMOTE


def _talk(hosts: ThreeHosts, transport: Transport, stack: contextlib.ExitStack) -> socket.socket:
    """Return the remote's socket of a flow through the mapping that the peer has answered."""
    peer = stack.enter_context(listener(hosts.peer, transport, INSIDE))
    remote = caller(hosts.remote, transport, PORT)
    remote.send(b"hello")
    if transport == "tcp":
        peer = stack.enter_context(peer.accept()[0])
        peer.send(b"answer")
    else:
        _, source = peer.recvfrom(64)
        peer.sendto(b"answer", source)
    assert remote.recv(64) == b"answer"
    return remote


def _is_swallowed(hosts: ThreeHosts, remote: socket.socket) -> bool:
    with joined(hosts.server):
        watching = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ALL_PACKETS)
    with watching:
        remote.send(b"more")
        return sends_nothing(watching, remote.getsockname()[1])


# The set of internal addresses


def _internal() -> dict[str, int]:
    """Return the addresses in the set, with the seconds that they stay, 0 for always."""
    found = elements("internal", "set")
    return {
        each["elem"]["val"] if isinstance(each, dict) else each: each["elem"]["timeout"]
        if isinstance(each, dict)
        else 0
        for each in found
    }


def test_an_address_is_held_from_its_first_mapping_until_a_while_after_its_last(backend: Nftables) -> None:
    first, second, away = entry(1), entry(2, protocol="tcp"), entry(3, peer=AWAY)
    held, released = {str(PEER): 0}, {str(PEER): int(RELEASE_SECONDS)}
    backend.replace_all([EXTERNAL], [], now=0)
    for before, after, expected in (
        (None, first, held),
        (None, second, held),
        (first, first, held),  # a renewal
        (None, away, {**held, str(AWAY): 0}),
        (first, None, {**held, str(AWAY): 0}),
        (second, None, {**released, str(AWAY): 0}),
        (None, second, {**held, str(AWAY): 0}),  # anew, within that while
        (
            second,
            replace(second, mapping=replace(second.mapping, internal=away.mapping.internal)),
            {
                **released,
                str(AWAY): 0,
            },
        ),
    ):
        backend.apply([Change(before, after)], now=0)
        assert _internal() == expected


def test_an_address_can_be_mapped_again_long_after_it_was_released(backend: Nftables) -> None:
    backend.replace_all([EXTERNAL], [entry(1)], now=0)
    backend.apply([Change(entry(1), None)], now=0)
    run("nft", "delete", "element", "inet", "igd_wg0", "internal", f"{{ {PEER} }}")  # as the kernel does in the end
    backend.apply([Change(None, entry(1))], now=1)
    assert _internal() == {str(PEER): 0}


def test_an_address_is_held_for_a_while_after_a_repair_and_a_restart() -> None:
    with new_namespace():
        for step in ("start", "repair", "restart"):
            with contextlib.closing(Nftables(SITE)) as backend:
                if step == "start":
                    backend.replace_all([EXTERNAL], [entry(1)], now=0)
                backend.replace_all([EXTERNAL], [], now=0)
                assert _internal() == {str(PEER): int(RELEASE_SECONDS)}, step


def test_a_table_of_an_older_version_is_replaced(backend: Nftables) -> None:
    backend.replace_all([EXTERNAL], [entry(1)], now=0)
    right = listing()
    run("nft", "delete chain inet igd_wg0 input; delete chain inet igd_wg0 forward; delete set inet igd_wg0 internal")
    backend.replace_all([EXTERNAL], [entry(1)], now=0)
    assert listing() == right


def test_another_programs_set_of_this_name_is_replaced(backend: Nftables) -> None:
    backend.replace_all([EXTERNAL], [entry(1)], now=0)
    right = listing()
    run("nft", "delete table inet igd_wg0; add table inet igd_wg0; add set inet igd_wg0 internal { type ipv6_addr; }")
    run("nft", "add element inet igd_wg0 internal { 2001:db8::1, * }")
    backend.replace_all([EXTERNAL], [entry(1)], now=0)
    assert listing() == right
