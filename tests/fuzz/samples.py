"""The messages that the fuzzers mutate: those that were captured from clients, and those of the decoders' own tests."""

import html
from collections.abc import Mapping

from igd.wire.upnp.actions import ACTIONS
from igd.wire.upnp.devices import VERSIONS, Service
from igd.wire.upnp.soap import CONTROL
from tests.wire import test_stun
from tests.wire.pcp import test_messages, test_natpmp
from tests.wire.stun_server_codec import ERROR, MAPPED_ADDRESS, OTHER_ADDRESS, SUCCESS, address, error, message
from tests.wire.upnp import (
    test_actions,
    test_habits,
    test_http_head,
    test_search_habits,
    test_soap,
    test_ssdp,
    test_xml,
)

CLIENT, CLIENT6 = test_messages.CLIENT, test_messages.CLIENT6
"""Who sends the messages of PCP."""


def _words(text: str) -> tuple[bytes, ...]:
    r"""Return the words between white space, with \x20 and other escapes in them as in Python."""
    return tuple(word.encode().decode("unicode_escape").encode() for word in text.split())


# SSDP and HTTP

SEARCHES = (
    *(datagram for datagram, _ in test_ssdp.SEARCHES.values()),
    *test_search_habits.READ.values(),
    *test_search_habits.MALFORMED.values(),
)

HEADS = (
    b"GET /1/device.xml HTTP/1.1\r\nHost: 10.100.0.1:2869\r\nConnection: Close\r\nUser-Agent: MiniUPnPc/2.2.4\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET http://[fd77::1]:2869/?a=%20&b#c HTTP/1.1\r\nHost: [fd77::1]:2869\r\nAccept: */*\r\nCookie: a=b; c\r\n\r\n",
    b'POST /control HTTP/1.1\r\nContent-Type: text/xml;charset="utf-8"\r\nContent-Length:0\r\nSOAPAction:"a#b"\r\n\r\n',
    b"POST / HTTP/1.1\r\nTransfer-Encoding:chunked\r\nExpect: 100-continue\r\n\r\n5;x=y\r\n<a/>\n\r\n0\r\nX: y\r\n\r\n",
    b'M-POST /control HTTP/1.1\r\nMan: "http://x/"; ns=01\r\n01-SOAPACTION: "a#b"\r\nContent-Length: 0\r\n\r\n',
    b"POST /control HTTP/1.1\r\nUpgrade: h2c\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n<a/>\n",
    b"SUBSCRIBE /event HTTP/1.1\nCallback: <http://10.100.0.2:80/>\nNT: upnp:event\nTimeout: Second-300\n\n",
    *test_http_head.SAME.values(),
    *(octets for octets, *_ in test_http_head.REFUSED.values() if len(octets) < 3000),
    b"POST /control HTTP/1.1\r\nX:\r\n folded\r\nHost:\t10.100.0.1\r\nHost: 10.100.0.2\r\n\r\n",
)

HTTP_WORDS = _words(
    r"""
    \r\n \n \r \r\n\r\n \r\n\x20 :\x20 : \x20 \t \0 * ? # @ / // [ ] [::1] %00 %zz \u00e9 0; -1 ffffffff
    GET\x20 PRI\x20*\x20HTTP/2.0 CONNECT\x20 M-SEARCH\x20*\x20HTTP/1.1 NOTIFY\x20 HTTP/ HTTP/1.1 HTTP/1.0 HTTP/2.0
    http:// xn--
    M-POST\x20 01- post\x20 application/soap+xml;\x20action= text/xml Content-Type:\x20 SOAPAction:\x20 \x20: ,\x20
    Host:\x20 host: Content-Length:\x20 Content-Length:\x205\r\n
    Transfer-Encoding:\x20chunked\r\n Transfer-Encoding:\x20x\r\n
    Expect:\x20x\r\n Upgrade:\x20websocket\r\n Connection:\x20Upgrade\r\n Connection:\x20close,\x20keep-alive\r\n
    Content-Type:\x20;;=\r\n Content-Encoding:\x20br\r\n Sec-WebSocket-Key1:\x20x\r\n
    MAN:\x20 "ssdp:discover" MX:\x20 ST:\x20 ssdp:all upnp:rootdevice uuid:
    urn:schemas-upnp-org:device:InternetGatewayDevice:1
    """
)

# XML and SOAP

_CAPTURED = [path.read_bytes() for path in sorted(test_soap.CAPTURES.glob("*.xml"))]

DOCUMENTS = (
    *_CAPTURED,
    *(body for body, _ in test_xml.READ.values() if len(body) < 2000),
    *(body for body, _ in test_xml.MENDED.values()),
    *(body for body in test_xml.HOSTILE.values() if len(body) < 3000),
    *map(test_soap.envelope, test_soap.SAME.values()),
)


