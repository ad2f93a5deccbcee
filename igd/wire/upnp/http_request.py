"""The octets of one HTTP request: where it ends, and what aiohttp is not to see of it (RFC 9112)."""

import re

LONGEST_HEAD = 16 * 1024
"""Octets of request line and headers; the SOAP requests of clients have some 300."""

MOST_CHUNKS = 256
"""Chunks of one body, the last one included. To read 16 KB in chunks of one octet would take 20 ms."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REFUSED = b"\0\r\n\r\n"
"""Appended to a head that is too long: no header may contain NUL (RFC 9110 §5.5), so aiohttp responds 400."""

_EMPTY_LINE = b"\r\n"
"""Appended to a request: it is ignored there (RFC 9112 §2.2), and inside what a parser takes for a part of a request,
such as HTTP/2's preface, it is an error. So aiohttp always responds."""

_NO_CHUNK = b"-"
"""Replaces malformed chunks, and those above MOST_CHUNKS: none begins like this, so aiohttp responds 400. It accepts
longer extensions than we do, and would wait for the rest of such a chunk."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4

_VERSION_1_1 = re.compile(rb"[^\r\n]+ HTTP/1\.1\r?\n")
_HOST = re.compile(rb"\nhost[ \t]*:", re.IGNORECASE)
_EXPECT_CONTINUE = re.compile(rb"(?<=\n)expect:[ \t]*100-continue[ \t]*\r?\n", re.IGNORECASE)
# possessive: each of thousands of zeros would be tried as the first digit
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*+(?=[0-9])0*+([0-9]{0,20})[ \t]*+\r?\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding:[ \t]*chunked[ \t]*\r?\n", re.IGNORECASE)

_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})([ \t;][^\r\n]{0,64})?\r\n")
_BEGUN_CHUNK_SIZE = re.compile(rb"|[0-9a-fA-F]{1,16}([ \t;][^\r\n]{0,64})?\r?")


class RequestOctets:
    """Collects one request, with a body of up to `largest_body` octets.

    `own` is the address and port where it is received. A request of HTTP/1.1 without Host, which aiohttp would refuse
    (RFC 9112 §3.2), gets it as its Host: TinyUPnP (ESP8266) sends such requests, and they can mean one host only.
    """

    def __init__(self, largest_body: int, own: tuple[str, int]) -> None:
        self._largest_body = largest_body
        self._own = own
        self._octets = bytearray()
        self._body_at: int | None = None  # where the head ends
        self._length: int | None = None  # of the body; None: it is in chunks
        self._chunk_at = 0
        self._in_chunks = 0  # octets of the body in the chunks before that
        self._chunks = 0  # how many these are
        self._expects_continue = False

    def receive(self, octets: bytes) -> bytes | None:
        """Return the request for aiohttp once it has ended, or is certain to be refused; drop what follows it."""
        searched = max(0, len(self._octets) - _LONGEST_END)
        self._octets += octets if self._octets else octets.lstrip(b"\r\n")
        if self._body_at is None:
            end_of_head = _END_OF_HEAD.search(self._octets, searched)
            if end_of_head is None:
                return bytes(self._octets) + _REFUSED if len(self._octets) > LONGEST_HEAD else None
            self._read_head(end_of_head.end())
        end = self._end_of_chunks(searched) if self._length is None else self._end_of_length(self._length)
        if end is None:
            return None
        head, body = bytes(self._octets[: self._body_at]), bytes(self._octets[self._body_at : end])
        return _with_host(_EXPECT_CONTINUE.sub(b"", head), self._own) + body + _EMPTY_LINE

    def continues(self) -> bool:
        """Return, once, whether the client waits for CONTINUE before it sends the body (RFC 9110 §10.1.1)."""
        expects, self._expects_continue = self._expects_continue, False
        return expects

    def _read_head(self, end: int) -> None:
        self._body_at = self._chunk_at = end
        head = bytes(self._octets[:end])
        length, chunked = _LENGTH.search(head), _CHUNKED.search(head)
        if length or not chunked:
            self._length = int(length[1] or 0) if length and not chunked else 0  # with both, it is refused
        self._expects_continue = bool(_VERSION_1_1.match(head) and _EXPECT_CONTINUE.search(head))

    def _end_of_length(self, length: int) -> int | None:
        assert self._body_at is not None
        end = self._body_at + min(length, self._largest_body + 1)
        return end if len(self._octets) >= end else None

    def _end_of_chunks(self, searched: int) -> int | None:
        """Return where the last chunk and its trailer end (RFC 9112 §7.1), or the malformed chunks.

        No trailer ends before `searched`: a client that sends octet by octet has each searched once.
        """
        while self._chunks < MOST_CHUNKS and (size := _CHUNK_SIZE.match(self._octets, self._chunk_at)):
            octets = int(size[1], 16)
            if octets == 0:
                trailer = _END_OF_HEAD.search(self._octets, max(size.end() - 2, searched))
                return trailer.end() if trailer else None
            end = size.end() + octets + 2
            if self._in_chunks + min(octets, len(self._octets) - size.end()) > self._largest_body:
                return len(self._octets)
            if end > len(self._octets):
                return None
            self._chunk_at = end
            self._in_chunks += octets
            self._chunks += 1
        if self._chunks < MOST_CHUNKS and _BEGUN_CHUNK_SIZE.fullmatch(self._octets, self._chunk_at):
            return None
        self._octets[self._chunk_at :] = _NO_CHUNK
        return len(self._octets)


def _with_host(head: bytes, own: tuple[str, int]) -> bytes:
    line = _VERSION_1_1.match(head)
    if line is None or _HOST.search(head):
        return head
    address, port = own[:2]
    host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return head[: line.end()] + f"Host: {host}\r\n".encode() + head[line.end() :]
