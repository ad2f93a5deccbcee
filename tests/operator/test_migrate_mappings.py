"""What igd takes over of miniupnpd's mappings."""

import sys
from ipaddress import IPv4Address, ip_interface, ip_network

import pytest

from igd.config import Config, LeaseSettings, LimitSettings
from igd.core.mapping import Claim, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.core.peers import Peer, Peers
from igd.operator.migrate.mappings import Entries, Former, entries, read_lease_file

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
NOW = 1_700_000_000.0
BOOTTIME = 1000.0
INTERNAL = Endpoint(IPv4Address("10.100.0.2"), 8043)


def former(**fields: object) -> Former:
    """Return a mapping of TCP 8043 with these fields."""
    values: dict[str, object] = {"protocol": TransportProtocol.TCP, "external_port": 8043, "internal": INTERNAL}
    return Former(**{**values, "description": "web", "seconds": 60, **fields})  # type: ignore[arg-type] # by each test


def taken(*mappings: Former, config: Config | None = None, held: tuple[Entry, ...] = ()) -> Entries:
    """Return what is taken over for one peer, 10.100.0.2, which also routes 192.168.1.0/24."""
    networks = (ip_network("10.100.0.2/32"), ip_network("192.168.1.0/24"))
    peers = Peers([Peer(KEY, networks)], [ip_interface("10.100.0.1/24")])
    return entries(mappings, peers, (config or Config()).policies, held, BOOTTIME)


def test_the_lease_file_has_what_is_left_of_each_lease() -> None:
    lines = [
        f"TCP:8043:10.100.0.2:80:{NOW + 60:.0f}:a: b:c &amp; &lt;d&gt; ",
        "UDP:8044:10.100.0.2:8044:0:",
        f"UDP:8045:10.100.0.2:8045:{NOW - 1:.0f}:ended",
    ]
    found = read_lease_file("\n".join(lines), NOW)
    assert found.ignored == []
    first, second = found.mappings
    assert (str(first), first.seconds, first.description) == ("TCP 8043 -> 10.100.0.2:80", 60, "a: b:c & <d>")
    assert (str(second), second.seconds, second.description) == ("UDP 8044 -> 10.100.0.2:8044", None, "")


def test_the_last_line_of_a_port_counts_also_if_its_lease_has_ended() -> None:
    text = f"TCP:1:10.0.0.1:1:0:x\nTCP:1:10.0.0.1:1:{NOW - 5:.0f}:x\nTCP:2:10.0.0.1:2:0:x\nTCP:2:10.0.0.1:3:0:x\n"
    assert [str(each) for each in read_lease_file(text, NOW).mappings] == ["TCP 2 -> 10.0.0.1:3"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "TCP",
        "SCTP:1:10.0.0.1:1:0:x",
        "TCP:0:10.0.0.1:1:0:x",
        "TCP:1:::1:1:0:x",
        "TCP:1:10.0.0.1:99999:0:x",
        "\0:::::",
    ],
)
def test_a_line_that_is_no_lease_is_ignored(line: str) -> None:
    found = read_lease_file(f"{line}\nTCP:1:10.0.0.1:1:0:x\n", NOW)
    assert (len(found.mappings), found.ignored) == (1, [line] if line else [])


def test_a_mapping_keeps_its_lease_and_description() -> None:
    ((entry,), notes) = taken(former(remote=IPv4Address("198.51.100.7")))
    assert notes == []
    assert entry.lease == Lease(BOOTTIME + 60)
    assert isinstance(entry.mapping, PortMapping)
    assert (entry.mapping.peer, entry.mapping.description, entry.mapping.internal) == (KEY, "web", INTERNAL)
    assert list(map(str, entry.mapping.remotes)) == ["198.51.100.7/32"]


def test_a_mapping_without_end_is_endless() -> None:
    ((entry,), _) = taken(former(seconds=None))
    assert entry.lease == Lease(BOOTTIME + 604800, endless=True)


@pytest.mark.parametrize(
    ("description", "claim"),
    [
        ("web", Claim(by_internal=False)),
        ("NAT-PMP 8043 tcp", Claim(by_internal=True)),
        ("NAT-PMP 8043 tcp and more", Claim(by_internal=False)),
        ("PCP MAP 000000010000000200000003", None),
    ],
)
def test_the_client_of_each_protocol_may_renew_its_mapping(description: str, claim: Claim | None) -> None:
    nonce = b"".join(number.to_bytes(4, sys.byteorder) for number in (1, 2, 3))
    ((entry,), _) = taken(former(description=description))
    assert entry.mapping.claim == (claim or Claim(by_internal=True, nonce=nonce))


_HELD = Entry(
    PortMapping(TransportProtocol.TCP, 8043, Endpoint(IPv4Address("10.100.0.2"), 1), KEY), Lease(BOOTTIME + 1)
)


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        (former(internal=Endpoint(IPv4Address("10.100.0.9"), 1)), "no peer owns the address"),
        (former(internal=Endpoint(IPv4Address("10.100.0.1"), 1)), "no peer owns the address"),
        (former(external_port=80), "the rules do not allow it"),
    ],
)
def test_what_igd_would_not_resume_is_named(mapping: Former, reason: str) -> None:
    assert taken(mapping) == ([], [f"{mapping}: not taken over: {reason}"])


def test_a_port_that_igd_has_mapped_elsewhere_stays_so() -> None:
    found = taken(former(), held=(_HELD,))
    assert found == ([], ["TCP 8043 -> 10.100.0.2:8043: not taken over: igd has TCP 8043 -> 10.100.0.2:1"])


def test_a_host_behind_a_peer_keeps_its_mapping() -> None:
    ((entry,), _) = taken(former(internal=Endpoint(IPv4Address("192.168.1.5"), 8043)))
    assert entry.mapping.peer == KEY


def test_a_peer_with_more_mappings_than_igd_grants_keeps_them_and_is_named() -> None:
    config = Config(limits=LimitSettings(mappings_per_peer=2))
    mappings = [former(external_port=port) for port in (8043, 8044, 8045)]
    (entries_, notes) = taken(*mappings, config=config)
    assert len(entries_) == 3
    assert notes == ["peer xTIBA5rb has 3 mappings, and gets new ones up to 2 (mappings_per_peer)"]
    assert taken(former(), config=config).notes == []


def test_a_lease_above_the_longest_is_reported() -> None:
    config = Config(leases=LeaseSettings(max=3600, default=3600))
    (entries_, notes) = taken(former(seconds=7200), config=config)
    assert len(entries_) == 1
    assert notes == ["TCP 8043 -> 10.100.0.2:8043: its lease of 7200 s becomes 3600 s, max in [leases]"]
