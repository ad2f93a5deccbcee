"""HTTP as known clients send it: only peers are served, and no connection stays open."""

import asyncio
import gzip
import logging
from ipaddress import IPv4Address, ip_interface

import pytest

from igd.core.mapping import Endpoint, TransportProtocol
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.rate_limit import RateLimit
from igd.core.request import MapPort, Refusal
from igd.endpoints import http_connection, upnp_http
from igd.endpoints.upnp_http import LISTED_AT_ONCE, LISTED_ENTRIES, Listening, UPnPHttp
from igd.wire.upnp import actions, description, former_paths, soap
from tests.endpoints.http_client import (
    CONTROL,
    HANG,
    PORT,
    PRODUCT,
    ROOT,
    WIC,
    call,
    connected,
    connections_are,
    envelope,
    error_code,
    exchange,
    get,
    head,
    http_for,
    parsed,
    subscriptions_for,
)
from tests.gateway_harness import C1, C2, EXTERNAL, SERVER, GatewayHarness, entry, map_port

STRANGER = IPv4Address("10.100.0.9")

EVERYTHING = {"NewStartPort": "1", "NewEndPort": "65535", "NewProtocol": "TCP"}

ADD = {
    "NewRemoteHost": "",
    "NewExternalPort": "8043",
    "NewProtocol": "TCP",
    "NewInternalPort": "8043",
    "NewInternalClient": "10.100.0.2",
    "NewEnabled": "1",
    "NewPortMappingDescription": "<b>&",
    "NewLeaseDuration": "300",
}


pytestmark = [pytest.mark.root, pytest.mark.usefixtures("server")]


# What is served


@pytest.mark.parametrize("path", [*description.DEVICE_PATHS.values(), "/1/WANIPConn1.xml", "/2/WANIPConn1.xml"])
async def test_documents(path: str) -> None:
    answer = await exchange(get(path))
    assert answer.status == 200
    assert answer.headers["Content-Type"] == 'text/xml; charset="utf-8"'
    assert answer.headers["Server"] == PRODUCT
    assert answer.body.startswith("<?xml")
    assert len(answer.body.encode()) == int(answer.headers["Content-Length"])


@pytest.mark.parametrize("path", [*description.DEVICE_PATHS.values(), former_paths.DEVICE_PATH])
async def test_windows_and_xbox_read_version_1_only(path: str) -> None:
    version_1_only = (await exchange(get(description.WITHOUT_FIREWALL_PATH))).body
    for_all = (await exchange(get(path))).body
    assert (await exchange(get(path, "User-Agent: Microsoft-Windows/10.0 UPnP/1.0"))).body == version_1_only
    assert (await exchange(get(path, "USER-AGENT:fdssdp"))).body == version_1_only
    assert (await exchange(get(path, "User-Agent: MiniUPnPc/2.2.4"))).body == for_all != version_1_only


async def test_an_action_is_carried_out_and_answered(harness: GatewayHarness) -> None:
    answer = await exchange(call("AddPortMapping", ADD))
    assert (answer.status, answer.headers["EXT"]) == (200, "")
    assert f'<u:AddPortMappingResponse xmlns:u="{WIC}">' in answer.body
    assert harness.all_equal()
    assert harness.table[TransportProtocol.TCP, 8043].mapping.description == "<b>&"
    answer = await exchange(call("GetExternalIPAddress"))
    assert f"<NewExternalIPAddress>{EXTERNAL}<" in answer.body
    answer = await exchange(call("GetGenericPortMappingEntry", {"NewPortMappingIndex": "0"}))
    assert "<NewPortMappingDescription>&lt;b&gt;&amp;<" in answer.body


async def test_a_client_that_knows_the_urls_of_miniupnpd_goes_on(harness: GatewayHarness) -> None:
    assert (await exchange(get("/rootDesc.xml"))).body == (await exchange(get("/1/device.xml"))).body
    assert (await exchange(call("AddPortMapping", ADD, path="/ctl/IPConn"))).status == 200
    assert (TransportProtocol.TCP, 8043) in harness.table
    common = "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1"
    answer = await exchange(call("GetCommonLinkProperties", path="/ctl/CmnIfCfg", service=common))
    assert answer.status == 200
    headers = (f"CALLBACK: <http://{C1}:9/>", "NT: upnp:event", "TIMEOUT: Second-60")
    assert (await exchange(get("/evt/IPConn", *headers, method="SUBSCRIBE"))).status == 200


