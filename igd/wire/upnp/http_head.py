"""The head of an HTTP request: read as clients write it, and written in the form that aiohttp never refuses (RFC 9112).

Whatever is unambiguous is read, and what could mean two things is refused with the reason.
"""

import posixpath
import re
from dataclasses import dataclass, field

from igd.wire.malformed import Malformed

LONGEST_TARGET = 1024
"""Octets of a request's target and of a header's value: ours have some 30. To find the resource of 8,000 slashes takes
aiohttp 10 ms."""

HEADERS = {
    name.lower(): name
    for name in (
        *(b"Host", b"Content-Type", b"Content-Encoding", b"SOAPAction"),
        *(b"Callback", b"NT", b"SID", b"Timeout"),  # of subscriptions
        b"User-Agent",
    )
}
"""The headers that mean something to this server. Others are not passed on: Connection, Range, Upgrade, ..."""

_METHODS = {
    *(b"GET", b"HEAD", b"POST", b"M-POST", b"SUBSCRIBE", b"UNSUBSCRIBE"),
    *(b"DELETE", b"NOTIFY", b"OPTIONS", b"PATCH", b"PUT", b"TRACE"),  # for which aiohttp names those that are allowed
}

_FRAMING = {b"content-length", b"transfer-encoding", b"expect"}

_FOLD = re.compile(rb"\r?\n[ \t]+")
_LINE_END = re.compile(rb"\r?\n")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_REQUEST_LINE = re.compile(rb"([a-z-]{1,32})[ \t]+([\x21-\x7e]+)[ \t]+http/1\.([0-9])[ \t]*", re.IGNORECASE)
_TARGET = re.compile(rb"(?:http://([^/?#]*))?([^?#]*)((?:\?[^#]*)?)", re.IGNORECASE)
_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NAMESPACE_OF_M_POST = re.compile(rb"^[0-9]{2}-")
# possessive: each of thousands of zeros would be tried as the first digit
_LENGTH = re.compile(rb"(?=[0-9])0*+([0-9]{0,18})")


class HttpError(Malformed):
    """A request that is refused with an error of HTTP: its status, and the reason for people.

    `is_sent` is whether the client has sent all of it.
    """

    def __init__(self, status: int, reason: str, *, is_sent: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.is_sent = is_sent


@dataclass(slots=True)
class Head:
    """A request line with the headers that are passed on, and how long the body is.

    `error` is why the request is refused, once its body has been received: a client reads no answer before it has sent
    everything.
    """

    line: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    length: int | None = None  # None: not given
    is_chunked: bool = False
    expects_continue: bool = False
    error: HttpError | None = None

    def canonical(self, body: bytes) -> bytes:
        """Return the request with the body: one Content-Length, no coding, no expectation."""
        headers = {written: self.headers[name] for name, written in HEADERS.items() if name in self.headers}
        if self.length is not None or self.is_chunked:
            headers[b"Content-Length"] = b"%d" % len(body)
        return b"\r\n".join((self.line, *(b"%b: %b" % header for header in headers.items()), b"", body))


def read_head(octets: bytes, own: tuple[str, int]) -> Head:
    """Read a head without the empty line at its end."""
    head = Head()
    try:
        request_line, *lines = _LINE_END.split(_FOLD.sub(b" ", octets))
        method, authority = _read_request_line(head, request_line)
        found = _values(lines, is_m_post=method == b"M-POST")
        _read_framing(head, {name: found.pop(name) for name in _FRAMING if name in found})
        for name, values in found.items():
            head.headers[name] = _only(HEADERS[name], values)
        if authority or not head.headers.get(b"host"):
            head.headers[b"host"] = authority or _host(own)
        _check_coding(head.headers.pop(b"content-encoding", b""))
    except HttpError as error:
        head.error = error.with_traceback(None)  # its frames refer to this head
    return head


def _read_request_line(head: Head, line: bytes) -> tuple[bytes, bytes]:
    """Set the request line; return the method, and the authority of a target that has one (RFC 9112 §3.2.2)."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HttpError(400, "not a request line of HTTP/1.1")
    method, target, minor = match[1].upper(), match[2], match[3]
    if method not in _METHODS:
        raise HttpError(501, "an unknown method")
    if len(target) > LONGEST_TARGET:
        raise HttpError(400, f"a target of more than {LONGEST_TARGET} octets")
    parts = _TARGET.match(target)
    assert parts is not None, "every part is optional"
    path = posixpath.normpath(b"/" + parts[2].lstrip(b"/"))
    version = b"HTTP/1.0" if minor == b"0" else b"HTTP/1.1"
    head.line = b" ".join((b"POST" if method == b"M-POST" else method, path + parts[3], version))
    return method, parts[1] or b""


def _values(lines: list[bytes], *, is_m_post: bool) -> dict[bytes, set[bytes]]:
    """Return the values of the headers that mean something, by their names in lower case.

    M-POST has a namespace in front of SOAPAction (`01-SOAPACTION`, UPnP Device Architecture 1.0 §3.2.1).
    """
    found: dict[bytes, set[bytes]] = {}
    for line in lines:
        written, colon, value = line.partition(b":")
        name = written.strip(b" \t").lower()
        if not colon or not _NAME.fullmatch(name):
            raise HttpError(400, "a line that is not a header")
        if is_m_post:
            name = _NAMESPACE_OF_M_POST.sub(b"", name)
        if name in HEADERS or name in _FRAMING:
            found.setdefault(name, set()).add(_CONTROL.sub(b" ", value).strip())
    return found


def _only(name: bytes, values: set[bytes]) -> bytes:
    """Return the value of a header that may be repeated, but with one value only."""
    value, *others = values
    if others:
        raise HttpError(400, f"{name.decode()} has two values")
    if name == b"User-Agent":
        return value[:LONGEST_TARGET]
    if len(value) > LONGEST_TARGET:
        raise HttpError(400, f"{name.decode()} has more than {LONGEST_TARGET} octets")
    return value


def _read_framing(head: Head, found: dict[bytes, set[bytes]]) -> None:
    """Set how the end of the body is found; raise HttpError where two ends could be meant."""
    codings = {value.lower() for value in found.get(b"transfer-encoding", ())} - {b"identity", b""}
    lengths = {text.strip() for value in found.get(b"content-length", ()) for text in value.split(b",")}
    if codings - {b"chunked"}:
        raise HttpError(501, "Transfer-Encoding is not supported, except chunked")
    if codings and lengths:
        raise HttpError(400, "both Content-Length and Transfer-Encoding")
    matches = [_LENGTH.fullmatch(text) for text in lengths]
    numbers = {int(match[1] or 0) if match else None for match in matches}
    if len(numbers) > 1 or None in numbers:
        raise HttpError(400, "Content-Length is not one number")
    head.length, head.is_chunked = next(iter(numbers), None), bool(codings)
    expected = {value.lower() for value in found.get(b"expect", ())}
    head.expects_continue = b"100-continue" in expected and head.line.endswith(b"1.1")


def _check_coding(coding: bytes) -> None:
    """Refuse a compressed body: a small one could become a large one, and no known client compresses."""
    if coding.lower() not in {b"identity", b""}:
        raise HttpError(415, "Content-Encoding is not supported")


def _host(own: tuple[str, int]) -> bytes:
    address, port = own[:2]
    return (f"[{address}]:{port}" if ":" in address else f"{address}:{port}").encode()
