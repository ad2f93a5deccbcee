"""SSDP: searches, their answers and announcements (UPnP Device Architecture 1.1 §1)."""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

from igd.core.mapping import Endpoint
from igd.wire.malformed import Malformed
from igd.wire.upnp.description import DEVICE_PATHS
from igd.wire.upnp.devices import DEVICES, ROOT, VERSIONS, WAN_IPV6_FIREWALL_CONTROL, Device, Service, udn
from igd.wire.upnp.user_agents import knows_version_1_only

GROUPS: tuple[IPv4Address | IPv6Address, ...] = (
    IPv4Address("239.255.255.250"),
    IPv6Address("ff02::c"),
    IPv6Address("ff05::c"),
)
"""What searches are sent to (§1.3.2); in IPv6, with the scope of the link or of the site (annex A)."""

PORT = 1900

MAX_AGE = 1800
"""Seconds for which an announcement is valid (§1.2.2: at least 1800)."""

LONGEST_MX = 5
"""Seconds; a larger MX is read as 5 (§1.3.3)."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search for `target`, to be answered within `mx` seconds (0 to 5); None: at once.

    `version_1_only`: the client says that it is one of those that know version 1 of InternetGatewayDevice only.
    """

    target: str
    mx: int | None
    version_1_only: bool = False


@dataclass(frozen=True, slots=True)
class Advert:
    """One target that is announced (ST or NT) with its USN, and the version of the description that LOCATION names.

    `since` is the version of InternetGatewayDevice with which the target came.
    """

    target: str
    usn: str
    version: int
    since: int


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


_FOLD = re.compile(r"(?<!\n)\n[ \t]+(?=\S)")
"""Where a header goes on in the next line (RFC 7230 §3.2.4)."""

_MX = re.compile(r"\+?0*([0-9]+)(?:\.[0-9]*)?")
"""A number of seconds; a fraction is cut off."""


def parse(datagram: bytes) -> Search | None:
    """Read a datagram; return None for announcements and answers of others, raise Malformed for anything else.

    What is unambiguous is read, whatever it looks like: method, names of headers and MAN in any case and with or
    without spaces and quotes, lines that end without CR or go on in the next one, empty lines around the
    message and zeros after it, MAN or MX missing, a header twice with one value.
    """
    text = datagram.decode("latin-1").rstrip("\0").replace("\r\n", "\n").lstrip("\n")
    start, *lines = _FOLD.sub(" ", text).split("\n")
    method = start.split(" ")[0].upper()
    if method == "NOTIFY" or method.startswith("HTTP/"):
        return None
    if method != "M-SEARCH":
        raise Malformed("neither a search nor an announcement")
    headers = _headers(lines)
    target, man = _value(headers, "ST"), _value(headers, "MAN").partition(";")[0]
    if man and _unquoted(man).lower() != "ssdp:discover":
        raise Malformed("MAN is not ssdp:discover")
    if not _unquoted(target):
        raise Malformed("the search has no target")
    version_1_only = knows_version_1_only(" ".join(headers["USER-AGENT"]))
    return Search(_unquoted(target), _mx(_value(headers, "MX")), version_1_only)


def _headers(lines: list[str]) -> defaultdict[str, list[str]]:
    """Return the values of each header, by its name in upper case."""
    headers: defaultdict[str, list[str]] = defaultdict(list)
    for line in lines:
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed("a header without a colon")
        headers[name.strip().upper()].append(value.strip())
    return headers


def _value(headers: defaultdict[str, list[str]], name: str) -> str:
    """Return the value of a header, "" if it is missing; raise Malformed if there are several."""
    values = set(headers[name])
    if len(values) > 1:
        raise Malformed(f"{name} has several values")
    return values.pop() if values else ""


def _unquoted(value: str) -> str:
    return value.strip().strip("\"'").strip()