async def test_an_action_that_needs_no_gateway_is_answered() -> None:
    assert "<NewNATEnabled>1<" in (await exchange(call("GetNATRSIPStatus"))).body


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"NewInternalClient": str(C2)}, 606),
        ({"NewExternalPort": "80"}, 606),
        ({"NewExternalPort": "65537"}, 601),
        ({"NewProtocol": "SCTP"}, 601),
        ({"NewInternalPort": "x"}, 402),
        ({"NewExternalPort": "2000"}, 718),
    ],
)
async def test_a_refusal_is_a_fault_with_its_code(harness: GatewayHarness, change: dict[str, str], code: int) -> None:
    await harness.ask(map_port(2000, C2), C2)
    before = harness.table
    assert error_code(await exchange(call("AddPortMapping", ADD | change))) == code
    assert harness.table == before
    assert harness.gateway.counters["upnp error", str(code)] == 1


async def test_an_action_of_another_service_is_unknown() -> None:
    assert error_code(await exchange(call("AddPortMapping", ADD, path="/control/WANCommonIFC1"))) == 401
    assert error_code(await exchange(call("Nonsense"))) == 401


async def test_a_large_body_counts_as_several_requests() -> None:
    """15 KB as eight, so that the rate of 100 admits twelve of them."""
    body = envelope("GetExternalIPAddress", {}) + b" " * 15_000
    lines = (f'SOAPAction: "{WIC}#GetExternalIPAddress"', f"content-length: {len(body)}")
    answers = [await exchange(get(CONTROL, *lines, method="POST") + body) for _ in range(13)]
    assert [answer.status for answer in answers] == [200] * 12 + [500]
    assert error_code(answers[-1]) == actions.REFUSALS[Refusal.TOO_MANY_REQUESTS][0]
    assert (await exchange(call("GetExternalIPAddress"))).status == 200, "nothing was counted for the last body"


# How clients send


@pytest.mark.parametrize("header", ["{}", "'{}'", '"{}"'])
async def test_the_action_header_in_any_quotes(header: str) -> None:
    body = envelope("GetExternalIPAddress", {})
    lines = ("soapaction: " + header.format(f"{WIC}#GetExternalIPAddress"), f"content-length: {len(body)}")
    assert (await exchange(get(CONTROL, *lines, method="POST") + body)).status == 200


async def test_a_body_in_many_packets() -> None:
    whole = call("AddPortMapping", ADD)
    assert (await exchange(*(whole[start : start + 50] for start in range(0, len(whole), 50)))).status == 200


async def test_a_chunked_body(harness: GatewayHarness) -> None:
    body = envelope("AddPortMapping", ADD)
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:], b"")]
    assert (await exchange(head("AddPortMapping", "Transfer-Encoding: chunked"), *chunks)).status == 200
    assert len(harness.table) == 1


async def test_expect_100_continue_is_answered() -> None:
    body = envelope("AddPortMapping", ADD)
    async with connected() as (reader, writer):
        writer.write(head("AddPortMapping", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert parsed(await reader.read()).status == 200


# What is junk


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (head("AddPortMapping"), 411),
        (get(CONTROL, "Content-Length: 5", method="POST") + b"<a/>\n", 400),  # no SOAPAction
        (head("AddPortMapping", "Content-Length: 7") + b"not XML", 400),
        (head("AddPortMapping", "Content-Length: 0"), 400),
        (head("AddPortMapping", f"Content-Length: {soap.LARGEST_BODY + 1}") + b" " * (soap.LARGEST_BODY + 1), 413),
        (
            head("AddPortMapping", "Transfer-Encoding: chunked")
            + b"4000\r\n"
            + b" " * 0x4000
            + b"\r\n4\r\n    \r\n0\r\n\r\n",
            413,
        ),
        (get(CONTROL), 405),
        (get("/1/device.xml", method="DELETE"), 405),
        (get("/control/Nothing", method="POST"), 404),
        (get("/etc/passwd"), 404),
        (get("/1/../1/none.xml"), 404),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost: " + b"a" * 10000 + b"\r\n\r\n", 400),
    ],
)
async def test_malformed_and_unknown_requests_are_refused(
    harness: GatewayHarness, request_: bytes, status: int
) -> None:
    answer = await exchange(request_)
    assert answer.status == status
    assert harness.table == {}
    assert harness.gateway.counters == {("http", str(status)): 1}


async def test_why_a_control_request_is_malformed_is_a_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "igd.endpoints.upnp_http")
    assert (await exchange(head("AddPortMapping", "Content-Length: 5") + b"<a/>\n")).status == 400
    assert f"{C1}: malformed control request: not an Envelope with one Body" in caplog.messages


async def test_405_names_the_allowed_method() -> None:
    assert (await exchange(get(CONTROL))).headers["Allow"] == "POST"


