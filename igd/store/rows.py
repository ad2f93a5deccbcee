"""Entries and hold-downs as rows of the lease file, and whether a row that was read is one."""

import functools
import math
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from igd.core.mapping import Claim, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.peers import is_public_key
from igd.core.table import HOLD_DOWN, MAX_REMOTES, HoldDown
from igd.core.unique_ids import UNIQUE_IDS

_NONCE_OCTETS = 0, 12


def key_columns(entry: Entry) -> tuple[int, int, str]:
    """Return the columns that identify an entry."""
    mapping = entry.mapping
    if isinstance(mapping, PortMapping):
        return mapping.protocol, mapping.external_port, ""
    _, _, address, *remote = mapping.key
    return mapping.protocol, mapping.external_port, " ".join([str(address), *map(_remote_text, remote)])


def lease_row(entry: Entry) -> tuple[int | str | float | bytes | None, ...]:
    """Return the columns of the table `lease`."""
    mapping = entry.mapping
    return (
        *key_columns(entry),
        str(mapping.internal.address),
        mapping.internal.port,
        mapping.peer,
        mapping.description,
        "\n".join(map(_remote_text, mapping.remotes)),
        mapping.claim.nonce if mapping.claim.by_internal else None,
        entry.lease.expires,
        entry.lease.endless,
        mapping.unique_id if isinstance(mapping, Pinhole) else 0,
    )


def read_lease(row: Sequence[Any], move: float, latest: float) -> Entry:
    """Return the entry of a row that may contain anything; ValueError or TypeError if it is not one that was saved.

    Its lease ends `move` seconds later than the row says, and at `latest`.
    """
    protocol, external_port, pinhole, address, port, peer, description, remotes, nonce, expires, endless, number = row
    lease = Lease(min(seconds(expires) + move, latest), _flag(endless))
    internal = Endpoint((_ipv6 if text(pinhole) else _ipv4)(text(address)), _port(port))
    about = public_key(peer), text(description), _remotes(text(remotes), internal.address.version), _claim(nonce)
    mapping = (
        Pinhole(TransportProtocol(protocol), internal, *about, _unique_id(number))
        if pinhole
        else PortMapping(TransportProtocol(protocol), _port(external_port), internal, *about)
    )
    entry = Entry(mapping, lease)
    if (protocol, external_port, pinhole) != key_columns(entry):
        raise ValueError("the key is that of another mapping")
    if not pinhole and number != 0:
        raise ValueError("a port mapping has no UniqueID")
    return entry


def read_hold_down(row: Sequence[Any], move: float, now: float) -> HoldDown:
    """Return the hold-down of such a row, which ends `move` seconds later than it says; ValueError or TypeError."""
    protocol, port, peer, until = row
    if seconds(until) + move > now + HOLD_DOWN:
        raise ValueError("no hold-down lasts so long")
    return HoldDown((TransportProtocol(protocol), _port(port)), public_key(peer), until + move)


def seconds(value: object) -> float:
    """Return a finite number of seconds."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a time")
    return float(value)


def text(value: object) -> str:
    """Return a text without surrogates, which stand for octets that were no UTF-8."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    if not value.isascii():
        value.encode()
    return value


@functools.lru_cache(1024)
def public_key(value: object) -> str:
    """Return the public key of a peer."""
    key = text(value)
    if not is_public_key(key):
        raise ValueError("not a public key")
    return key


def _flag(value: object) -> bool:
    if type(value) is not int or value not in (0, 1):
        raise ValueError("not a flag")
    return value == 1


def _port(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise ValueError("not a port")
    return value


# Parsing an address takes as long as the rest of an entry, and a host with many mappings has one address.
_ipv4: Callable[[str], IPv4Address] = functools.lru_cache(1024)(IPv4Address)
_ipv6: Callable[[str], IPv6Address] = functools.lru_cache(1024)(IPv6Address)


@functools.lru_cache(1024)
def _claim(nonce: bytes | None) -> Claim:
    if nonce is not None and (not isinstance(nonce, bytes) or len(nonce) not in _NONCE_OCTETS):
        raise ValueError("not a nonce")
    return Claim(by_internal=nonce is not None, nonce=nonce or b"")


@functools.lru_cache(1024)
def _remotes(lines: str, version: int) -> tuple[Remote, ...]:
    remotes = tuple(map(_remote, lines.split("\n") if lines else ()))
    if len(remotes) > MAX_REMOTES or any(remote.network.version != version for remote in remotes):
        raise ValueError("not the remotes of a mapping")
    return remotes


def _unique_id(value: object) -> int:
    """Return the UniqueID of a pinhole."""
    if type(value) is not int or value not in UNIQUE_IDS:
        raise ValueError("not a UniqueID")
    return value


def _remote_text(remote: Remote) -> str:
    return f"{remote.network} {remote.port}"


def _remote(line: str) -> Remote:
    network, port = line.split(" ")
    return Remote(ip_network(network), int(port) and _port(int(port)))
