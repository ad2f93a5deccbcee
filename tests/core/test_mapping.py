"""The nouns hold together."""

from ipaddress import IPv4Address

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol

MAPPING = PortMapping(TransportProtocol.UDP, 51413, Endpoint(IPv4Address("10.100.0.2"), 6881), "peer", "Transmission")
ENTRY = Entry(MAPPING, Lease(60.0))


def test_protocols_have_their_iana_numbers() -> None:
    assert {protocol.name: protocol.value for protocol in TransportProtocol} == {"TCP": 6, "UDP": 17}


def test_a_mapping_reads_as_an_operator_would_write_it_and_leaves_the_description_out() -> None:
    assert str(MAPPING) == "UDP 51413 -> 10.100.0.2:6881"


def test_protocol_and_external_port_make_the_key() -> None:
    assert MAPPING.key == (TransportProtocol.UDP, 51413)


@pytest.mark.parametrize(("now", "left"), [(0.0, 60), (59.4, 1), (59.6, 0), (60.0, 0), (1e9, 0)])
def test_what_remains_of_a_lease_is_never_negative(now: float, left: int) -> None:
    assert Lease(60.0).remaining(now) == left


@pytest.mark.parametrize(
    ("change", "undone"),
    [
        (Change(None, ENTRY), Change(ENTRY, None)),
        (Change(ENTRY, None), Change(None, ENTRY)),
        (Change(ENTRY, Entry(MAPPING, Lease(90.0))), Change(Entry(MAPPING, Lease(90.0)), ENTRY)),
    ],
)
def test_a_change_undone_has_its_sides_exchanged(change: Change, undone: Change) -> None:
    assert change.undone() == undone