async def test_compressed_bodies_are_not_decompressed() -> None:
    """A small body could become a large one, and no known client compresses."""
    packed = gzip.compress(envelope("AddPortMapping", ADD))
    request = head("AddPortMapping", f"Content-Length: {len(packed)}", "Content-Encoding: gzip") + packed
    assert (await exchange(request)).status == 415


# Who may ask


@pytest.mark.parametrize("source", [STRANGER, SERVER])
async def test_an_unknown_source_is_refused(harness: GatewayHarness, source: IPv4Address) -> None:
    for path in ("/", "/1/device.xml", "/none"):
        assert (await exchange(get(path), source=source)).status == 403
    assert error_code(await exchange(call("AddPortMapping", ADD), source=source)) == 606
    assert harness.table == {}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (f"{SERVER}", 200),
        (f"{SERVER}:{PORT}", 200),
        ("", 200),
        (" ", 200),
        ("rebound.example", 403),
        (f"rebound.example:{PORT}", 403),
        ("rebound.example:10.100.0.1", 403),
        ("[fd00::1]:2869", 200),
        ("[fd00::1]", 200),
        ("[fe80::1%25wg0]:2869", 200),
        ("[10.100.0.1]", 403),
        ("[]", 403),
        ("[rebound.example]:2869", 403),
        ("fd00::1", 403),
        ("10.100.0.1.example", 403),
    ],
)
async def test_a_name_in_host_is_refused(host: str, status: int) -> None:
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    assert (await exchange(request)).status == status
    body = envelope("AddPortMapping", ADD)
    lines = (f"Host: {host}", f"SOAPAction: {WIC}#AddPortMapping", f"Content-Length: {len(body)}")
    posted = "\r\n".join((f"POST {CONTROL} HTTP/1.1", *lines)) + "\r\n\r\n"
    assert (await exchange(posted.encode() + body)).status == status


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("size", [1, 7, 10_000], ids=["octet by octet", "in pieces", "at once"])
async def test_a_client_without_host_is_served(harness: GatewayHarness, version: str, size: int) -> None:
    """As TinyUPnP (ESP8266) sends it, with HTTP/1.1."""
    assert (await exchange(f"GET / HTTP/{version}\r\n\r\n".encode())).status == 200
    body = envelope("AddPortMapping", ADD)
    lines = (
        f"POST {CONTROL} HTTP/{version}",
        'Content-Type: text/xml; charset="utf-8"',
        f'SOAPAction: "{WIC}#AddPortMapping"',
        f"Content-Length: {len(body)}",
    )
    request = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
    pieces = (request[start : start + size] for start in range(0, len(request), size))
    assert (await exchange(*pieces)).status == 200
    assert list(harness.table) == [(TransportProtocol.TCP, 8043)]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nUser-Agent: x\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nX-Host: x\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nhOST:10.100.0.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nHost: 10.100.0.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nHost: rebound.example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : rebound.example\r\n\r\n", 403),
        (b"GET /none HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nHost 10.100.0.1\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 4_000 + b"\r\n", 400),
    ],
)
async def test_host_is_added_to_nothing_else(request_: bytes, status: int) -> None:
    assert (await exchange(request_)).status == status


# The page


async def test_the_page_shows_a_peer_its_own_mappings_as_text(harness: GatewayHarness) -> None:
    await harness.ask(map_port(2000, description="<script>alert('{x}')</script>"))
    await harness.ask(map_port(2001, C2), C2)
    answer = await exchange(get("/"))
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert (
        "<td>TCP<td>2000<td>10.100.0.2:8043<td>300<td>&lt;script&gt;alert(&#x27;{x}&#x27;)&lt;/script&gt;"
        in answer.body
    )
    assert str(EXTERNAL) in answer.body
    assert "2001" not in answer.body
    await harness.maintenance.set_addresses(None, [])
    assert "no address yet" in (await exchange(get("/"))).body


# Where it listens, and until when


async def test_closing_does_not_wait_for_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch, harness: GatewayHarness
) -> None:
    monkeypatch.setattr(http_connection, "CONNECTION_SECONDS", 3600.0)
    monkeypatch.setattr(upnp_http, "CLOSE_SECONDS", 3600.0)
    server = http_for(harness)
    await server.listen_on([ip_interface(C2)])
    reader, writer = await asyncio.open_connection(str(C2), PORT, local_addr=(str(C1), 0))
    await connections_are(server, 1)
    async with asyncio.timeout(HANG):
        await server.close()
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(str(C2), PORT)


async def test_a_response_is_finished_while_addresses_change(harness: GatewayHarness) -> None:
    server = http_for(harness)
    await server.listen_on([ip_interface(C2)])
    reader, writer = await asyncio.open_connection(str(C2), PORT, local_addr=(str(C1), 0))
    await connections_are(server, 1)
    await server.listen_on([ip_interface(C2), ip_interface(STRANGER)])
    await server.listen_on([ip_interface(STRANGER)])
    writer.write(get("/"))
    async with asyncio.timeout(HANG):
        assert parsed(await reader.read()).status == 200
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(str(C2), PORT)
    await server.close()


