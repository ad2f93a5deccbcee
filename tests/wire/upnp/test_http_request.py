"""One request is found in the octets of a connection, however they are divided."""

import random
import time
import timeit

import pytest

from igd.wire.upnp import http_request
from igd.wire.upnp.http_head import HttpError
from igd.wire.upnp.http_request import LONGEST_HEAD, MOST_CHUNKS, RequestOctets

OWN = ("10.100.0.1", 2869)
LARGEST = 100
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(length: object, body: bytes = b"") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode() + body


def received(octets: bytes, size: int = 1_000_000, largest: int = LARGEST) -> bytes | int | None:
    """Return what becomes of octets that arrive in pieces of this size; a status if they are refused."""
    request = RequestOctets(largest, OWN)
    for start in range(0, len(octets), size):
        try:
            found = request.receive(octets[start : start + size])
        except HttpError as error:
            return error.status
        if found is not None:
            return found
    return None


WHOLE = {
    "without a body": (GET, GET),
    "a body": (post(5, b"abcde"), post(5, b"abcde")),
    "an empty body": (post(0), post(0)),
    "a length in other letters": (b"POST / HTTP/1.1\r\nHost:a\r\ncontent-LENGTH:3  \r\n\r\nabc", post(3, b"abc")),
    "bare line feeds": (b"GET / HTTP/1.1\nX: a\nHost: a\n\n", GET),
    "chunks": (CHUNKED + b"3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n", post(13, b"abc0123456789")),
    "no chunk": (CHUNKED + b"0\r\n\r\n", post(0)),
    "a trailer": (CHUNKED + b"1\r\na\r\n0\r\nX: y\r\n\r\n", post(1, b"a")),
    "line ends in chunks": (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", post(4, b"\r\n\r\n")),
    "bare line feeds around chunks": (CHUNKED + b"2\n\r\n\n0\n\n", post(2, b"\r\n")),
    "spaces around a size": (CHUNKED + b" 1 \r\na\r\n000 \r\n\r\n", post(1, b"a")),
    "the largest body": (post(LARGEST, b"a" * LARGEST), post(LARGEST, b"a" * LARGEST)),
    "the largest body in chunks": (CHUNKED + b"1\r\na\r\n" * LARGEST + b"0\r\n\r\n", post(LARGEST, b"a" * LARGEST)),
    "no number": (post("many"), 400),
    "two kinds of length": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "another coding": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "an error before a body": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nHost: a\r\nHost: b\r\n\r\nabc", 400),
    "an unknown expectation": (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", GET),
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 1_000_000])
@pytest.mark.parametrize(("octets", "found"), WHOLE.values(), ids=WHOLE.keys())
def test_a_request_ends_where_it_says(octets: bytes, found: bytes | int, size: int) -> None:
    assert received(octets, size) == found
    assert received(b"\r\n\r\n" + octets, size) == found
    assert received(octets + GET * 1_000, size) == found
    assert received(octets[:-1], size) is None


@pytest.mark.parametrize(
    "chunks",
    [b"x\r\n", b"\r\n", b"-1\r\n", b"1 1\r\na\r\n", b"1\r\nab\r\n0\r\n\r\n", b"3\r\nabcx", b"1" + b";" * 200],
)
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_malformed_chunks_are_not_waited_for(chunks: bytes, size: int) -> None:
    assert received(CHUNKED + chunks, size) == 400


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\nX: ", CHUNKED + b"1\r\na\r\n0\r\nX: "], ids=["head", "trailer"])
def test_octet_by_octet_each_is_searched_once(octets: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    class Pattern:
        def search(self, octets: bytearray, start: int) -> object:
            searches.append(len(octets) - start)
            return end_of_head.search(octets, start)

    end_of_head = http_request._END_OF_HEAD
    monkeypatch.setattr(http_request, "_END_OF_HEAD", Pattern())
    assert received(octets + b"a" * 10_000, 1) is None
    assert len(searches) > 10_000
    assert max(searches) <= 5


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_body_that_is_too_large_is_not_waited_for(size: int) -> None:
    head = post(10**17)
    assert received(head + b"a" * LARGEST, size) is None
    assert received(head + b"a" * (LARGEST + 1), size) == 413
    assert received(CHUNKED + b"99\r\n" + b"a" * 0x99, size) == 413
    assert received(CHUNKED + b"60\r\n" + b"a" * 0x60 + b"\r\n60\r\n" + b"a" * 0x60, size) == 413


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_chunks_are_counted(size: int) -> None:
    """One chunk more than may be makes the body malformed, wherever the pieces end."""
    most = CHUNKED + b"1\r\na\r\n" * (MOST_CHUNKS - 1) + b"0\r\n\r\n"
    assert received(most, size, MOST_CHUNKS) == post(MOST_CHUNKS - 1, b"a" * (MOST_CHUNKS - 1))
    assert received(CHUNKED + b"1\r\na\r\n" * MOST_CHUNKS, size, 2 * MOST_CHUNKS) == 400


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: " + b"0" * 16_000 + b"x\r\n",
        b"Content-Length: 0" + b" " * 16_000 + b"x\r\n",
        b"Content-Length: " + b"5," * 8_000 + b"5\r\n",
        (b"Content-Length: " + b"0" * 300 + b"x\r\n") * 50,
        (b"Transfer-Encoding: chunked" + b" " * 300 + b"x\r\n") * 48,
        (b"Expect: 100-continue" + b"\t" * 300 + b"x\r\n") * 49,
        (b"Host" + b" " * 300) * 50 + b"\r\n",
        b"X: a\r\n" + b" \r\n" * 5_000,
    ],
    ids=["zeros", "spaces", "list", "lengths", "encodings", "expectations", "hosts", "folds"],
)
def test_headers_take_no_longer_than_others_to_search(header: bytes) -> None:
    """With one backtracking expression, 16 KB of zeros took 10 ms; they take 0.1 ms, and a list of lengths 2 ms."""
    octets = b"POST / HTTP/1.1\r\n" + header + b"\r\n"
    assert len(octets) <= LONGEST_HEAD
    assert min(timeit.repeat(lambda: received(octets), timer=time.process_time, number=1, repeat=5)) < 0.02


