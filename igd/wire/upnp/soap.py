"""Control messages: the part of SOAP 1.1 that UPnP Device Architecture 1.1 §3 uses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from igd.wire.malformed import Malformed
from igd.wire.upnp import xml

LARGEST_BODY = 16 * 1024
"""Bytes of the largest request that is read; those of known clients have 400 to 1500."""

ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
ENCODING = "http://schemas.xmlsoap.org/soap/encoding/"
CONTROL = "urn:schemas-upnp-org:control-1-0"

_ACTION_HEADER = re.compile(r"""(["']?)(urn:[A-Za-z0-9.:_-]+)#([A-Za-z_][A-Za-z0-9_.-]*)\1""")
"""§3.2.1 prescribes double quotes; some clients send single quotes or none."""

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


def decode(soap_action: str, body: bytes) -> Call:
    """Read a control request from its SOAPAction header and body; raise Malformed for anything else."""
    match = _ACTION_HEADER.fullmatch(soap_action.strip())
    if match is None:
        raise Malformed("the SOAPAction header is not a service type, # and an action")
    _, service_type, action = match.groups()
    element = _action_element(xml.parse(body))
    if element.name != action or element.namespace not in {"", service_type}:
        raise Malformed("the SOAPAction header and the body ask for different actions")
    return Call(service_type, action, _arguments(element))


def _action_element(envelope: xml.Element) -> xml.Element:
    """Return the element in the Body. Namespaces of Envelope and Body are not checked: clients use various ones."""
    bodies = [child for child in envelope.children if child.name == "Body"]
    if envelope.name != "Envelope" or len(bodies) != 1:
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


def encode_error(error: UPnPError) -> bytes:
    """Return the body of a response 500 (§3.2.5)."""
    fields = (("errorCode", str(error.code)), ("errorDescription", error.description))
    detail = ((xml.Tag("UPnPError", {None: CONTROL}), fields),)
    return _envelope(("s:Fault", (("faultcode", "s:Client"), ("faultstring", "UPnPError"), ("detail", detail))))


def _envelope(content: xml.Tree) -> bytes:
    tag = xml.Tag("s:Envelope", {"s": ENVELOPE}, {"s:encodingStyle": ENCODING})
    return xml.write((tag, (("s:Body", (content,)),)))
