"""GENA: subscriptions and event messages (UPnP Device Architecture 1.1 §4)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from igd.core.mapping import Endpoint
from igd.wire.upnp import xml

SHORTEST, LONGEST = 1800, 86400
"""Seconds of a subscription (§4.1.1: at least 1800). A longer one, or "infinite", gets LONGEST."""

LAST_SEQ = 2**32 - 1
"""After this event key comes 1: only the initial event has 0 (§4.3.2)."""

MAX_CALLBACKS = 4
"""How many URLs of one subscription are tried; further ones are ignored."""

LONGEST_TARGET = 512
"""Octets of a callback's path and query; those of known clients have up to 60."""

_URLS = re.compile(r"<([^<>]*)>")
_URL = re.compile(
    r"http://(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<ipv4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?(?P<target>[/?][!-~]*)?",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"second-([0-9]{1,10}|infinite)", re.IGNORECASE)
_SID = re.compile(r"uuid:[!-~]{1,80}")

_ANSWER = re.compile(rb"(?:HTTP/1\.[01] 1.*?\n\r?\n)*+HTTP/1\.[01] ([2-9][0-9]{2})\b.*?\n\r?\n", re.DOTALL)
"""The head of an answer, after any interim ones (RFC 9110 §15.2); lines may end without a CR (RFC 9112 §2.2)."""


Headers = Mapping[str, str]
"""The headers of a request; lookups ignore case."""


class GenaError(Exception):
    """A request that is refused with this status of HTTP, and why (§4.1.2 to §4.1.4)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Callback:
    """Where a subscriber wants its events: an endpoint, and the target of the request ("/path?query")."""

    endpoint: Endpoint
    target: str

    def __str__(self) -> str:
        return f"http://{self.endpoint}{self.target}"


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A new subscription for `seconds`, with at least one callback."""

    callbacks: tuple[Callback, ...]
    seconds: int


@dataclass(frozen=True, slots=True)
class Renew:
    """The renewal of the subscription `sid`."""

    sid: str
    seconds: int


def decode_subscribe(headers: Headers, source: IPv4Address | IPv6Address) -> Subscribe | Renew:
    """Read a SUBSCRIBE request from `source`; GenaError.

    Events go to literal addresses that are the subscriber's own, and to nobody else: others would get traffic that they
    have not asked for (CVE-2020-12695).
    """
    seconds = _seconds(headers.get("TIMEOUT", ""))
    if "SID" in headers:
        _refuse_both(headers)
        return Renew(_sid(headers), seconds)
    if headers.get("NT", "").strip() != "upnp:event":
        raise GenaError(412, "NT must be upnp:event")
    urls = _URLS.findall(headers.get("CALLBACK", ""))
    found = (callback for callback in map(_callback, urls) if callback and callback.endpoint.address == source)
    callbacks = tuple(dict.fromkeys(found))[:MAX_CALLBACKS]
    if not callbacks:
        raise GenaError(412, f"CALLBACK must be <http://ADDRESS:PORT/...> with the subscriber's address, {source}")
    return Subscribe(callbacks, seconds)


def decode_unsubscribe(headers: Headers) -> str:
    """Return the SID of an UNSUBSCRIBE request; GenaError."""
    _refuse_both(headers)
    return _sid(headers)


def timeout(seconds: int) -> str:
    """Return the header TIMEOUT of a response."""
    return f"Second-{seconds}"


def next_seq(seq: int) -> int:
    """Return the event key after this one."""
    return 1 if seq == LAST_SEQ else seq + 1


def encode_notify(callback: Callback, sid: str, seq: int, body: bytes) -> bytes:
    """Return the request that delivers an event (§4.3.2)."""
    lines = (
        f"NOTIFY {callback.target} HTTP/1.1",
        f"HOST: {callback.endpoint}",
        f"CONTENT-TYPE: {xml.CONTENT_TYPE}",
        f"CONTENT-LENGTH: {len(body)}",
        "NT: upnp:event",
        "NTS: upnp:propchange",
        f"SID: {sid}",
        f"SEQ: {seq}",
        "CONNECTION: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body


def decode_answer(received: bytes) -> int | None:
    """Return the status of the answer to an event; None if its head has not arrived, or is none of HTTP."""
    match = _ANSWER.match(received)
    return int(match[1]) if match else None


def encode_event(values: Mapping[str, str]) -> bytes:
    """Return the body of an event message with these variables."""
    properties = tuple(("e:property", ((name, value),)) for name, value in values.items())
    return xml.write((xml.Tag("e:propertyset", {"e": "urn:schemas-upnp-org:event-1-0"}), properties))


def _refuse_both(headers: Headers) -> None:
    """§4.1.2: a request for both a new subscription and an old one is a contradiction."""
    if "CALLBACK" in headers or "NT" in headers:
        raise GenaError(400, "SID with NT or CALLBACK")


def _sid(headers: Headers) -> str:
    sid = headers.get("SID", "").strip()
    if not _SID.fullmatch(sid):
        raise GenaError(412, "no subscription has this SID")
    return sid


def _seconds(text: str) -> int:
    """Return how long a subscription lasts that asks for this; a malformed TIMEOUT asks for nothing."""
    match = _TIMEOUT.fullmatch(text.strip())
    if match is None:
        return SHORTEST
    return LONGEST if match[1].lower() == "infinite" else min(max(int(match[1]), SHORTEST), LONGEST)


def _callback(url: str) -> Callback | None:
    """Return the callback of a URL with a literal address, without a user; None for any other."""
    match = _URL.fullmatch(url.strip())
    if match is None:
        return None
    port, target = int(match["port"] or 80), (match["target"] or "/").partition("#")[0]
    if not 1 <= port <= 65535 or len(target) > LONGEST_TARGET:
        return None
    try:
        address = IPv6Address(match["ipv6"]) if match["ipv6"] else IPv4Address(match["ipv4"])
    except ValueError:
        return None
    return Callback(Endpoint(address, port), target if target.startswith("/") else f"/{target}")