@pytest.mark.parametrize(("text", "length"), [(b"0", 0), (b"000", 0), (b"007", 7), (b"0" * 1000 + b"5", 5)])
def test_leading_zeros_of_a_length(text: bytes, length: int) -> None:
    whole = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + text + b"\r\n\r\n" + b"a" * length
    assert received(whole + b"b") == post(length, b"a" * length)


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_head_that_is_too_long_is_refused(end: bytes) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * LONGEST_HEAD + end
    for size in (7, 1_000, 1_000_000):
        assert received(head, size) == 400


def test_the_client_is_to_continue_once_and_only_before_its_body() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nEXPECT:100-Continue\r\nContent-Length: 3\r\n\r\n"
    request = RequestOctets(LARGEST, OWN)
    assert request.receive(head[:-1]) is None
    assert not request.continues()
    assert request.receive(head[-1:]) is None
    assert [request.continues(), request.continues()] == [True, False]
    assert request.receive(b"abc") == post(3, b"abc")
    assert received(head + b"abc") == post(3, b"abc")


@pytest.mark.parametrize(("header", "status"), [(b"Content-Length: 101", 413), (b"Host: b", 400)])
def test_a_client_whose_request_is_refused_is_not_to_continue(header: bytes, status: int) -> None:
    assert received(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + header + b"\r\n\r\n") == status


def test_a_client_of_http_1_0_is_not_to_continue() -> None:
    request = RequestOctets(LARGEST, OWN)
    assert request.receive(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n") is None
    assert not request.continues()


def test_where_a_request_is_cut_off() -> None:
    request = RequestOctets(LARGEST, OWN)
    assert request.cut_off() is None, "nothing was sent"
    for piece in (b"\r\n", b"GET", b" / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", b"ab"):
        assert request.receive(piece) is None
        assert (request.cut_off() is None) == (piece == b"\r\n")


def test_any_octets_in_any_pieces_have_one_result() -> None:
    rng = random.Random(1)
    parts = [GET, CHUNKED, post(5), b"\r\n", b"\n", b"0", b"3\r\n", b"abc", b"Expect: 100-continue\r\n", b"\xff", b";"]
    for _ in range(3_000):
        octets = b"".join(rng.choices(parts, k=rng.randint(1, 8)))
        assert received(octets) == received(octets, 1)
