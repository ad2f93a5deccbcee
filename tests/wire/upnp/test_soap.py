"""UPnP Device Architecture §3: control messages."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.wire.malformed import Malformed
from igd.wire.upnp.soap import LARGEST_BODY, Call, UPnPError, decode, encode_error, encode_response, named_action

CAPTURES = Path(__file__).parents[2] / "captures" / "add_port_mapping"
TYPE = "urn:schemas-upnp-org:service:WANIPConnection:1"
HEADER = f'"{TYPE}#AddPortMapping"'


def arguments(ports: tuple[int, int], protocol: str, description: str, lease: int, remote: str = "") -> dict[str, str]:
    return {
        "NewRemoteHost": remote,
        "NewExternalPort": str(ports[0]),
        "NewProtocol": protocol,
        "NewInternalPort": str(ports[1]),
        "NewInternalClient": "10.100.0.2",
        "NewEnabled": "1",
        "NewPortMappingDescription": description,
        "NewLeaseDuration": str(lease),
    }


CAPTURED = {
    "libtorrent": arguments((6881, 6881), "TCP", "libtorrent/2.1.1.0", 3600),
    "miniupnpc": arguments((8050, 8050), "UDP", "d", 0),
    "async_upnp_client": arguments((7001, 7000), "TCP", "ä<&>\"'", 60, remote="0.0.0.0"),
    "upnpclient": arguments((7100, 7100), "UDP", "d<&>é", 100),
    "syncthing": arguments((43210, 22000), "TCP", "syncthing-22000", 3600),
}


@pytest.mark.parametrize("client", CAPTURED)
def test_requests_of_real_clients_are_read(client: str) -> None:
    body = (CAPTURES / f"{client}.xml").read_bytes()
    assert decode(HEADER, body) == Call(TYPE, "AddPortMapping", CAPTURED[client])
    assert len(body) < LARGEST_BODY / 10


@pytest.mark.parametrize("client", CAPTURED)
def test_a_request_cut_off_anywhere_is_malformed(client: str) -> None:
    body = (CAPTURES / f"{client}.xml").read_bytes().rstrip()
    for length in range(len(body)):
        with pytest.raises(Malformed):
            decode(HEADER, body[:length])


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_quotes_of_the_header(quote: str) -> None:
    assert decode(f" {quote}{TYPE}#Do{quote} ", envelope("<Do/>")) == Call(TYPE, "Do", {})


@pytest.mark.parametrize(
    "header",
    [
        "#",
        "Do",
        f"{TYPE}#",
        "#Do",
        f"{TYPE} #Do",
        f"{TYPE}#Do#Do",
        f'{TYPE}" x="#Do',
        f"{TYPE}#Dö",
    ],
)
def test_headers_that_name_no_action_are_malformed(header: str) -> None:
    with pytest.raises(Malformed):
        decode(header, envelope("<Do/>"))


def envelope(action: str) -> bytes:
    return f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{action}</s:Body></s:Envelope>'.encode()


SAME = {
    "a prefix": f'<u:Do xmlns:u="{TYPE}"><A>1</A><B>2</B></u:Do>',
    "a default namespace": f'<Do xmlns="{TYPE}"><A>1</A><B>2</B></Do>',
    "no namespace": "<Do><A>1</A><B>2</B></Do>",
    "arguments with a prefix": f'<u:Do xmlns:u="{TYPE}"><u:A>1</u:A><u:B>2</u:B></u:Do>',
    "another order": "<Do><B>2</B><A>1</A></Do>",
    "space between": "\n\t<Do>\r\n <A>1</A>\n\n<B>2</B>\t</Do>\n",
    "CDATA": "<Do><A><![CDATA[1]]></A><B>2</B></Do>",
    "a reference": "<Do><A>&#49;</A><B>2</B></Do>",
    "an argument twice": "<Do><A>1</A><B>2</B><A>1</A></Do>",
    "an argument twice, once with a prefix and spaces": "<Do xmlns:p='p'><A>1</A><p:A> 1 </p:A><B>2</B></Do>",
    "comments": "<!-- a --><Do><!-- b --><A>1<!-- c --></A><B>2</B></Do>",
    "another case": f'<u:dO xmlns:u="{TYPE}"><A>1</A><B>2</B></u:dO>',
    "a prefix that is not declared": "<u:Do><A>1</A><u:B>2</u:B></u:Do>",
    "spaces in the namespace": f'<u:Do xmlns:u=" {TYPE}\n"><A>1</A><B>2</B></u:Do>',
    "nil or not": '<Do><A xsi:nil="false">1</A><B xsi:type="xsd:string">2</B></Do>',
    "instructions": "<?x y?><Do><?x y?><A><?x y?>1</A><B>2<?x y?></B></Do>",
    "typed, as Java does": '<Do><A xmlns:t="t" t:dt="ui2">1</A><B>2</B></Do>',
}


@pytest.mark.parametrize("action", SAME.values(), ids=SAME)
def test_what_means_the_same_is_read_the_same(action: str) -> None:
    assert decode(f"{TYPE}#Do", envelope(action)) == Call(TYPE, "Do", {"A": "1", "B": "2"})


def test_a_soap_header_is_passed_over() -> None:
    body = b"<Envelope><Header><x mustUnderstand='1'><y/></x></Header><Body><Do/></Body></Envelope>"
    assert decode(f"{TYPE}#Do", body) == Call(TYPE, "Do", {})


MALFORMED = {
    "no envelope": b"<Do/>",
    "two envelopes": envelope("<Do/>") * 2,
    "something else behind the envelope": envelope("<Do/>") + b"x",
    "an unclosed argument": envelope("<Do><A>1<B>2</B></Do>"),
    "arguments elsewhere": envelope('<Do><A href="#1"/></Do><multiRef id="1">1</multiRef>'),
    "no body": b"<Envelope/>",
    "two bodies": b"<Envelope><Body><Do/></Body><Body><Do/></Body></Envelope>",
    "no action": envelope(""),
    "two actions": envelope("<Do/><Do/>"),
    "another action": envelope("<Undo/>"),
    "another version": envelope('<Do xmlns="urn:schemas-upnp-org:service:WANIPConnection:2"/>'),
    "an argument with two values": envelope("<Do><A>1</A><A>2</A></Do>"),
    "an argument with two values, one empty": envelope("<Do><A>1</A><A/></Do>"),
    "an argument with two values, one with a prefix": envelope('<Do xmlns:p="p"><A>1</A><p:A>2</p:A></Do>'),
    "elements in an argument": envelope("<Do><A><B/></A></Do>"),
    "a DOCTYPE": b"<!DOCTYPE Envelope>" + envelope("<Do/>"),
}


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"SOAPAction": f'"{TYPE}#Do"'}, f"{TYPE}#Do"),
        ({"SOAPAction": f"'{TYPE}#Do'", "Content-Type": "text/plain"}, f"{TYPE}#Do"),
        ({"SOAPAction": f' " {TYPE}#Do'}, f"{TYPE}#Do"),
        ({"SOAPAction": '""'}, ""),
        ({"SOAPAction": "", "Content-Type": "text/plain"}, ""),
        ({"Content-Type": 'text/xml; charset="utf-8"'}, ""),
        ({"Content-Type": "Application/XML"}, ""),
        ({"Content-Type": f'application/soap+xml; charset=utf-8; Action="{TYPE}#Do"'}, f"{TYPE}#Do"),
        ({"Content-Type": f"application/soap+xml;action={TYPE}#Do", "SOAPAction": f'"{TYPE}#Do"'}, f"{TYPE}#Do"),
    ],
)
def test_headers_name_the_action_or_leave_it_to_the_body(headers: dict[str, str], named: str) -> None:
    assert named_action(headers) == named
    assert decode(named, envelope(f'<u:Do xmlns:u="{TYPE}"/>')) == Call(TYPE, "Do", {})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/plain; x=text/xml"},
        {"Content-Type": f'text/plain; action="{TYPE}#Do"'},
        {"Content-Type": "text/plain, text/xml"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=text/xml"},
        {"Content-Type": f'text/xml; action="{TYPE}#Do"', "SOAPAction": f'"{TYPE}#Undo"'},
    ],
)
def test_what_a_page_of_the_web_could_send_names_no_action(headers: dict[str, str]) -> None:
    """Of the types that a browser sends for any page, none is XML (Fetch, "CORS-safelisted request-header")."""
    with pytest.raises(Malformed):
        named_action(headers)


def test_without_a_service_type_there_is_no_action() -> None:
    with pytest.raises(Malformed):
        decode("", envelope("<Do/>"))


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode(f"{TYPE}#Do", body)


@given(st.text(), st.one_of(st.binary(), st.text().map(envelope)))
def test_anything_is_read_or_malformed(header: str, body: bytes) -> None:
    for soap_action in (header, "", f"{TYPE}#Do"):
        with contextlib.suppress(Malformed):
            assert isinstance(decode(soap_action, body), Call)


RESPONSES = [
    (
        Call(TYPE, "AddPortMapping", {"NewExternalPort": "1"}),
        {},
        f'<u:AddPortMappingResponse xmlns:u="{TYPE}"></u:AddPortMappingResponse>',
    ),
    (
        Call(TYPE, "GetSpecificPortMappingEntry", {}),
        {"NewPortMappingDescription": "<&>é", "NewRemoteHost": ""},
        (
            f'<u:GetSpecificPortMappingEntryResponse xmlns:u="{TYPE}">'
            "<NewPortMappingDescription>&lt;&amp;&gt;é</NewPortMappingDescription><NewRemoteHost></NewRemoteHost>"
            "</u:GetSpecificPortMappingEntryResponse>"
        ),
    ),
]


@pytest.mark.parametrize(("call", "outputs", "content"), RESPONSES)
def test_section_3_2_2_response(call: Call, outputs: dict[str, str], content: str) -> None:
    body = encode_response(call, outputs)
    assert (
        body
        == (
            '<?xml version="1.0"?>\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
            ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
            f"<s:Body>{content}</s:Body></s:Envelope>\n"
        ).encode()
    )
    assert decode(f"{TYPE}#{call.action}Response", body) == Call(TYPE, f"{call.action}Response", outputs)


def test_section_3_2_5_error() -> None:
    assert encode_error(UPnPError(718, "Conflict <1>")) == (
        b'<?xml version="1.0"?>\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        b' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><s:Fault>'
        b"<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        b'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>718</errorCode>'
        b"<errorDescription>Conflict &lt;1&gt;</errorDescription></UPnPError></detail>"
        b"</s:Fault></s:Body></s:Envelope>\n"
    )