def _call(service: Service, action: str, arguments: Mapping[str, str], version: int) -> bytes:
    urn = service.urn(version)
    inner = "".join(f"<{name}>{html.escape(value)}</{name}>" for name, value in arguments.items())
    return f'"{urn}#{action}"\n'.encode() + test_soap.envelope(f'<u:{action} xmlns:u="{urn}">{inner}</u:{action}>')


_ARGUMENTS = {name: arguments for name, arguments, *_ in test_actions.ASKING} | {
    name: arguments for name, arguments, _ in test_actions.READY
}
_ROWS = [(service, row.name) for service, rows in ACTIONS.items() for row in rows]
_SERVICE = {name: service for service, name in _ROWS}

_HABITS = [habit(test_habits.CANONICAL) for habit in test_habits.HABITS.values()]

_QUERY = f'<u:QueryStateVariable xmlns:u="{CONTROL}"><u:varName>Uptime</u:varName></u:QueryStateVariable>'

CALLS = (
    f'"{CONTROL}#QueryStateVariable"\n'.encode() + test_soap.envelope(_QUERY),
    *(
        f"{header}\n".encode() + body.encode(code)
        for header, body, code in (
            *((test_habits.ACTION, body, "utf-8") for body in _HABITS),
            *(("", body, "latin-1") for body in _HABITS),
        )
    ),
    *(f"{test_soap.HEADER}\n".encode() + body for body in _CAPTURED),
    *(_call(service, name, _ARGUMENTS.get(name, test_actions.LIST), v) for service, name in _ROWS for v in VERSIONS),
    *(_call(_SERVICE[name], name, arguments, 1) for name, arguments, _ in test_actions.WRONG.values()),
)

XML_WORDS = (
    *(piece.encode() for piece in test_xml.PIECES),
    *sorted(
        {name.encode() for arguments in _ARGUMENTS.values() for name in arguments} | {n.encode() for _, n in _ROWS}
    ),
    *_words(
        r"""
        \n<?xml <![CDATA[& &uuml; &nbsp; &LT; &#xD83D; &#xDE00; &\x20 <\x20 ]]> \xff\xfe \xe9 new ::ffff: /32 .0
        </ xmlns xmlns:a='b' xmlns='' xmlns:xml='x' \x20a='b' s: : # " ' \0 &# &amp; \ufeff \ud7ff \u0661 \x20
        \t\n\x0b\x0c\x85
        <!DOCTYPE\x20a\x20[ <!ENTITY\x20x\x20'y'> <!ENTITY\x20%\x20x\x20SYSTEM\x20'file:///etc/passwd'> %x; ]>
        <!ATTLIST\x20a\x20b\x20ID\x20#IMPLIED>
        <?xml\x20version="1.0"\x20encoding=" standalone='yes' ?> <?xml-stylesheet?>
        utf-8 utf-16 utf8 utf-7 gb2312 shift_jis idna undefined hex cp037 iso-8859-1 us-ascii windows-1252
        Envelope Body Header urn:schemas-upnp-org:service:WANIPConnection:2
        TCP UDP 0.0.0.0 :: 10.100.0.9 999.1.1.1 yes IP_Routed
        """
    ),
)

# NAT-PMP and PCP

_TABLES = (
    *(test_messages.REQUESTS, test_messages.RESPONSES, test_messages.INVALID),
    *(test_natpmp.REQUESTS, test_natpmp.RESPONSES, test_natpmp.INVALID),
)
PORT_CONTROL = (
    *(bytes.fromhex(row[0]) for table in _TABLES for row in table.values()),
    *map(bytes.fromhex, test_messages.DROPPED.values()),
)

PCP_WORDS = tuple(
    bytes.fromhex(text)
    for text in (
        *(test_messages.THIRD_PARTY, test_messages.PREFER_FAILURE, test_messages.FILTER, test_messages.NO_FILTER),
        *(test_messages.FILTER6, test_messages.PORT_SET, test_messages.MAPPED, "0a4d0002", "00" * 16, "ff" * 16),
        *(
            "fd770000000000000000000000000002",
            "80 00 0000",
            "ff 00 ffff",
            "7f 00 0004 00000000",
            "06",
            "11",
            "84",
            "0201",
        ),
    )
)

# STUN

STUN = (
    *(test_stun.VECTOR_IPV4, test_stun.VECTOR_IPV6, test_stun.COTURN),
    message(SUCCESS, test_stun.ID, test_stun.SEEN, (0x8022, b"x"), fingerprint=True),
    message(SUCCESS, test_stun.ID, address(MAPPED_ADDRESS, "10.0.0.1", 5), address(OTHER_ADDRESS, "192.0.2.1", 3479)),
    message(ERROR, test_stun.ID, error(438, "Stale Nonce")),
)
STUN_WORDS = (
    *(
        bytes.fromhex(text)
        for text in ("2112a442", "0101", "0111", "0001", "0020", "0009", "802c", "8028", "0008", "0004")
    ),
    bytes.fromhex("0001000800011f90c6336401"),
    bytes.fromhex("002000080001a147e112a643"),
    bytes.fromhex("80280004c07d4c96"),
)