async def test_where_a_peer_reaches_the_server(harness: GatewayHarness) -> None:
    """There where its search arrived, or if nothing is served there, in its own network."""
    server = http_for(harness)
    assert server.endpoint_for(C1, SERVER) is None
    assert await server.listen_on([ip_interface(f"{STRANGER}/32"), ip_interface(f"{C2}/24")]) == []
    assert server.endpoint_for(C1, STRANGER) == Endpoint(STRANGER, PORT)
    assert server.endpoint_for(C1, SERVER) == Endpoint(C2, PORT)
    assert server.endpoints() == [Endpoint(STRANGER, PORT), Endpoint(C2, PORT)]
    await server.close()


async def test_a_port_that_is_taken_is_an_error(harness: GatewayHarness) -> None:
    server = http_for(harness)
    with pytest.raises(OSError, match="in use"):
        await server.listen_on([ip_interface(SERVER)])
    await server.close()


async def test_a_missing_interface_is_an_error(harness: GatewayHarness) -> None:
    server = UPnPHttp(Listening("none", PORT, 1, 1, "igd"), harness.gateway, ROOT, {}, subscriptions_for(harness))
    with pytest.raises(OSError, match="No such device"):
        await server.listen_on([ip_interface(C2)])
    await server.close()


async def test_a_long_list_counts_by_its_length(harness: GatewayHarness, server: UPnPHttp) -> None:
    """A connection, and one request more for each 64 mappings."""
    harness.gateway.policies, harness.gateway.rate_limit = Policies(Policy(max_mappings=200)), RateLimit(1000)
    for port in range(9000, 9000 + 2 * LISTED_ENTRIES):
        mapped = await harness.ask(MapPort(TransportProtocol.TCP, Endpoint(C1, 8080), port, 300))
        assert not isinstance(mapped, Refusal)
    harness.gateway.rate_limit = RateLimit(7)
    first, second, third = [await exchange(call("GetListOfPortMappings", EVERYTHING)) for _ in range(3)]
    assert first.body == second.body
    assert first.body.count("<p:PortMappingEntry>") == 2 * LISTED_ENTRIES
    assert error_code(third) == 501


async def test_a_long_page_counts_by_its_length(harness: GatewayHarness, server: UPnPHttp) -> None:
    await harness.maintenance.start([entry(port) for port in range(9000, 9000 + 2 * LISTED_ENTRIES)], EXTERNAL, [])
    harness.gateway.rate_limit = RateLimit(7)
    first, second, third = [await exchange(get("/")) for _ in range(3)]
    assert (first.status, second.status, third.status) == (200, 200, 429)
    assert first.body == second.body
    assert first.body.count("<tr><td>") == 2 * LISTED_ENTRIES
    assert first.body.endswith("</table>\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_long_list_has_its_length(harness: GatewayHarness, version: str) -> None:
    """So that a client of HTTP/1.0 can read it, too."""
    entries = [entry(port) for port in range(9000, 9000 + 64 * LISTED_AT_ONCE)]
    await harness.maintenance.start(entries, EXTERNAL, [EXTERNAL])
    for request in (call("GetListOfPortMappings", EVERYTHING), get("/"), get("/", method="HEAD")):
        answer = await exchange(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
        assert "Transfer-Encoding" not in answer.headers
        length = 0 if request.startswith(b"HEAD") else int(answer.headers["Content-Length"])
        assert len(answer.body) == length


@pytest.mark.parametrize("asked", [call("GetListOfPortMappings", EVERYTHING), get("/")], ids=["list", "page"])
async def test_other_requests_are_answered_while_long_lists_are_written(harness: GatewayHarness, asked: bytes) -> None:
    """Several at the same time: they take turns."""
    entries = [entry(port) for port in range(9000, 9000 + 64 * LISTED_AT_ONCE)]
    await harness.maintenance.start(entries, EXTERNAL, [EXTERNAL])
    harness.gateway.rate_limit = RateLimit(100_000)
    order: list[str] = []

    async def ask(name: str, request: bytes, source: IPv4Address = C1) -> None:
        assert (await exchange(request, source=source)).status == 200
        order.append(name)

    async def ask_until_listed() -> None:
        while order.count("list") < 3:
            await ask("other", call("GetExternalIPAddress"), C2)

    async with asyncio.timeout(HANG):
        await asyncio.gather(ask_until_listed(), *(ask("list", asked) for _ in range(3)))
    assert order.index("list") > 5
