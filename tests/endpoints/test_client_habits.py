"""What clients send otherwise than the standards say is served through HTTP, or refused with a reason and no change."""

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.upnp import soap
from tests.endpoints.http_client import CONTROL, PORT, WIC, Answer, connected, envelope, exchange, get, parsed
from tests.endpoints.test_upnp_http import ADD
from tests.gateway_harness import SERVER, GatewayHarness

BODY = envelope("AddPortMapping", ADD)
ACTION = f'SOAPAction: "{WIC}#AddPortMapping"'
XML = "Content-Type: text/xml"


pytestmark = [pytest.mark.root, pytest.mark.usefixtures("server")]


def post(*headers: str, target: str = CONTROL, method: str = "POST", body: bytes = BODY) -> bytes:
    return get(target, *headers, f"Content-Length: {len(body)}", method=method) + body


SERVED = {
    "as it should be": post(ACTION, XML),
    "a SOAPAction in one case": post(ACTION.replace("SOAPAction", "soapaction")),
    "one quote": post(ACTION.removesuffix('"')),
    "spaces in the quotes": post(f'SOAPAction: " {WIC}#AddPortMapping "'),
    "the action in lower case": post(f"SOAPAction: {WIC}#addportmapping"),
    "an empty SOAPAction": post('SOAPAction: ""'),
    "no SOAPAction": post(XML),
    "SOAP 1.2": post(
        f'Content-Type: application/soap+xml; charset=utf-8; action="{WIC}#AddPortMapping"',
        body=BODY.replace(soap.ENVELOPE.encode(), b"http://www.w3.org/2003/05/soap-envelope"),
    ),
    "M-POST": post(f'MAN: "{soap.ENVELOPE}"; ns=01', f"01-{ACTION}", method="M-POST"),
    "a method in lower case": post(ACTION, method="post"),
    "an absolute target": post(ACTION, target=f"http://{SERVER}:{PORT}{CONTROL}"),
    "double slashes": post(ACTION, target=f"/{CONTROL}"),
    "a slash behind": post(ACTION, target=f"{CONTROL}/"),
    "a query and a fragment": post(ACTION, target=f"{CONTROL}?a=b#c"),
    "percent-encoded": post(ACTION, target=CONTROL.replace("W", "%57")),
    "line feeds": post(ACTION).replace(b"\r\n", b"\n"),
    "HTTP/1.0": post(ACTION).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a folded header": post(ACTION.replace(": ", ":\r\n ")),
    "a space before the colon": post(ACTION.replace(":", " :", 1)),
    "equal lengths": post(ACTION, f"Content-Length: {len(BODY)}"),
    "another expectation": post(ACTION, "Expect: 200-ok"),
    "headers for others": post(
        ACTION, "Connection: Upgrade", "Upgrade: h2c", "Range: bytes=0-1", "Accept-Encoding: gzip, br", "Cookie: \xe9"
    ),
    "a long User-Agent": post(ACTION, "User-Agent: " + "a" * 9_000),
    "a body with a line end that is not counted": post(ACTION) + b"\r\n",
    "a line break before the declaration": post(ACTION, body=b'\r\n<?xml version="1.0"?>' + BODY),
    "no declared prefix": post(ACTION, body=BODY.replace(f' xmlns:u="{WIC}"'.encode(), b"")),
    "a zero behind": post(ACTION, body=BODY + b"\0"),
    "UTF-16": post(ACTION, body=BODY.decode().encode("utf-16")),
}


@pytest.mark.parametrize("request_", SERVED.values(), ids=SERVED)
async def test_what_is_unambiguous_is_served(harness: GatewayHarness, request_: bytes) -> None:
    answer = await exchange(request_)
    assert (answer.status, answer.headers["EXT"]) == (200, "")
    assert f'<u:AddPortMappingResponse xmlns:u="{WIC}">' in answer.body
    assert list(harness.table) == [(TransportProtocol.TCP, 8043)]


DESCRIPTIONS = {
    b"Tom & Jerry": "Tom & Jerry",
    "Bj\xf6rn".encode("latin-1"): "Bj\xf6rn",
    b"a\0b\x1b": "a\ufffdb\ufffd",
    b"&uuml;&nbsp;": "\xfc\xa0",
    b"<![CDATA[<&]]>": "<&",
}


