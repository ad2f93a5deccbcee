"""Each peer has a policy of its own, which the gateway and maintenance apply."""

import logging
from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    Claim,
    ControlProtocol,
    Endpoint,
    Entry,
    Lease,
    PortMapping,
    TransportProtocol,
)
from igd.core.peers import Peer
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.request import (
    ENDLESS,
    ExternalAddress,
    GetExternalAddress,
    ListMappings,
    Mapped,
    Refusal,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
    UnmapPorts,
)
from igd.core.reserved_ports import Reservation
from tests.gateway_harness import C1, C1_HOST, C2, EXTERNAL, PEERS, GatewayHarness, entry, map_port

TCP = TransportProtocol.TCP
OTHER_OF_C1 = IPv4Address("10.7.0.2")
NAMES = {"c1": "laptop", "c2": "phone"}


def harness(own: Policy, others: Policy | None = None) -> GatewayHarness:
    """Return a gateway with this policy for c1, and for all others the default one, or `others`."""
    return GatewayHarness(Policies(others or Policy(), {"c1": own}, NAMES))


async def ask_by(
    protocol: ControlProtocol, served: GatewayHarness, request: Request, source: IPv4Address = C1
) -> Reply:
    admitted = await served.admit(source)
    assert isinstance(admitted, Peer)
    return await served.gateway.ask(admitted, source, request, protocol)


@pytest.mark.parametrize(
    "request_",
    [
        map_port(),
        UnmapPorts(TCP, range(8043, 8044)),
        UnmapInternal(TCP, C1, 8043, BY_INTERNAL_ENDPOINT),
        GetExternalAddress(),
        ListMappings(),
    ],
    ids=lambda request: type(request).__name__,
)
@pytest.mark.parametrize("protocol", ControlProtocol)
async def test_a_protocol_that_a_peer_may_not_use_is_refused_whatever_it_requests(
    protocol: ControlProtocol, request_: Request
) -> None:
    served = await harness(Policy(protocols=frozenset(ControlProtocol) - {protocol})).start()
    assert await ask_by(protocol, served, request_) is Refusal.PROTOCOL_FORBIDDEN
    assert served.gateway.counters[type(request_).__name__, "PROTOCOL_FORBIDDEN"] == 1
    assert await ask_by(protocol, served, request_, C2) is not Refusal.PROTOCOL_FORBIDDEN
    for other in set(ControlProtocol) - {protocol}:
        assert await ask_by(other, served, request_) is not Refusal.PROTOCOL_FORBIDDEN


async def test_the_web_page_is_of_no_protocol() -> None:
    served = await harness(Policy(protocols=frozenset())).start()
    assert await served.ask(GetExternalAddress()) == ExternalAddress(EXTERNAL)


async def test_rules_quota_and_leases_are_those_of_the_peer() -> None:
    narrow = Policy(
        (PortRule.parse("allow 3000-3001 0.0.0.0/0 0-65535"),),
        min_lifetime=300,
        max_lifetime=3600,
        default_lifetime=1800,
        max_mappings=1,
    )
    served = await harness(narrow).start()
    assert await served.ask(map_port(8043)) is Refusal.FORBIDDEN
    short = await served.ask(map_port(3000, lifetime=1))
    assert isinstance(short, Mapped)
    assert short.lifetime == 300, "the client learns of the longer lease"
    assert await served.ask(map_port(3001)) is Refusal.QUOTA
    long = await served.ask(map_port(3000, lifetime=100000))
    endless = await served.ask(map_port(3000, lifetime=ENDLESS))
    assert [reply.lifetime for reply in (long, endless) if isinstance(reply, Mapped)] == [3600, 1800]
    for port in (3000, 3001, 8043):
        granted = await served.ask(map_port(port + 10000, C2, lifetime=1), C2)
        assert isinstance(granted, Mapped)
        assert granted.lifetime == 1


async def test_an_endless_lease_is_renewed_for_as_long_as_that_peers() -> None:
    served = await harness(Policy(default_lifetime=1800), Policy(default_lifetime=3600)).start()
    await served.ask(map_port(8043, lifetime=ENDLESS))
    await served.ask(map_port(8044, C2, lifetime=ENDLESS), C2)
    served.clock.now += 3600
    served.peers.shaken = {"c1": served.clock.now - 100, "c2": served.clock.now - 100}
    await served.maintenance.wake()
    left = {key[1]: held.lease.expires - served.clock.now for key, held in served.table.items()}
    assert left == {8043: 1700, 8044: 3500}


# Hosts behind a peer


