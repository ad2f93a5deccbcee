"""The announced and the matched address, for every way in which a server is connected to the internet."""

from ipaddress import IPv4Address

import pytest

from igd.host.external_address import external_addresses


@pytest.mark.parametrize(
    ("configured", "elsewhere", "own", "announced", "matched"),
    [
        (None, "", "60.60.60.1", "60.60.60.1", "60.60.60.1"),
        (None, "", "10.0.0.5 60.60.60.1 60.60.60.2", "60.60.60.1", "60.60.60.1"),  # the first public
        (None, "", "10.0.0.5 192.168.0.5", "10.0.0.5", "10.0.0.5"),  # clients will refuse it
        (None, "", "100.64.0.9", "100.64.0.9", "100.64.0.9"),
        (None, "60.60.60.1", "", None, ""),
        (None, "", "", None, ""),
        ("60.60.60.2", "", "60.60.60.1 60.60.60.2", "60.60.60.2", "60.60.60.2"),  # one of several
        ("60.60.60.2", "60.60.60.2", "100.64.7.7", "60.60.60.2", "60.60.60.2"),  # routed to another interface
        ("60.60.60.2", "60.60.60.2", "", "60.60.60.2", "60.60.60.2"),
        ("60.60.60.1", "", "10.0.0.5", "60.60.60.1", "10.0.0.5"),  # behind a 1:1 NAT, as in most clouds
        ("60.60.60.1", "", "10.0.0.5 61.61.61.1", "60.60.60.1", "61.61.61.1"),
        ("60.60.60.1", "10.9.9.9", "", None, ""),  # nothing arrives
    ],
)
def test_announced_and_matched_addresses(
    configured: str | None, elsewhere: str, own: str, announced: str | None, matched: str
) -> None:
    addresses = [IPv4Address(text) for text in own.split()]
    present = {*addresses, *map(IPv4Address, elsewhere.split())}
    found = external_addresses(IPv4Address(configured) if configured else None, present, addresses)
    assert found.announced == (IPv4Address(announced) if announced else None)
    assert found.matched == tuple(map(IPv4Address, matched.split()))
