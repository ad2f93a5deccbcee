"""A mapping leads to one host: not to a group, and not to an address that means something else."""

from ipaddress import ip_address

import pytest

from igd.core.unicast import is_unicast


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.169.254", "192.0.0.9", "192.0.0.10"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::10.100.0.2", "::ffff:10.100.0.2", "2001:1::1", "fe80::1", "ff02::1"),
    ],
)
def test_what_is_not_one_hosts(address: str) -> None:
    assert not is_unicast(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("1.0.0.1", "10.100.0.2", "100.64.0.1", "126.255.255.255", "169.253.0.1", "192.0.0.2", "198.18.0.1"),
        *("223.255.255.255", "64:ff9b::a64:2", "200::1", "2001:1::3", "2001:470:100::2", "fd00::1"),
    ],
)
def test_what_may_be_one_hosts(address: str) -> None:
    assert is_unicast(ip_address(address))
