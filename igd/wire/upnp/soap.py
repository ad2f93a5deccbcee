"""Control messages: the part of SOAP 1.1 that UPnP Device Architecture 1.1 §3 uses."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from igd.wire.malformed import Malformed
from igd.wire.upnp import xml

LARGEST_BODY = 16 * 1024
"""Bytes of the largest request that is read; those of known clients have 400 to 1500."""

ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
ENCODING = "http://schemas.xmlsoap.org/soap/encoding/"
CONTROL = "urn:schemas-upnp-org:control-1-0"

_ACTION_HEADER = re.compile(r"(urn:[A-Za-z0-9.:_-]+)#([A-Za-z_][A-Za-z0-9_.-]*)")
_AROUND_ACTION = " \t\"'"
"""§3.2.1 prescribes double quotes; some clients send single quotes, one quote, or none."""

_XML_TYPES = {"text/xml", "application/xml", "application/soap+xml"}
"""The media types of a request that may leave the name of the action to its body."""

_PLACE = "listing"
"""Stands where a long text will; no name of the standard's contains it in small letters."""

Arguments = Mapping[str, str]
"""The text of each argument by its name."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one action of one service type, with its arguments as they were sent."""

    service_type: str
    action: str
    arguments: Arguments


class UPnPError(Exception):
    """The failure of an action: errorCode, and errorDescription for people (§3.2.5)."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(code, description)
        self.code = code
        self.description = description


def named_action(headers: Mapping[str, str]) -> str:
    """Return the action that the headers name, "" if they leave it to the body; raise Malformed if they must not.

    SOAP 1.2 names it in Content-Type. A page of the web can have its visitor's browser send a body of unmarked or of
    some other types, but neither XML nor a SOAPAction, unless this server allowed it (CORS). So one of these is needed.
    """
    media_type, *parameters = headers.get("Content-Type", "").split(";")
    is_xml = media_type.strip().lower() in _XML_TYPES
    if "SOAPAction" not in headers and not is_xml:
        raise Malformed("neither a SOAPAction header nor a Content-Type of XML")
    written = [headers.get("SOAPAction", "")]
    if is_xml:
        pairs = (parameter.partition("=") for parameter in parameters)
        written += [value for name, _, value in pairs if name.strip().lower() == "action"]
    named = {each.strip(_AROUND_ACTION) for each in written} - {""}
    if len(named) > 1:
        raise Malformed("SOAPAction and Content-Type name different actions")
    return next(iter(named), "")


def decode(soap_action: str, body: bytes) -> Call:
    """Read a control request from the action that its headers name, or "", and its body.

    Raise Malformed for anything else. The names of actions are the same in upper and lower case: no two of a service
    differ in nothing else.
    """
    named = soap_action.strip(_AROUND_ACTION)
    match = _ACTION_HEADER.fullmatch(named)
    if named and match is None:
        raise Malformed("the SOAPAction header is not a service type, # and an action")
    element = _action_element(xml.parse(body))
    namespace = element.namespace.strip()
    service_type, action = match.groups() if match else (namespace, element.name)
    if element.name.lower() != action.lower() or namespace not in {"", service_type}:
        raise Malformed("the SOAPAction header and the body ask for different actions")
    if not service_type:
        raise Malformed("neither the SOAPAction header nor the body names a service type")
    return Call(service_type, action, _arguments(element))


def _action_element(envelope: xml.Element) -> xml.Element:
    """Return the element in the Body. Namespaces of Envelope and Body are not checked: SOAP 1.1, 1.2 and older ones."""
    bodies = [child for child in envelope.children if child.name.lower() == "body"]
    if envelope.name.lower() != "envelope" or len(bodies) != 1:
        raise Malformed("not an Envelope with one Body")
    if len(bodies[0].children) != 1:
        raise Malformed("the Body does not hold one action")
    return bodies[0].children[0]


def _arguments(action: xml.Element) -> dict[str, str]:
    arguments: dict[str, str] = {}
    for child in action.children:
        if child.children:
            raise Malformed(f"the argument {child.name} holds elements")
        if arguments.setdefault(child.name, child.text).strip() != child.text.strip():
            raise Malformed(f"the argument {child.name} has two values")
    return arguments


def encode_response(call: Call, outputs: Arguments) -> bytes:
    """Return the body of the response 200 (§3.2.2) to a known action; its service type is that of `call`."""
    tag = xml.Tag(f"u:{call.action}Response", {"u": call.service_type})
    return _envelope((tag, tuple(outputs.items())))


def encode_listing(call: Call, name: str, parts: Iterable[bytes]) -> list[bytes]:
    """Return the parts of a response's body: its out-argument is a CDATA section of XML that was written in `parts`."""
    before, _, after = encode_response(call, {name: xml.CData(_PLACE)}).partition(_PLACE.encode())
    return [before, *parts, after]


def encode_error(error: UPnPError) -> bytes:
    """Return the body of a response 500 (§3.2.5)."""
    fields = (("errorCode", str(error.code)), ("errorDescription", error.description))
    detail = ((xml.Tag("UPnPError", {None: CONTROL}), fields),)
    return _envelope(("s:Fault", (("faultcode", "s:Client"), ("faultstring", "UPnPError"), ("detail", detail))))


def _envelope(content: xml.Tree) -> bytes:
    tag = xml.Tag("s:Envelope", {"s": ENVELOPE}, {"s:encodingStyle": ENCODING})
    return xml.write((tag, (("s:Body", (content,)),)))
