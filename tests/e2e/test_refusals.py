"""Requests that are not allowed are refused with the right error, and change nothing."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e.control import add, ask, body, exchange, head, key, post
from tests.e2e.serving import C1, C2, GATEWAY, everything, serving, start, upnpc
from tests.lab import Lab, answering
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

LARGE = 20_000  # bytes: a real request has some 600
GET_ADDRESS = body("GetExternalIPAddress")
LENGTH = {"Content-Length": len(GET_ADDRESS)}
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """A lab with igd in it, where c1 has TCP 9100 and c2 TCP 9200; no test changes anything."""
    needs("upnpc", "nft")
    with Lab() as lab, serving(lab):
        upnpc(lab.c1, "-r", "9100", "tcp")
        upnpc(lab.c2, "-r", "9200", "tcp")
        yield lab


@pytest.fixture(scope="module", autouse=True)
def slow_senders(served: Lab) -> Iterator[list[socket.socket]]:
    """Two requests that never end, one in its headers and one in its body; begun early, for they take ten seconds."""
    with control.connect(served.c1) as in_headers, control.connect(served.c1) as in_body:
        in_headers.sendall(head("GetExternalIPAddress", LENGTH)[:-4])
        in_body.sendall(head("GetExternalIPAddress", LENGTH) + GET_ADDRESS[:-4])
        yield [in_headers, in_body]


@pytest.fixture(scope="module")
def state(served: Lab) -> object:
    """Return the content of igd's table and of the kernel before any test."""
    return everything(served)


@pytest.fixture
def unchanged(served: Lab, state: object) -> Iterator[Lab]:
    """The lab; at the end igd's table and the kernel still hold what they held."""
    yield served
    assert everything(served) == state


def test_mappings_that_nobody_may_have(unchanged: Lab) -> None:
    cases: list[tuple[str, control.Arguments, int]] = [
        ("an external port below 1024", {"ExternalPort": 1023}, 606),
        ("an internal port below 1024", {"InternalPort": 22}, 606),
        ("another peer's address", {"InternalClient": C2}, 606),
        ("the server's own address", {"InternalClient": GATEWAY, "InternalPort": 2869}, 606),
        ("an address without a peer", {"InternalClient": "10.100.0.77"}, 606),
        ("an address of the internet", {"InternalClient": "60.60.60.2"}, 606),
        ("a port that another peer has", {"ExternalPort": 9200}, 718),
        ("a port on which the server listens", {"ExternalPort": 9300}, 718),
        ("WireGuard's own port", {"ExternalPort": 51820, "Protocol": "UDP"}, 718),
        ("SCTP", {"Protocol": "SCTP"}, 601),
        ("external port 65537", {"ExternalPort": 65537}, 601),
        ("internal port 65537", {"InternalPort": 65537}, 601),
        ("all external ports", {"ExternalPort": 0}, 716),
        ("internal port 0", {"InternalPort": 0}, 732),
        ("a remote host's name", {"RemoteHost": "example.org"}, 600),
        ("a mapping that is off", {"Enabled": 0}, 600),
        ("a name as address", {"InternalClient": "localhost"}, 600),
    ]
    with answering(unchanged.srv, 9300):
        results = {name: add(unchanged.c1, arguments) for name, arguments, _ in cases}
    assert results == {name: code for name, _, code in cases}


def test_other_peers_mappings_are_not_seen(unchanged: Lab) -> None:
    for action in ("GetSpecificPortMappingEntry", "DeletePortMapping"):
        assert ask(unchanged.c1, action, key(9200)) == 714
    assert ask(unchanged.c1, "GetGenericPortMappingEntry", {"PortMappingIndex": 1}) == 713
    everything = {"StartPort": 9200, "EndPort": 65535, "Protocol": "TCP", "Manage": 1}
    assert ask(unchanged.c1, "GetListOfPortMappings", {**everything, "NumberOfPorts": 0}) == 730
    assert ask(unchanged.c1, "DeletePortMappingRange", everything) == 730


def test_actions_that_are_none(unchanged: Lab) -> None:
    assert ask(unchanged.c1, "OpenSesame") == 401
    assert ask(unchanged.c1, "AddPortMapping", key(9001)) == 402
    assert ask(unchanged.c1, "ForceTermination") == 606


def _bomb() -> bytes:
    """Return the billion laughs: ten entities, each ten times the one before."""
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return _with_doctype(f'[<!ENTITY l0 "ha">{entities}]', "&l9;")


def _with_doctype(doctype: str, reference: str) -> bytes:
    content = body("DeletePortMapping", {**key(9100), "RemoteHost": reference})
    return content.replace(b"?>\n", f"?>\n<!DOCTYPE s:Envelope {doctype}>\n".encode())


