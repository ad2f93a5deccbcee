"""Keys, claims, leases and changes of mappings."""

from ipaddress import IPv4Address

import pytest

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    Change,
    Claim,
    Endpoint,
    Entry,
    Lease,
    PortMapping,
    TransportProtocol,
)

MAPPING = PortMapping(TransportProtocol.UDP, 51413, Endpoint(IPv4Address("10.100.0.2"), 6881), "peer", "Transmission")
ENTRY = Entry(MAPPING, Lease(60.0))


def test_protocols_have_their_iana_numbers() -> None:
    assert {protocol.name: protocol.value for protocol in TransportProtocol} == {"TCP": 6, "UDP": 17}


def test_the_text_of_a_mapping_has_no_description() -> None:
    assert str(MAPPING) == "UDP 51413 -> 10.100.0.2:6881"


def test_the_key_is_protocol_and_external_port() -> None:
    assert MAPPING.key == (TransportProtocol.UDP, 51413)


@pytest.mark.parametrize(("now", "left"), [(0.0, 60), (59.4, 1), (59.6, 0), (60.0, 0), (1e9, 0)])
def test_the_remaining_seconds_of_a_lease_are_never_negative(now: float, left: int) -> None:
    assert Lease(60.0).remaining(now) == left


@pytest.mark.parametrize(
    ("change", "undone"),
    [
        (Change(None, ENTRY), Change(ENTRY, None)),
        (Change(ENTRY, None), Change(None, ENTRY)),
        (Change(ENTRY, Entry(MAPPING, Lease(90.0))), Change(Entry(MAPPING, Lease(90.0)), ENTRY)),
    ],
)
def test_an_undone_change_has_before_and_after_exchanged(change: Change, undone: Change) -> None:
    assert change.undone() == undone


GUARDED, OTHER = (Claim(by_internal=True, nonce=nonce * 12) for nonce in (b"n", b"o"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT),
        (BY_EXTERNAL_PORT, GUARDED),
        (BY_INTERNAL_ENDPOINT, GUARDED),
        (GUARDED, Claim(by_internal=True, nonce=GUARDED.nonce)),
    ],
)
def test_a_joined_claim_keeps_the_internal_endpoint_and_the_nonce(first: Claim, second: Claim) -> None:
    assert first.admits(second)
    assert second.admits(first)
    assert first.joined(second) == second.joined(first) == second


def test_a_nonce_admits_every_claim_but_another_nonce() -> None:
    assert not GUARDED.admits(OTHER)
