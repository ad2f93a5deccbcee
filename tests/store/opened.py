"""A store whose clocks a test sets, and its leases."""

import base64
import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from igd.core.mapping import (
    Endpoint,
    Entry,
    Lease,
    PortMapping,
    TransportProtocol,
)
from igd.core.moment import Moment
from igd.store.leases import LeaseStore
from igd.store.reading import read

KEY, OTHER_KEY = (base64.b64encode(octet * 32).decode() for octet in (b"1", b"2"))
"""Public keys of peers."""


def entry(port: int = 8043, expires: float = 1600.0, description: str = "", *, endless: bool = False) -> Entry:
    mapping = PortMapping(TransportProtocol.UDP, port, Endpoint(IPv4Address("10.100.0.2"), 80), KEY, description)
    return Entry(mapping, Lease(expires, endless))


TODAY = 1_900_000_000.0  # in 2030
YEAR = 365 * 86400.0
START = Moment("first", 1000.0, TODAY)


class Clocks:
    """The clocks of a host; a test sets `now`."""

    def __init__(self, now: Moment = START) -> None:
        self.now = now

    def __call__(self) -> Moment:
        """Return this moment."""
        return self.now


@contextlib.contextmanager
def opened(path: Path, now: Moment | Clocks = START) -> Iterator[LeaseStore]:
    store = LeaseStore(path, now if isinstance(now, Clocks) else Clocks(now))
    try:
        yield store
    finally:
        store.close()


def stored(path: Path, now: Moment = START) -> list[Entry]:
    """Return the leases in the file, which no process uses."""
    found = read(path, now)
    assert not found.damage
    return list(found.entries.values())