def _mx(text: str) -> int | None:
    if not text:
        return None
    found = _MX.fullmatch(text)
    if found is None:
        raise Malformed("MX is not a number of seconds")
    return LONGEST_MX if len(found[1]) > 1 else min(int(found[1]), LONGEST_MX)


def adverts(root: UUID) -> tuple[Advert, ...]:
    """Return everything that is announced, which also answers ssdp:all (§1.2.2, §1.3.3).

    Version 1 comes first and is complete: some clients use the first answer and know version 1 only, and a search
    that names no version must lead to the description that every client can read. The types of version 2 follow, for
    clients that search for everything and then use version 2 only.
    """
    lines = [Advert("upnp:rootdevice", f"{udn(ROOT, root)}::upnp:rootdevice", 1, 1)]
    for device in DEVICES:
        name = udn(device, root)
        lines.append(Advert(name, name, 1, 1))
    for version in VERSIONS:
        for device in DEVICES:
            name = udn(device, root)
            kinds: tuple[Device | Service, ...] = (device, *device.services)
            for kind in kinds:
                if kind.version >= version:
                    urn = kind.urn(version)
                    since = 2 if kind is WAN_IPV6_FIREWALL_CONTROL else version
                    lines.append(Advert(urn, f"{name}::{urn}", version, since))
    return tuple(lines)


def matches(target: str, root: UUID, *, version_1_only: bool = False) -> tuple[Advert, ...]:
    """Return the adverts that answer a search for `target`, none for a target that is not ours.

    A target may be in any case, as the hexadecimal digits of a uuid may (RFC 4122 §3). The answer repeats it as it was
    sent, because clients compare. A client that knows version 1 only gets everything of version 1 if it searches for
    everything, and what it names if it names a target.
    """
    everything = adverts(root)
    if target.lower() == "ssdp:all":
        return tuple(advert for advert in everything if advert.since == 1 or not version_1_only)
    return tuple(replace(advert, target=target) for advert in everything if advert.target.lower() == target.lower())


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


def update(next_boot_id: int, advert: Advert, advertiser: Advertiser, http: Endpoint) -> bytes:
    """Return the announcement that BOOTID changes to `next_boot_id`, and nothing else (§1.2.4); `http` as in `alive`.

    A client would take a new BOOTID that was not announced for a restart, and subscribe to events again.
    """
    next_state = "NEXTBOOTID.UPNP.ORG", str(next_boot_id)
    return _notify("ssdp:update", advert, advertiser, http, _location(advert, http), next_state)


def byebye(advert: Advert, advertiser: Advertiser, http: Endpoint) -> bytes:
    """Return the announcement that `advert` is no longer available (§1.2.3); `http` is as in `alive`."""
    return _notify("ssdp:byebye", advert, advertiser, http)


def _location(advert: Advert, http: Endpoint) -> tuple[str, str]:
    return "LOCATION", f"http://{http}{DEVICE_PATHS[advert.version]}"


def _notify(nts: str, advert: Advert, advertiser: Advertiser, http: Endpoint, *headers: tuple[str, str]) -> bytes:
    host = "HOST", str(Endpoint(_group(http.address), PORT))
    target, usn = ("NT", advert.target), ("USN", advert.usn)
    return _message("NOTIFY * HTTP/1.1", advertiser, host, *headers, target, ("NTS", nts), usn)


def _group(own: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the group that an announcement names in HOST: in IPv6 its scope is that of the address in LOCATION."""
    ipv4, link_local, site_local = GROUPS
    if own.version == 4:
        return ipv4
    return link_local if own.is_link_local else site_local


def _message(start: str, advertiser: Advertiser, *headers: tuple[str, str]) -> bytes:
    state = (("BOOTID.UPNP.ORG", str(advertiser.boot_id)), ("CONFIGID.UPNP.ORG", str(advertiser.config_id)))
    lines = [start, *(f"{name}: {value}".rstrip() for name, value in (*headers, *state))]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
