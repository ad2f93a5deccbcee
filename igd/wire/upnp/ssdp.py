"""SSDP: searches, their answers and announcements (UPnP Device Architecture 1.1 §1)."""

from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

from igd.core.mapping import Endpoint
from igd.wire.malformed import Malformed
from igd.wire.upnp.description import DEVICE_PATHS
from igd.wire.upnp.devices import DEVICES, ROOT, VERSIONS, Device, Service, udn

GROUPS: tuple[IPv4Address | IPv6Address, ...] = (
    IPv4Address("239.255.255.250"),
    IPv6Address("ff02::c"),
    IPv6Address("ff05::c"),
)
"""What searches are sent to (§1.3.2); in IPv6, with the scope of the link or of the site (annex A)."""

_ANNOUNCED_TO: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("239.255.255.250"), 6: IPv6Address("ff05::c")}
"""The group that an announcement names in HOST. In IPv6 its scope is the site: LOCATION has no link-local address."""

PORT = 1900

MAX_AGE = 1800
"""Seconds for which an announcement is valid (§1.2.2: at least 1800)."""

LONGEST_MX = 5
"""Seconds; a larger MX is read as 5 (§1.3.3)."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search for `target`, to be answered within `mx` seconds (0 to 5); None: at once."""

    target: str
    mx: int | None


@dataclass(frozen=True, slots=True)
class Advert:
    """One target that is announced (ST or NT) with its USN, and the version of the description that LOCATION names."""

    target: str
    usn: str
    version: int


@dataclass(frozen=True, slots=True)
class Advertiser:
    """The headers that all messages of one server have in common.

    `root` is the root device, `server` names the product, `boot_id` grows with every start, and `config_id` changes
    with the documents (§1.2.2).
    """

    root: UUID
    server: str
    boot_id: int
    config_id: int


def parse(datagram: bytes) -> Search | None:
    """Read a datagram; return None for announcements and answers of others, raise Malformed for anything else.

    Headers may be in any case and order, with or without a space after the colon, and followed by more line ends.
    """
    start, *lines = datagram.decode("latin-1").replace("\r\n", "\n").split("\n")
    if start.startswith(("NOTIFY ", "HTTP/")):
        return None
    if not start.startswith("M-SEARCH "):
        raise Malformed("neither a search nor an announcement")
    headers = _headers(lines)
    if headers.get("MAN", "").strip("\"'") != "ssdp:discover":
        raise Malformed("MAN is not ssdp:discover")
    if not headers.get("ST"):
        raise Malformed("the search has no target")
    return Search(headers["ST"], _mx(headers.get("MX")))


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed("a header without a colon")
        headers[name.strip().upper()] = value.strip()
    return headers


def _mx(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise Malformed("MX is not a number of seconds")
    return LONGEST_MX if len(text) > 1 else min(int(text), LONGEST_MX)


def adverts(root: UUID) -> tuple[Advert, ...]:
    """Return everything that is announced, which also answers ssdp:all (§1.2.2, §1.3.3).

    Version 1 comes first and is complete: some clients use the first answer and know version 1 only, and a search
    that names no version must lead to the description that every client can read. The types of version 2 follow, for
    clients that search for everything and then use version 2 only.
    """
    lines = [Advert("upnp:rootdevice", f"{udn(ROOT, root)}::upnp:rootdevice", 1)]
    for device in DEVICES:
        name = udn(device, root)
        lines.append(Advert(name, name, 1))
    for version in VERSIONS:
        for device in DEVICES:
            name = udn(device, root)
            kinds: tuple[Device | Service, ...] = (device, *device.services)
            urns = [kind.urn(version) for kind in kinds if kind.version >= version]
            lines += [Advert(urn, f"{name}::{urn}", version) for urn in urns]
    return tuple(lines)


def matches(target: str, root: UUID) -> tuple[Advert, ...]:
    """Return the adverts that answer a search for `target`, none for a target that is not ours."""
    everything = adverts(root)
    if target == "ssdp:all":
        return everything
    # The hexadecimal digits of a uuid may be upper case (RFC 4122 §3).
    return tuple(advert for advert in everything if advert.target.lower() == target.lower())


def respond(advert: Advert, advertiser: Advertiser, http: Endpoint, now: datetime) -> bytes:
    """Return the answer to a search whose sender reaches HTTP at `http` (§1.3.3); `now` is in UTC."""
    return _message(
        "HTTP/1.1 200 OK",
        advertiser,
        ("CACHE-CONTROL", f"max-age={MAX_AGE}"),
        ("DATE", format_datetime(now, usegmt=True)),
        ("EXT", ""),
        _location(advert, http),
        ("SERVER", advertiser.server),
        ("ST", advert.target),
        ("USN", advert.usn),
    )


def alive(advert: Advert, advertiser: Advertiser, http: Endpoint) -> bytes:
    """Return the announcement that `advert` is available, to a peer that reaches HTTP at `http` (§1.2.2)."""
    return _notify(
        "ssdp:alive",
        advert,
        advertiser,
        http,
        ("CACHE-CONTROL", f"max-age={MAX_AGE}"),
        _location(advert, http),
        ("SERVER", advertiser.server),
    )


def byebye(advert: Advert, advertiser: Advertiser, http: Endpoint) -> bytes:
    """Return the announcement that `advert` is no longer available (§1.2.3); `http` is as in `alive`."""
    return _notify("ssdp:byebye", advert, advertiser, http)


def _location(advert: Advert, http: Endpoint) -> tuple[str, str]:
    return "LOCATION", f"http://{http}{DEVICE_PATHS[advert.version]}"


def _notify(nts: str, advert: Advert, advertiser: Advertiser, http: Endpoint, *headers: tuple[str, str]) -> bytes:
    host = "HOST", str(Endpoint(_ANNOUNCED_TO[http.address.version], PORT))
    target, usn = ("NT", advert.target), ("USN", advert.usn)
    return _message("NOTIFY * HTTP/1.1", advertiser, host, *headers, target, ("NTS", nts), usn)


def _message(start: str, advertiser: Advertiser, *headers: tuple[str, str]) -> bytes:
    state = (("BOOTID.UPNP.ORG", str(advertiser.boot_id)), ("CONFIGID.UPNP.ORG", str(advertiser.config_id)))
    lines = [start, *(f"{name}: {value}".rstrip() for name, value in (*headers, *state))]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
