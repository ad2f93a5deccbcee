"""One HTTP request: read as clients write it, and passed on in the one form that aiohttp never refuses (RFC 9112).

Whatever is unambiguous is read. A connection has one request, and what follows it is dropped, so that no other server
can read a request differently than this one (request smuggling).
"""

import re

from igd.wire.upnp.http_head import Head, HttpError, read_head

LONGEST_HEAD = 16 * 1024
"""Octets of request line and headers; the SOAP requests of clients have some 300."""

MOST_CHUNKS = 256
"""Chunks of one body, the last one included."""

LONGEST_CHUNK_LINE = 128
"""Octets of a chunk's size with its extensions; nobody sends extensions."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4

_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]+)[ \t]*(?:;[^\n]*)?\r?\n")


class RequestOctets:
    """Collects one request, with a body of up to `largest_body` octets.

    `own` is the address and port where it is received: a request without Host can mean this host only. TinyUPnP
    (ESP8266) sends such requests.
    """

    def __init__(self, largest_body: int, own: tuple[str, int]) -> None:
        self._largest_body = largest_body
        self._own = own
        self._octets = bytearray()  # until the head ends: of the head; then of the body
        self._head: Head | None = None
        self._may_continue = False
        self._chunk_at = 0
        self._chunks: list[bytes] = []
        self._held = 0  # octets in these chunks

    def receive(self, octets: bytes) -> bytes | None:
        """Return the request for aiohttp once it has ended; drop what follows it. Raise HttpError to refuse it."""
        searched = max(0, len(self._octets) - _LONGEST_END)
        self._octets += octets if self._octets or self._head else octets.lstrip(b"\r\n")
        if self._head is None:
            ended = _END_OF_HEAD.search(self._octets, searched)
            end = ended.end() if ended else len(self._octets)
            if end > LONGEST_HEAD:
                raise HttpError(400, f"the headers have more than {LONGEST_HEAD} octets", is_sent=False)
            if ended is None:
                return None
            self._head = read_head(bytes(self._octets[: ended.start()]), self._own)
            del self._octets[:end]
            searched = 0
            self._may_continue = self._head.expects_continue
            if self._may_continue and self._head.error:
                raise self._head.error
            if self._may_continue and (self._head.length or 0) > self._largest_body:
                raise self._too_large()
        body = self._chunked_body(searched) if self._head.is_chunked else self._body(self._head.length or 0)
        if body is not None and self._head.error is not None:
            raise self._head.error
        return None if body is None else self._head.canonical(body)

    def cut_off(self) -> HttpError | None:
        """Return the error for a client that ends the connection now, in the middle of a request; None before one."""
        if self._head is None and not self._octets:
            return None
        return HttpError(400, "the connection ended before the request")

    def continues(self) -> bool:
        """Return, once, whether the client waits for CONTINUE before it sends the body (RFC 9110 §10.1.1)."""
        expects, self._may_continue = self._may_continue, False
        return expects

    def _too_large(self) -> HttpError:
        return HttpError(413, f"a body of more than {self._largest_body} octets", is_sent=False)

    def _body(self, length: int) -> bytes | None:
        if len(self._octets) > self._largest_body < length:
            raise self._too_large()
        return bytes(self._octets[:length]) if len(self._octets) >= length else None

    def _chunked_body(self, searched: int) -> bytes | None:
        """Return the data of the chunks when the trailer has ended (RFC 9112 §7.1).

        No trailer ends before `searched`: a client that sends octet by octet has each searched once.
        """
        while (size := self._chunk_size()) is not None:
            octets, begin = int(size[1], 16), size.end()
            if len(self._chunks) >= MOST_CHUNKS - bool(octets):
                raise HttpError(400, f"more than {MOST_CHUNKS} chunks", is_sent=False)
            if octets == 0:
                trailer = _END_OF_HEAD.search(self._octets, max(begin - 1, searched))
                return b"".join(self._chunks) if trailer else None
            end = begin + octets
            if self._held + min(octets, len(self._octets) - begin) > self._largest_body:
                raise self._too_large()
            if not _is_followed_by_line_end(self._octets, end):
                return None
            self._chunks.append(bytes(self._octets[begin:end]))
            self._held += octets
            self._chunk_at = self._octets.index(b"\n", end) + 1
        return None

    def _chunk_size(self) -> re.Match[bytes] | None:
        """Return the line with the size of the next chunk, or None if it has not ended."""
        line_end = self._octets.find(b"\n", self._chunk_at, self._chunk_at + LONGEST_CHUNK_LINE)
        if line_end < 0 and len(self._octets) - self._chunk_at < LONGEST_CHUNK_LINE:
            return None
        size = _CHUNK_SIZE.match(self._octets, self._chunk_at)
        if size is None or size.end() != line_end + 1:
            raise HttpError(400, "a malformed chunk", is_sent=False)
        return size


def _is_followed_by_line_end(octets: bytearray, at: int) -> bool:
    """Return whether a line end follows, or False while that is not known; raise HttpError for anything else."""
    following = bytes(octets[at : at + 2])
    if following.startswith(b"\n") or following == b"\r\n":
        return True
    if following in {b"", b"\r"}:
        return False
    raise HttpError(400, "a chunk that is longer than its size", is_sent=False)
