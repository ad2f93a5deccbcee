"""The announced and the matched address, for every way in which a server is connected to the internet."""

from ipaddress import IPv4Address, ip_interface

import pytest

from igd.host.external_address import external_addresses


@pytest.mark.parametrize(
    ("configured", "interface", "announced", "matched"),
    [
        (None, ["60.60.60.1/24"], "60.60.60.1", ["60.60.60.1"]),
        (None, ["10.0.0.5/24", "60.60.60.1/24", "60.60.60.2/24"], "60.60.60.1", ["60.60.60.1"]),  # the first public
        (None, ["10.0.0.5/24", "192.168.0.5/24"], "10.0.0.5", ["10.0.0.5"]),  # clients will refuse it
        (None, ["100.64.0.9/10"], "100.64.0.9", ["100.64.0.9"]),
        (None, ["2001:db8::1/64", "60.60.60.1/24"], "60.60.60.1", ["60.60.60.1"]),
        (None, ["2001:db8::1/64"], None, []),
        (None, [], None, []),
        ("60.60.60.2", ["60.60.60.1/24", "60.60.60.2/24"], "60.60.60.2", ["60.60.60.2"]),  # one of several
        ("60.60.60.1", ["10.0.0.5/24"], "60.60.60.1", ["10.0.0.5"]),  # behind a 1:1 NAT, as in most clouds
        ("60.60.60.1", ["10.0.0.5/24", "61.61.61.1/24"], "60.60.60.1", ["61.61.61.1"]),
        ("60.60.60.1", [], "60.60.60.1", []),
    ],
)
def test_announced_and_matched_addresses(
    configured: str | None, interface: list[str], announced: str | None, matched: list[str]
) -> None:
    found = external_addresses(IPv4Address(configured) if configured else None, map(ip_interface, interface))
    assert found.announced == (IPv4Address(announced) if announced else None)
    assert found.matched == tuple(map(IPv4Address, matched))
