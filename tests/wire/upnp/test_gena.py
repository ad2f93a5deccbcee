"""Subscriptions and event messages, octet for octet."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from igd.core.mapping import Endpoint
from igd.wire.upnp import gena, xml
from igd.wire.upnp.gena import LONGEST, SHORTEST, Callback, GenaError, Renew, Subscribe

C1, C1_IPV6 = IPv4Address("10.100.0.2"), IPv6Address("2001:db8::2")
SID = "uuid:5c6e8bb0-0f6c-4a55-8a2e-0d1d3c4f6f4b"


def subscribe(*callbacks: str, source: IPv4Address | IPv6Address = C1, **others: str) -> Subscribe | Renew:
    headers = CIMultiDict({"callback": "".join(f"<{each}>" for each in callbacks), "nt": "upnp:event"} | others)
    return gena.decode_subscribe(headers, source)


@pytest.mark.parametrize(
    ("url", "source", "endpoint", "target"),
    [
        ("http://10.100.0.2:49152/event?a=b", C1, Endpoint(C1, 49152), "/event?a=b"),
        ("http://10.100.0.2", C1, Endpoint(C1, 80), "/"),
        ("HTTP://10.100.0.2:80?x", C1, Endpoint(C1, 80), "/?x"),
        (" http://10.100.0.2:80/ ", C1, Endpoint(C1, 80), "/"),
        ("http://10.100.0.2:80/a#b", C1, Endpoint(C1, 80), "/a"),
        ("http://[2001:db8::2]:8058/", C1_IPV6, Endpoint(C1_IPV6, 8058), "/"),
        ("http://[2001:DB8:0:0::2]/", C1_IPV6, Endpoint(C1_IPV6, 80), "/"),
    ],
)
def test_4_1_2_a_callback_is_the_subscribers_own_address(
    url: str, source: IPv4Address | IPv6Address, endpoint: Endpoint, target: str
) -> None:
    assert subscribe(url, source=source) == Subscribe((Callback(endpoint, target),), SHORTEST)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://10.100.0.3:80/",
        "http://60.60.60.254/",
        "http://localhost/",
        "http://c1.example/",
        "http://10.100.0.2.example/",
        "http://user@10.100.0.2/",
        "http://10.100.0.2@60.60.60.254/",
        "http://10.100.0.2:80@60.60.60.254/",
        "https://10.100.0.2/",
        "ftp://10.100.0.2/",
        "//10.100.0.2/",
        "http:10.100.0.2",
        "http://174325762/",  # the same address as one number
        "http://0x0a640002/",
        "http://012.0144.0.2/",
        "http://10.100.2/",
        "http://010.100.0.2/",
        "http://[::ffff:10.100.0.2]/",
        "http://[::ffff:10.100.0.2%25wg0]/",
        "http://10.100.0.2:0/",
        "http://10.100.0.2:65536/",
        "http://10.100.0.2:-1/",
        "http://10.100.0.2:8 0/",
        "http://10.100.0.2:80/a b",
        "http://10.100.0.2:80/a\tb",
        "http://10.100.0.2:80\\@60.60.60.254/",
        f"http://10.100.0.2/{'a' * gena.LONGEST_TARGET}",
    ],
)
def test_4_1_4_no_other_callback_is_used(url: str) -> None:
    """CVE-2020-12695: whatever a URL looks like, it leads to nobody else."""
    with pytest.raises(GenaError) as refused:
        subscribe(url)
    assert refused.value.status == 412
    own = Callback(Endpoint(C1, 1), "/")
    assert subscribe(url, "http://10.100.0.2:1/") == Subscribe((own,), SHORTEST)


def test_a_few_callbacks_are_tried_each_once() -> None:
    urls = [f"http://10.100.0.2:{port}/" for port in (1, 1, 2, 3, 4, 5)]
    wanted = subscribe(*urls)
    assert isinstance(wanted, Subscribe)
    assert [each.endpoint.port for each in wanted.callbacks] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Second-1800", 1800),
        ("second-3600", 3600),
        ("Second-1", SHORTEST),
        ("Second-0", SHORTEST),
        ("Second-86401", LONGEST),
        ("Second-infinite", LONGEST),
        ("infinite", SHORTEST),
        ("Second--5", SHORTEST),
        ("Second-99999999999999999999", SHORTEST),
        ("", SHORTEST),
    ],
)
def test_4_1_1_timeout(text: str, seconds: int) -> None:
    wanted = subscribe("http://10.100.0.2/", timeout=text)
    assert wanted.seconds == seconds
    assert gena.decode_subscribe({"SID": SID, "TIMEOUT": text}, C1) == Renew(SID, seconds)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 412),
        ({"NT": "upnp:event"}, 412),
        ({"CALLBACK": "<http://10.100.0.2/>"}, 412),
        ({"CALLBACK": "<http://10.100.0.2/>", "NT": "upnp:rootdevice"}, 412),
        ({"CALLBACK": "http://10.100.0.2/", "NT": "upnp:event"}, 412),
        ({"SID": SID, "NT": "upnp:event"}, 400),
        ({"SID": SID, "CALLBACK": "<http://10.100.0.2/>"}, 400),
        ({"SID": ""}, 412),
        ({"SID": "5c6e8bb0"}, 412),
        ({"SID": "uuid:a b"}, 412),
    ],
)
def test_4_1_4_errors_of_subscribe(headers: dict[str, str], status: int) -> None:
    with pytest.raises(GenaError) as refused:
        gena.decode_subscribe(CIMultiDict(headers), C1)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 412), ({"SID": SID, "NT": "upnp:event"}, 400), ({"SID": "none"}, 412)]
)
def test_4_1_4_errors_of_unsubscribe(headers: dict[str, str], status: int) -> None:
    assert gena.decode_unsubscribe({"SID": f" {SID} "}) == SID
    with pytest.raises(GenaError) as refused:
        gena.decode_unsubscribe(CIMultiDict(headers))
    assert refused.value.status == status


@given(st.text(), st.text(), st.text(), st.text())
def test_any_headers_are_a_request_or_an_error(callback: str, nt: str, sid: str, timeout: str) -> None:
    for headers in ({"CALLBACK": callback, "NT": nt, "TIMEOUT": timeout}, {"SID": sid, "TIMEOUT": timeout}):
        try:
            wanted = gena.decode_subscribe(headers, C1)
        except GenaError as error:
            assert error.status in {400, 412}  # noqa: PT017 - any other exception fails the test
        else:
            assert SHORTEST <= wanted.seconds <= LONGEST


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://10.100.0.2:49152/a/../%7E//b?c=%zz&d", "/a/../%7E//b?c=%zz&d", "10.100.0.2:49152"),
        ("http://[2001:db8:0::2]", "/", "[2001:db8::2]:80"),
        ("http://10.100.0.2/[a\\b]{}|^`'\"?", "/[a\\b]{}|^`'\"?", "10.100.0.2:80"),
    ],
)
def test_4_3_2_an_event(url: str, line: str, host: str) -> None:
    """Its target is what the subscriber gave, octet for octet."""
    subscribed = subscribe(url, source=C1_IPV6 if "[2001" in url else C1)
    assert isinstance(subscribed, Subscribe)
    assert (
        gena.encode_notify(subscribed.callbacks[0], SID, 0, b"<body/>")
        == (
            f"NOTIFY {line} HTTP/1.1\r\nHOST: {host}\r\n"
            'CONTENT-TYPE: text/xml; charset="utf-8"\r\nCONTENT-LENGTH: 7\r\n'
            f"NT: upnp:event\r\nNTS: upnp:propchange\r\nSID: {SID}\r\nSEQ: 0\r\nCONNECTION: close\r\n\r\n<body/>"
        ).encode()
    )


def test_4_3_2_the_body_of_an_event() -> None:
    root = xml.parse(gena.encode_event({"ExternalIPAddress": "60.60.60.1", "Note": "<a> & b"}))
    assert root.name == "propertyset"
    assert root.namespace == "urn:schemas-upnp-org:event-1-0"
    assert [child.name for child in root.children] == ["property", "property"]
    assert [(value.name, value.text) for child in root.children for value in child.children] == [
        ("ExternalIPAddress", "60.60.60.1"),
        ("Note", "<a> & b"),
    ]


def test_4_3_2_the_event_key_wraps_to_1() -> None:
    assert [gena.next_seq(seq) for seq in (0, 1, 2**32 - 2, 2**32 - 1)] == [1, 2, 2**32 - 1, 1]


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.0 200\r\n\r\n<html>", 200),
        (b"HTTP/1.1 200 OK\n\n", 200),
        (b"HTTP/1.1 412 Precondition Failed\r\n\r\n", 412),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.1 100 Continue\r\nA: HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", None),
        (b"HTTP/1.1 2000 OK\r\n\r\n", None),
        (b"HTTP/1.1 099 OK\r\n\r\n", None),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", None),
        (b"NOTIFY / HTTP/1.1 200 OK\r\n\r\n", None),
        (b"", None),
    ],
)
def test_4_3_2_the_status_of_an_answer(received: bytes, status: int | None) -> None:
    assert gena.decode_answer(received) == status
