"""The backend that only remembers is as strict as those that do."""

from ipaddress import IPv4Address

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.backend import Backend, FirewallError
from igd.firewall.pretend import Pretend

EXTERNAL = IPv4Address("60.60.60.1")


def entry(port: int) -> Entry:
    mapping = PortMapping(TransportProtocol.TCP, port, Endpoint(IPv4Address("10.100.0.2"), port), "peer")
    return Entry(mapping, Lease(expires=60.0))


def test_it_holds_what_it_was_told() -> None:
    pretend = Pretend()
    backend: Backend = pretend
    backend.replace_all([EXTERNAL], [entry(1), entry(2)], 0.0)
    backend.apply([Change(entry(1), None), Change(None, entry(3)), Change(entry(2), entry(2))], 0.0)
    assert list(pretend.entries.values()) == [entry(3), entry(2)]
    assert pretend.addresses == {EXTERNAL}
    backend.remove_all()
    backend.close()
    assert (pretend.entries, pretend.addresses, pretend.closed) == ({}, frozenset(), True)


@pytest.mark.parametrize("change", [Change(None, entry(1)), Change(entry(2), None), Change(entry(2), entry(2))])
def test_what_does_not_fit_fails_and_changes_nothing(change: Change) -> None:
    pretend = Pretend()
    pretend.replace_all([EXTERNAL], [entry(1)], 0.0)
    with pytest.raises(FirewallError):
        pretend.apply([Change(None, entry(3)), change], 0.0)
    assert list(pretend.entries.values()) == [entry(1)]


def test_it_fails_once_when_told_to() -> None:
    pretend = Pretend()
    pretend.fail_next = FirewallError("as asked")
    with pytest.raises(FirewallError, match="as asked"):
        pretend.replace_all([EXTERNAL], [entry(1)], 0.0)
    assert pretend.entries == {}
    pretend.replace_all([EXTERNAL], [entry(1)], 0.0)
    assert list(pretend.entries.values()) == [entry(1)]
