"""The sources that a restricted mapping admits, as disjoint ranges: intervals of the kernel's sets must not overlap."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Remote

Bounds = tuple[int, int]
"""The first and the last address of a range, as numbers."""

_HIGHEST_PORT = 0xFFFF


class SourceRange(NamedTuple):
    """A range of addresses, with one source port or all of them."""

    first: Endpoint
    last: Endpoint


def admitted_sources(mapping: AnyMapping) -> tuple[SourceRange, ...]:
    """Return disjoint ranges that cover exactly the mapping's remotes; none if it admits every source."""
    every_source = any(remote.network.prefixlen == 0 and not remote.port for remote in mapping.remotes)
    return () if every_source or not mapping.remotes else tuple(disjoint(mapping.remotes))


def disjoint(remotes: Sequence[Remote]) -> Iterator[SourceRange]:
    """Yield ranges that contain each address and port of the remotes once; all remotes have one IP version."""
    wide = _united(remotes, 0)
    kind = type(remotes[0].network[0]) if remotes else IPv4Address
    for first, last in wide:
        yield SourceRange(Endpoint(kind(first), 0), Endpoint(kind(last), _HIGHEST_PORT))
    for port in sorted({remote.port for remote in remotes} - {0}):
        for bounds in _united(remotes, port):
            for first, last in _without(bounds, wide):
                yield SourceRange(Endpoint(kind(first), port), Endpoint(kind(last), port))


def _united(remotes: Iterable[Remote], port: int) -> list[Bounds]:
    """Return the merged address ranges of the remotes with this port, in ascending order."""
    united: list[Bounds] = []
    for first, last in sorted((int(r.network[0]), int(r.network[-1])) for r in remotes if r.port == port):
        if united and first <= united[-1][1] + 1:
            united[-1] = united[-1][0], max(last, united[-1][1])
        else:
            united.append((first, last))
    return united


def _without(bounds: Bounds, others: Iterable[Bounds]) -> Iterator[Bounds]:
    """Yield the parts of `bounds` outside of `others`, which are in ascending order."""
    begin, end = bounds
    for first, last in others:
        if begin <= last and first <= end:
            if begin < first:
                yield begin, first - 1
            begin = last + 1
    if begin <= end:
        yield begin, end