async def test_a_peer_that_may_not_map_for_routed_hosts_maps_to_its_own_addresses() -> None:
    own = peer_with("10.7.0.2/32", "192.168.7.0/24")
    served = harness(Policy(routed_hosts=False))
    served.peers.all = (own, PEERS[1])
    await served.start()
    assert await served.ask(map_port(internal=C1_HOST)) is Refusal.FORBIDDEN
    assert await served.ask(map_port(internal=C1_HOST), C1_HOST) is Refusal.FORBIDDEN, "whoever sends"
    assert isinstance(await served.ask(map_port(internal=OTHER_OF_C1)), Mapped)
    assert isinstance(await served.ask(map_port(8044), OTHER_OF_C1), Mapped)


def peer_with(*networks: str) -> Peer:
    return Peer("c1", tuple(map(ip_network, ("10.100.0.2/32", *networks))))


async def test_a_peer_that_may_not_map_for_routed_hosts_can_still_close_their_ports() -> None:
    served = await harness(Policy(routed_hosts=False)).start()
    held = entry(8043, internal=C1_HOST)
    await served.ledger.take_over([held], [], served.ledger.addresses)
    assert await served.ask(UnmapPorts(TCP, range(8043, 8044))) == Unmapped((held.mapping,))


# Reserved ports


async def test_a_reserved_port_is_for_its_owner_by_every_kind_of_request() -> None:
    served = await harness(Policy((), reserved=(Reservation.parse("tcp 25565"),))).start()
    for request in (
        map_port(25565, C2),
        replace(map_port(25565, C2), claim=BY_INTERNAL_ENDPOINT),
        replace(map_port(25565, C2), claim=Claim(by_internal=True, nonce=b"n" * 12)),
    ):
        assert await served.ask(request, C2) is Refusal.CONFLICT
    another = await served.ask(map_port(25565, C2, any_port=True), C2)
    assert isinstance(another, Mapped)
    assert another.mapping.external_port != 25565
    assert isinstance(await served.ask(map_port(25565)), Mapped)


async def test_a_reserved_port_that_the_server_uses_is_taken() -> None:
    served = await harness(Policy(reserved=(Reservation.parse("tcp 8043"),))).start()
    served.servers_own.add((TCP, 8043))
    assert await served.ask(map_port(8043)) is Refusal.CONFLICT


# Stored mappings


def stored(port: int, internal: IPv4Address, claim: Claim = BY_EXTERNAL_PORT, lifetime: float = 600) -> Entry:
    peer = "c2" if internal == C2 else "c1"
    return Entry(PortMapping(TCP, port, Endpoint(internal, 8080), peer, claim=claim), Lease(1000.0 + lifetime))


PCP = Claim(by_internal=True, nonce=b"n" * 12)


@pytest.mark.parametrize(
    ("policy", "dropped", "reason"),
    [
        (Policy(reserved=(Reservation.parse("tcp 5002"),)), {5002}, "the port is reserved for another peer"),
        (Policy(rules=()), {5001, 5003, 5004, 5005}, "the rules do not allow it"),
        (Policy(rules=(), reserved=(Reservation.parse("tcp 5001-5004"),)), {5002, 5005}, "the rules do not allow it"),
        (Policy(routed_hosts=False), {5003}, "the peer may not map to hosts behind it"),
        (
            Policy(protocols=frozenset({ControlProtocol.PCP})),
            {5001, 5003, 5004},
            "the peer may no longer use the protocol",
        ),
        (Policy(protocols=frozenset({ControlProtocol.UPNP})), {5004, 5005}, "the peer may no longer use the protocol"),
    ],
)
async def test_stored_mappings_that_the_peers_policy_no_longer_allows_are_closed_at_the_start(
    policy: Policy, dropped: set[int], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    entries = [
        stored(5001, C1),
        stored(5002, C2),
        stored(5003, C1_HOST),
        stored(5004, C1, BY_INTERNAL_ENDPOINT),
        stored(5005, C1, PCP),
    ]
    served = await harness(policy).start(*entries)
    assert {key[1] for key in served.table} == {5001, 5002, 5003, 5004, 5005} - dropped
    assert served.all_equal()
    assert f"not resumed, {reason}: TCP " in caplog.text


async def test_a_stored_lease_is_cut_to_the_longest_of_its_peer() -> None:
    served = await harness(Policy(max_lifetime=100)).start(stored(5001, C1), stored(5002, C2))
    assert {key[1]: held.lease.expires for key, held in served.table.items()} == {5001: 1100.0, 5002: 1600.0}


# Names


async def test_the_log_has_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    served = harness(Policy())
    served.peers.all = tuple(replace(peer, name=NAMES[peer.public_key]) for peer in PEERS)
    await served.start(stored(5001, C2, lifetime=-1))
    await served.ask(map_port(8043, lifetime=60))
    served.clock.now += 61
    await served.maintenance.wake()
    assert "10.100.0.2 (laptop) requests map TCP 8043" in caplog.text
    assert "closed, lease expired: TCP 8043 -> 10.100.0.2:8043 (laptop)" in caplog.text
    assert "not resumed, the lease has expired: TCP 5001 -> 10.100.0.3:8080 (phone)" in caplog.text