def test_bodies_that_are_not_read(unchanged: Lab) -> None:
    delete = body("DeletePortMapping", key(9100))
    cases = [
        ("cut short", delete[:-30], 400),
        ("an unclosed element", delete.replace(b"</NewProtocol>", b""), 400),
        ("no XML", b"DeletePortMapping", 400),
        ("nothing", b"", 400),
        ("another action", body("GetExternalIPAddress"), 400),
        ("a billion laughs", _bomb(), 400),
        ("a file of the server", _with_doctype('[<!ENTITY l SYSTEM "file:///etc/passwd">]', "&l;"), 400),
        ("a DTD from elsewhere", _with_doctype('SYSTEM "http://10.100.0.2/x.dtd"', ""), 400),
        ("too large", delete + b" " * LARGE, 413),
    ]
    results = {name: post(unchanged.c1, "DeletePortMapping", content).status for name, content, _ in cases}
    assert results == {name: status for name, _, status in cases}


def test_requests_that_are_not_served(unchanged: Lab) -> None:
    delete = body("DeletePortMapping", key(9100))
    length = {"Content-Length": len(delete)}
    chunks = _chunked(delete + b" " * LARGE)
    cases = [
        ("no length", head("DeletePortMapping", {}), 411),
        ("what a form can send", head("", {"SOAPAction": None, "Content-Type": "text/plain", **length}) + delete, 400),
        ("no type, no SOAPAction", head("", {"SOAPAction": None, "Content-Type": None, **length}) + delete, 400),
        ("too large in chunks", head("DeletePortMapping", CHUNKED) + chunks, 413),
        ("a name", head("DeletePortMapping", {"Host": "evil.example:2869", **length}) + delete, 403),
        ("no path of ours", b"GET /etc/passwd HTTP/1.1\r\nHost: 10.100.0.1:2869\r\n\r\n", 404),
        ("GET instead of POST", f"GET {control.PATH} HTTP/1.1\r\nHost: 10.100.0.1:2869\r\n\r\n".encode(), 405),
        ("no HTTP", b"EHLO there\r\n\r\n", 400),
    ]
    results = {name: exchange(unchanged.c1, request).status for name, request, _ in cases}
    assert results == {name: status for name, _, status in cases}


def _chunked(content: bytes, size: int = 1000) -> bytes:
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def test_chunks_are_read(served: Lab) -> None:
    request = head("GetExternalIPAddress", CHUNKED) + _chunked(GET_ADDRESS, 100)
    assert b"<NewExternalIPAddress>60.60.60.1<" in exchange(served.c1, request).rest


def test_expect_100_continue_is_answered(served: Lab) -> None:
    with control.connect(served.c1) as connection:
        connection.sendall(head("GetExternalIPAddress", {"Expect": "100-continue", **LENGTH}))
        assert re.fullmatch(rb"HTTP/1\.1 100 Continue\r\n\r\n", connection.recv(4096))
        connection.sendall(GET_ADDRESS)
        assert b"<NewExternalIPAddress>60.60.60.1<" in control.read(connection).rest


def test_who_sends_slowly_is_cut_off_and_delays_nobody(served: Lab, slow_senders: list[socket.socket]) -> None:
    assert post(served.c1, "GetExternalIPAddress", GET_ADDRESS).status == 200
    for connection in slow_senders:
        with pytest.raises(ConnectionAbortedError):
            control.read(connection)


def test_junk_does_not_fill_the_log_nor_keep_the_gateway_from_stopping(lab: Lab) -> None:
    junk = [
        b"EHLO there\r\n\r\n",
        b"A" * LARGE,
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        head("GetExternalIPAddress", CHUNKED) + b"many\r\n",
        head("GetExternalIPAddress", LENGTH) + b"<" * len(GET_ADDRESS),
    ]
    with start(lab) as process:
        until_ready = len(process.lines)
        for request in junk:
            assert exchange(lab.c1, request).status == 400
        with control.connect(lab.c1) as brief:
            brief.sendall(head("GetExternalIPAddress", LENGTH))
        with control.connect(lab.c1) as lasting:
            lasting.sendall(head("GetExternalIPAddress", LENGTH))
            assert post(lab.c1, "GetExternalIPAddress", GET_ADDRESS).status == 200
            assert process.stop() == 0
        assert process.lines[until_ready:] == ["INFO igd.process.daemon: stopped"]


def test_a_source_that_no_peer_owns_is_refused(lab: Lab) -> None:
    needs("nft")
    stranger = "10.200.0.9"
    key_of_c2 = lab.c2.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
    # The server's WireGuard lets everything in from c2, which is not to say that all of the internet is c2's.
    lab.srv.run("wg", "set", "wg0", "peer", key_of_c2, "allowed-ips", f"{C2}/32,0.0.0.0/0")
    lab.srv.run("ip", "route", "add", f"{stranger}/32", "dev", "wg0")
    lab.c2.run("ip", "address", "add", f"{stranger}/32", "dev", "wg0")
    with serving(lab):
        before = everything(lab)
        assert add(lab.c2, {"InternalClient": stranger}, source=stranger) == 606
        assert add(lab.c2, {"InternalClient": C2}, source=stranger) == 606
        assert add(lab.c2, {"InternalClient": C1}, source=stranger) == 606
        assert ask(lab.c2, "GetExternalIPAddress", source=stranger) == 606
        page = b"GET /1/device.xml HTTP/1.1\r\nHost: 10.100.0.1:2869\r\n\r\n"
        assert exchange(lab.c2, page, source=stranger).status == 403
        assert exchange(lab.c2, page, source=C2).status == 200
        assert everything(lab) == before
