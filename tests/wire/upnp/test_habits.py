"""A control request means the same with any of the accepted habits of clients, and with any number of them at once."""

import html
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd.wire.upnp.requests import KEY, VALUE
from igd.wire.upnp.soap import ENVELOPE, decode
from igd.wire.upnp.variables import read

TYPE = "urn:schemas-upnp-org:service:WANIPConnection:1"
ACTION = f"{TYPE}#AddPortMapping"
DESCRIPTION = "Tom & Jerry\xe9 <3"
ARGUMENTS = {
    "NewRemoteHost": "198.51.100.7",
    "NewExternalPort": "8043",
    "NewProtocol": "TCP",
    "NewInternalPort": "43",
    "NewInternalClient": "10.100.0.9",
    "NewEnabled": "1",
    "NewPortMappingDescription": DESCRIPTION,
    "NewLeaseDuration": "300",
}
INNER = "".join(f"<{name}>{html.escape(value, quote=False)}</{name}>" for name, value in ARGUMENTS.items())
CANONICAL = (
    f'<?xml version="1.0"?>\n<s:Envelope xmlns:s="{ENVELOPE}"><s:Body><u:AddPortMapping xmlns:u="{TYPE}">{INNER}'
    "</u:AddPortMapping></s:Body></s:Envelope>"
)
DECLARATION = '<?xml version="1.0"?>\n'


def within(text: str, written: str) -> str:
    """Write the description otherwise."""
    return text.replace("Tom &amp; Jerry\xe9 &lt;3", written)


def around(text: str, before: str, behind: str) -> str:
    """Write something around each value, except the description, where it would mean something."""
    return re.sub(r">([\w.]+)</", rf">{before}\1{behind}</", text)


Habit = Callable[[str], str]

HABITS: dict[str, Habit] = {
    "no declaration": lambda text: text.replace(DECLARATION, ""),
    "two declarations": lambda text: text.replace(DECLARATION, DECLARATION * 2),
    "no xmlns:s": lambda text: text.replace(f' xmlns:s="{ENVELOPE}"', ""),
    "no xmlns:u": lambda text: text.replace(f' xmlns:u="{TYPE}"', ""),
    "no prefix s": lambda text: text.replace("<s:", "<").replace("</s:", "</"),
    "SOAP 1.2": lambda text: text.replace(ENVELOPE, "http://www.w3.org/2003/05/soap-envelope"),
    "SOAP-ENV": lambda text: text.replace("<s:", "<SOAP-ENV:").replace("</s:", "</SOAP-ENV:"),
    "a header": lambda text: re.sub(
        "<((?:[^/<>]*:)?)Body>", r"<\1Header><x mustUnderstand='1'/></\1Header><\1Body>", text
    ),
    "the action in lower case": lambda text: text.replace(":AddPortMapping", ":addportmapping"),
    "arguments in lower case": lambda text: re.sub("(</?)(New[A-Za-z]+)", lambda tag: tag[1] + tag[2].lower(), text),
    "arguments without New": lambda text: text.replace("<New", "<").replace("</New", "</"),
    "arguments with a prefix": lambda text: re.sub("(</?)(New|new)", r"\1v:\2", text),
    "white space between": lambda text: text.replace("><", ">\r\n\t <"),
    "white space around values": lambda text: around(text, "\n\t ", " "),
    "CDATA": lambda text: around(text, "<![CDATA[", "]]>"),
    "comments in values": lambda text: around(text, "<!-- a -- & b -->", "<?c d?>"),
    "types": lambda text: re.sub(
        "<((?:v:)?[Nn]ew[A-Za-z]+)>", r"<\1 xmlns:dt='d' dt:dt='x' xsi:type='xsd:string'>", text
    ),
    "a bare ampersand": lambda text: within(text, "Tom & Jerry\xe9 &lt;3"),
    "a bare less-than sign": lambda text: within(text, "Tom &amp; Jerry\xe9 <3"),
    "HTML's names": lambda text: within(text, "Tom&#32;&AMP; Jerry&eacute; &LT;3"),
    "the description in CDATA": lambda text: within(text, "<![CDATA[Tom & Jerry\xe9 <3]]>"),
    "zeros": lambda text: text.replace(">8043<", ">008043.0<").replace(">300<", ">+300<"),
    "the protocol's number": lambda text: text.replace(">TCP<", ">6<"),
    "the protocol in lower case": lambda text: text.replace(">TCP<", ">tcp<"),
    "an address with all its bits": lambda text: text.replace(">10.100.0.9<", ">10.100.0.9/32<"),
    "white space in front": lambda text: "\r\n\t " + text,
    "white space behind": lambda text: text + "\r\n\r\n",
    "zeros behind": lambda text: text + "\0\0",
}

ENCODINGS = ["utf-8", "utf-8-sig", "iso-8859-1", "windows-1252", "utf-16"]


def meaning(body: bytes, soap_action: str = ACTION) -> object:
    call = decode(soap_action, body)
    return call.service_type, call.action.lower(), read(KEY | VALUE, call.arguments)


MEANING = meaning(CANONICAL.encode())


def test_the_canonical_request_is_what_it_is() -> None:
    assert decode(ACTION, CANONICAL.encode()).arguments == ARGUMENTS


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("habit", HABITS.values(), ids=HABITS)
def test_each_habit_alone(habit: Habit, encoding: str) -> None:
    assert habit(CANONICAL) != CANONICAL
    assert meaning(habit(CANONICAL).encode(encoding)) == MEANING


@settings(max_examples=300)
@given(st.lists(st.sampled_from(sorted(HABITS)), unique=True, max_size=8), st.sampled_from(ENCODINGS))
def test_any_habits_together(names: list[str], encoding: str) -> None:
    text = CANONICAL
    for name in sorted(names, key=list(HABITS).index):
        text = HABITS[name](text)
    body = text.encode(encoding)
    assert meaning(body) == MEANING
    if "no xmlns:u" not in names:
        assert meaning(body, "") == MEANING, "the body names the action"


DECLARED = [
    ("utf-8", "iso-8859-1"),
    ("UTF-8", "windows-1252"),
    ("utf-16", "utf-8"),
    ("iso-8859-1", "iso-8859-1"),
    ("Latin1", "iso-8859-1"),
    ("us-ascii", "utf-8"),
    ("utf-8", "utf-16"),
    ("UTF8", "utf-8"),
]


@pytest.mark.parametrize(("declared", "encoding"), DECLARED)
def test_a_declared_encoding_that_the_octets_have_or_cannot_have(declared: str, encoding: str) -> None:
    text = CANONICAL.replace('"1.0"', f'"1.0" encoding="{declared}"')
    assert meaning(text.encode(encoding)) == MEANING
