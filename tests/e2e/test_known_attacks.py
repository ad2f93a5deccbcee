"""Messages that crashed or misused other servers of these protocols, sent to this one by a peer; docs/threats.md."""

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e.control import add, body, exchange, head, post
from tests.e2e.pcp_client import connected
from tests.e2e.serving import C1, GATEWAY, everything, serving, upnpc
from tests.lab import PATIENCE, Lab, Process
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

GROUP = "239.255.255.250:1900"
SEARCH = f'M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nMAN: "ssdp:discover"\r\nST: upnp:rootdevice\r\n\r\n'.encode()
GET_ADDRESS = body("GetExternalIPAddress")
LENGTH = {"Content-Length": len(GET_ADDRESS)}
CHUNKED = {"Transfer-Encoding": "chunked"}
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"


@pytest.fixture(scope="module")
def running(root: None) -> Iterator[tuple[Lab, Process]]:
    """A lab with igd and a mapping of c1."""
    needs("upnpc", "nft")
    with Lab() as lab, serving(lab) as process:
        upnpc(lab.c1, "-r", "9100", "tcp")
        yield lab, process


@pytest.fixture
def served(running: tuple[Lab, Process]) -> Iterator[Lab]:
    """The lab; at the end igd serves its peers as before, holds what it held, and has logged no error."""
    lab, process = running
    before, lines = everything(lab), len(process.lines)
    yield lab
    assert post(lab.c2, "GetExternalIPAddress", GET_ADDRESS).status == 200
    assert everything(lab) == before
    assert not [line for line in process.lines[lines:] if not line.startswith(("INFO", "DEBUG"))]


