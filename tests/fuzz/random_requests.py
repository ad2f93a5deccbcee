"""Random requests of three peers, made so that they often meet on the same ports."""

import base64
import random
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    SAME_PORT,
    Claim,
    Endpoint,
    Remote,
    TransportProtocol,
)
from igd.core.peers import Address
from igd.core.request import (
    ENDLESS,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    GetMappingAt,
    GetPeerState,
    GetPinholeTimeout,
    GetPinholeTraffic,
    ListMappings,
    MapPort,
    RenewPinhole,
    Request,
    UnmapInternal,
    UnmapPinhole,
    UnmapPorts,
)
from tests.gateway_harness import peer

C1_KEY, C2_KEY, C3_KEY, KEEPER_KEY = (
    base64.b64encode(bytes(31) + octet).decode() for octet in (b"1", b"2", b"3", b"4")
)

PEERS = (
    peer(C1_KEY, "10.100.0.2/32", "192.168.7.0/24", "fd77::2/128"),
    peer(C2_KEY, "10.100.0.3/32", "10.100.0.4/32"),
    peer(C3_KEY, "fd77::3/128", "10.100.0.5/32"),
)

ADDRESSES = [
    ip_address(text)
    for text in (
        *("10.100.0.2", "10.100.0.3", "10.100.0.4", "10.100.0.5", "192.168.7.20", "fd77::2", "fd77::3"),
        *("10.100.0.1", "10.100.255.255", "198.51.100.1", "2001:db8::1"),
    )
]
PORTS = (8000, 8001, 8002, 8003, 8004, 8005, 9000, 80, 65535)
REMOTES = tuple(Remote(IPv4Network(text), port) for text, port in (("198.51.100.7/32", 0), ("203.0.113.0/24", 443)))
REMOTES6 = tuple(Remote(IPv6Network(text), port) for text, port in (("2001:db8::7/128", 0), ("2001:db8:1::/48", 443)))
CLAIMS = (
    *(BY_EXTERNAL_PORT, BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT),
    *(Claim(by_internal=True, nonce=letter * 12) for letter in (b"a", b"b")),
)


def random_request(rng: random.Random, unique_ids: Sequence[int] = ()) -> tuple[Address, Request]:
    """Return a random request and who sends it: mostly for an address of its own. `unique_ids` are in use."""
    source = rng.choice([address for each in PEERS for address in each.addresses])
    internal = source if rng.random() < 0.8 else rng.choice(ADDRESSES)
    protocol, claim, port = rng.choice(list(TransportProtocol)), rng.choice(CLAIMS), rng.choice(PORTS)
    kind = rng.random()
    if kind < 0.65:
        return source, _map(rng, internal, protocol, claim)
    if kind < 0.75:
        return source, _of_pinhole(rng, rng.choice([*unique_ids, 0, 1, 65535]))
    if kind < 0.85:
        some = rng.choice([protocol, None])
        return source, UnmapInternal(some, internal, rng.choice([port, None]), claim, rng.choice([1, 1, 3]))
    if kind < 0.95:
        ports = range(port, min(port + rng.choice([1, 1, 3, 60000]), 65536))
        return source, UnmapPorts(protocol, ports, rng.choice([None, None, REMOTES[:1]]))
    others = (
        GetMapping(protocol, port, rng.choice([(), REMOTES])),
        ListMappings(),
        GetExternalAddress(),
        GetLinkStatus(),
        GetMappingAt(rng.randrange(3)),
        GetPinholeTimeout(protocol),
        GetPeerState(),
    )
    return source, rng.choice(others)


def _of_pinhole(rng: random.Random, unique_id: int) -> Request:
    lifetime = rng.choice([1, 60, 300, 86400])
    made: list[Request] = [RenewPinhole(unique_id, lifetime), UnmapPinhole(unique_id), GetPinholeTraffic(unique_id)]
    return rng.choice(made)


def _map(rng: random.Random, internal: Address, protocol: TransportProtocol, claim: Claim) -> MapPort:
    same_port = claim == BY_INTERNAL_ENDPOINT and rng.random() < 0.3
    internal_port = 0 if same_port and internal.version == 4 else rng.choice(PORTS)
    external_port = rng.choice([*PORTS, None, *([internal_port] * 10 if internal.version == 6 else ())])
    remotes = REMOTES if internal.version == 4 else REMOTES6
    admitted = rng.choice([(), (), remotes[:1], remotes])
    return MapPort(
        protocol=protocol,
        internal=Endpoint(internal, internal_port),
        external_port=external_port,
        lifetime=rng.choice([ENDLESS, 1, 60, 300, 2**32 - 1]),
        description=SAME_PORT if same_port else rng.choice(["", "web", "\U0001f600" * 256, "a\nb\0"]),
        any_port=same_port or external_port is None or rng.random() < 0.5,
        remotes=admitted if claim.by_internal or internal.version == 4 else admitted[-1:],  # UPnP has one
        claim=claim,
        adds_remotes=rng.random() < 0.5,
        count=1 if same_port else rng.choice([1, 1, 1, 2, 3]),  # NAT-PMP has no port sets
        keeps_parity=not same_port and rng.random() < 0.2,
    )