@pytest.mark.parametrize(("written", "description"), DESCRIPTIONS.items())
async def test_descriptions_as_they_are_written(harness: GatewayHarness, written: bytes, description: str) -> None:
    body = BODY.replace(b"&lt;b&gt;&amp;", written)
    assert body != BODY
    assert (await exchange(post(ACTION, body=body))).status == 200
    assert harness.table[TransportProtocol.TCP, 8043].mapping.description == description


REFUSED = {
    "another action in the header": (post(f"SOAPAction: {WIC}#DeletePortMapping"), 400, "different actions"),
    "another version in the header": (post(ACTION.replace("Connection:1", "Connection:2")), 400, "different actions"),
    "two actions in the headers": (post(ACTION, ACTION.replace("Add", "Delete")), 400, "SOAPAction has two values"),
    "no SOAPAction, no type": (post(), 400, "neither a SOAPAction"),
    "no SOAPAction, as a form sends": (post("Content-Type: text/plain"), 400, "neither a SOAPAction"),
    "no SOAPAction, no service type": (
        post(XML, body=BODY.replace(f' xmlns:u="{WIC}"'.encode(), b"")),
        400,
        "names a service type",
    ),
    "two envelopes": (post(ACTION, body=BODY * 2), 400, "not XML"),
    "an unclosed tag": (post(ACTION, body=BODY.replace(b"</NewEnabled>", b"")), 400, "not XML"),
    "a DOCTYPE": (post(ACTION, body=b"<!DOCTYPE x>" + BODY), 400, "DOCTYPE"),
    "an unknown entity": (post(ACTION, body=BODY.replace(b"&lt;", b"&bomb;")), 400, "undefined entity"),
    "a compressed body": (post(ACTION, "Content-Encoding: gzip"), 415, "Content-Encoding"),
    "two lengths": (post(ACTION, "Content-Length: 7"), 400, "one number"),
    "a length and chunks": (post(ACTION, "Transfer-Encoding: chunked"), 400, "both"),
    "a length below the body's": (
        get(CONTROL, ACTION, f"Content-Length: {len(BODY) - 3}", method="POST") + BODY,
        400,
        "not XML",
    ),
    "no length": (get(CONTROL, ACTION, method="POST"), 411, "Content-Length"),
    "an absolute target with a name": (post(ACTION, target=f"http://rebound.example{CONTROL}"), 403, "address"),
    "another method": (post(ACTION, method="PUT"), 405, "Method Not Allowed"),
    "an unknown method": (post(ACTION, method="SHOUT"), 501, "method"),
    "a header without a colon": (post(ACTION, "X"), 400, "not a header"),
}


@pytest.mark.parametrize(("request_", "status", "reason"), REFUSED.values(), ids=REFUSED)
async def test_what_could_mean_two_things_is_refused_counted_and_changes_nothing(
    harness: GatewayHarness, request_: bytes, status: int, reason: str
) -> None:
    answer = await exchange(request_)
    assert answer.status == status
    assert reason in answer.body
    assert harness.table == {}
    assert harness.gateway.counters == {("http", str(status)): 1}


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost", post(ACTION)[:-1]], ids=["in the head", "in the body"])
async def test_a_request_that_is_cut_off_is_refused(harness: GatewayHarness, sent: bytes) -> None:
    answer = await sent_and_ended(sent)
    assert (answer.status, answer.body) == (400, "the connection ended before the request\n")
    assert harness.table == {}


async def sent_and_ended(sent: bytes) -> Answer:
    async with connected() as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        return parsed(await reader.read())


async def test_a_client_is_not_told_to_continue_before_a_refusal() -> None:
    async with connected() as (reader, writer):
        writer.write(get(CONTROL, ACTION, "Expect: 100-Continue", "Content-Length: 999999", method="POST"))
        assert parsed(await reader.read()).status == 413


@pytest.mark.parametrize("method", ["HEAD", "head"])
async def test_the_head_of_a_document(method: str) -> None:
    answer = await exchange(get("/1/device.xml", "If-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT", method=method))
    assert (answer.status, answer.body) == (200, "")
    assert int(answer.headers["Content-Length"]) > 1_000


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("OPTIONS", CONTROL, "POST"), ("OPTIONS", "/1/device.xml", "GET,HEAD")]
)
async def test_a_method_that_is_not_allowed_is_told_which_are(method: str, path: str, allowed: str) -> None:
    """A browser that asks with OPTIONS whether a page may send a SOAPAction is not allowed it."""
    answer = await exchange(get(path, "Origin: http://evil.example", method=method))
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert not any(name.startswith("Access-Control") for name in answer.headers)