def _search(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("latin-1")


SSDP = {
    "the value of ST does not end (CVE-2013-0229)": _search(f"M-SEARCH * HTTP/1.1\nHost:{GROUP}\nST:uuid:schemas:x"),
    "ST and MX share a line": _search(f"M-SEARCH * HTTP/1.1\nHost:{GROUP}\nST:uuid:schemas:device:MX:3< /p>\n\n"),
    "ST is empty": _search(f'M-SEARCH * HTTP/1.1\nHost:{GROUP}\nMAN:"ssdp:discover"\nMX:1\nST:\n\n'),
    "only the method": b"M-SEARCH",
    "a long service type (CVE-2012-5958)": _search(
        f'M-SEARCH * HTTP/1.1\nHost:{GROUP}\nMAN:"ssdp:discover"\nST:uuid:schemas:device:{"A" * 600}:urn:\n\n'
    ),
    "a long UUID (CVE-2012-5959)": _search(
        f'M-SEARCH * HTTP/1.1\nHost:{GROUP}\nMAN:"ssdp:discover"\nST:uuid:{"A" * 600}::urn:\n\n'
    ),
    "MX beyond every integer": _search(
        f'M-SEARCH * HTTP/1.1\nHost:{GROUP}\nMAN:"ssdp:discover"\nMX:{"9" * 400}\nST:upnp:rootdevice\n\n'
    ),
    "MX is negative": _search(f'M-SEARCH * HTTP/1.1\nHost:{GROUP}\nMAN:"ssdp:discover"\nMX:-1\nST:ssdp:all\n\n'),
    "an announcement with an endless LOCATION (CVE-2001-0877)": _search(
        f"NOTIFY * HTTP/1.1\nHost:{GROUP}\nNT:upnp:rootdevice\nNTS:ssdp:alive\nLOCATION:http://{C1}:19/\n\n"
    ),
    "one octet": b"\0",
    "nothing": b"",
}


def test_searches_that_crashed_other_servers(served: Lab) -> None:
    with served.c1.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect((GATEWAY, 1900))
        for datagram in SSDP.values():
            client.send(datagram)
        client.send(SEARCH)
        while b"ST: upnp:rootdevice" not in client.recv(4096):  # ssdp:all has other answers before it
            pass


def test_a_soap_action_that_overflowed_a_buffer(served: Lab) -> None:
    """CVE-2013-0230: a name of 2,100 octets, with and without quotes."""
    name = "A" * 2100
    for value in (f'"{control.SERVICE}#{name}"', f"n:schemas-upnp-org:service:WANIPConnection:1#{name}"):
        assert exchange(served.c1, head("", {"SOAPAction": value, **LENGTH}) + GET_ADDRESS).status in {400, 500}


@pytest.mark.parametrize(
    ("value", "status"),
    [
        *(("'", 200), ('"', 200), ("''", 200)),  # it names nothing, and the body names the action
        *(("#", 400), ("'#'", 400), ('"urn:', 400), ("urn:#", 400), (f'"{control.SERVICE}#', 400)),
    ],
)
def test_a_soap_action_of_quotes(served: Lab, value: str, status: int) -> None:
    """CVE-2026-5720: the length of a value that is one quote became negative."""
    assert exchange(served.c1, head("", {"SOAPAction": value, **LENGTH}) + GET_ADDRESS).status == status


@pytest.mark.parametrize(
    "content",
    [
        b"<",
        b"<a",
        b"<a ",
        b'<a b="',
        b"<a><![CDATA[",
        b"<a><!--",
        b"<?",
        b"</",
        b"<a/><b/>",
        GET_ADDRESS[:-12],
        b"\xff\xfe<",
    ],
)
def test_xml_that_ends_in_the_middle(served: Lab, content: bytes) -> None:
    """CVE-2017-1000494: the parser read behind the end, and the second request used what the first one left."""
    for _ in range(2):
        assert post(served.c1, "GetExternalIPAddress", content).status == 400


@pytest.mark.parametrize("method", ["POST", "SUBSCRIBE", "UNSUBSCRIBE", "NOTIFY"])
def test_requests_without_content(served: Lab, method: str) -> None:
    """CVE-2009-2174: an empty control or subscription message."""
    request = f"{method} {control.PATH} HTTP/1.1\r\nHost: {GATEWAY}:2869\r\n\r\n".encode()
    assert exchange(served.c1, request).status in {400, 405, 411}


def test_a_subscription_sends_nothing_to_other_hosts(served: Lab) -> None:
    """CallStranger, CVE-2020-12695; a CALLBACK of 10,000 octets leaked memory of another server (CVE-2019-12107)."""
    with served.c2.socket(socket.AF_INET, socket.SOCK_STREAM) as victim:
        victim.bind(("", 8080))
        victim.listen()
        victim.setblocking(False)  # noqa: FBT003 - the standard library's signature
        for callback in ("http://10.100.0.3:8080/", f"http://10.100.0.3:8080/{'A' * 10_000}"):
            fields = f"Host: {GATEWAY}:2869\r\nCALLBACK: <{callback}>\r\nNT: upnp:event\r\nTIMEOUT: Second-1800\r\n"
            for path in (control.PATH, "/event/WANIPConn1", "/"):
                assert exchange(served.c1, f"SUBSCRIBE {path} HTTP/1.1\r\n{fields}\r\n".encode()).status in range(
                    400, 500
                )
        with pytest.raises(BlockingIOError):
            victim.accept()


def test_firewall_actions_without_arguments(served: Lab) -> None:
    """CVE-2019-12108 and -12109: GetOutboundPinholeTimeout without ports."""
    action = "GetOutboundPinholeTimeout"
    for service in (control.SERVICE, FIREWALL):
        content = body(action).replace(control.SERVICE.encode(), service.encode())
        fields = {"SOAPAction": f'"{service}#{action}"', "Content-Length": len(content)}
        assert b"<errorCode>401</errorCode>" in exchange(served.c1, head("", fields) + content).rest


@pytest.mark.parametrize("name", ["ExternalPort", "Protocol", "InternalPort"])
@pytest.mark.parametrize("value", ["", " ", "\0", "%s%n", "-1", "0x1F90", "9" * 5000])
def test_mappings_with_a_bad_argument(served: Lab, name: str, value: str) -> None:
    """CVE-2019-12110: AddPortMapping with an argument that cannot be read."""
    assert add(served.c1, {name: value}) in {400, 402, 600, 601, 605, 716, 732}


@pytest.mark.parametrize("size", [b"-1", b"ffffffffffffffff", b"80000000", b"0x10", b"+5", b"5;" + b"a" * 9000, b""])
def test_chunks_of_impossible_size(served: Lab, size: bytes) -> None:
    """CVE-2020-28926: a negative size of a chunk."""
    with control.connect(served.c1) as connection:
        connection.sendall(head("GetExternalIPAddress", CHUNKED) + size + b"\r\n" + GET_ADDRESS)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionAbortedError):
            assert control.read(connection).status in {400, 413}


def test_a_third_party_option_of_another_ip_version(served: Lab) -> None:
    """CVE-2019-12111: a PCP request for another host, whose address was never compared."""
    mapped, option = socket.inet_pton(socket.AF_INET6, f"::ffff:{C1}"), socket.inet_pton(socket.AF_INET6, "::")
    request = struct.pack(">BBHI16s", 2, 1, 0, 60, mapped) + b"nonce-12-oct" + bytes([6, 0, 0, 0])
    request += struct.pack(">HH16s", 9200, 9200, bytes(16)) + struct.pack(">BBH16s", 1, 0, 16, option)
    with connected(served.c1, GATEWAY) as client:
        client.send(request)
        answer = client.recv(1100)
    assert (answer[1], answer[3]) == (0x81, 5)  # UNSUPP_OPTION: third_party is off
