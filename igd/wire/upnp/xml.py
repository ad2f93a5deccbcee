"""XML as UPnP uses it: reads what strangers send, writes what every client can read."""

import html
import re
from dataclasses import dataclass

from lxml import etree

from igd.wire.malformed import Malformed

DEEPEST = 16
"""Levels of elements that are read: a control request has four, its SOAP header may have some more."""

CONTENT_TYPE = 'text/xml; charset="utf-8"'

_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 §2.2 cannot say at all, not even by a character reference."""


@dataclass(frozen=True, slots=True)
class Element:
    """What was read: the name without prefix, the namespace ("" for none), the text in front of the first child."""

    name: str
    namespace: str
    text: str
    children: tuple["Element", ...]


class CData(str):
    """Text that is written as a CDATA section: miniupnpc reads port listings in no other form."""

    __slots__ = ()


Tree = tuple[str, "str | tuple[Tree, ...]"]
"""What is to be written: a start tag without its brackets, and either text or children."""


def parse(body: bytes) -> Element:
    """Read a document in any encoding that XML allows; a DOCTYPE is refused, and with it every entity of its own."""
    parser = etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(body, parser)
    except etree.XMLSyntaxError as error:
        raise Malformed(f"not XML: {error.msg}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise Malformed("a DOCTYPE is not accepted")
    return _element(root, DEEPEST)


def _element(source: etree._Element, levels: int) -> Element:
    if levels == 0:
        raise Malformed(f"more than {DEEPEST} levels of elements")
    name = etree.QName(source)
    children = tuple(_element(child, levels - 1) for child in source)
    return Element(name.localname, name.namespace or "", source.text or "", children)


def write(tree: Tree) -> bytes:
    """Give the document in UTF-8; an empty element has both its tags, which hand-made parsers of clients want."""
    return f'<?xml version="1.0"?>\n{fragment(tree)}\n'.encode()


def fragment(tree: Tree) -> str:
    """Give the element without an XML declaration."""
    tag, content = tree
    inner = _text(content) if isinstance(content, str) else "".join(map(fragment, content))
    return f"<{tag}>{inner}</{tag.split(maxsplit=1)[0]}>"


def _text(text: str) -> str:
    """Control characters and the like become U+FFFD; a carriage return, which readers would change, a reference."""
    writable = _UNWRITABLE.sub("\ufffd", text)
    if isinstance(text, CData):
        return "<![CDATA[" + writable.replace("]]>", "]]]]><![CDATA[>") + "]]>"
    return html.escape(writable, quote=False).replace("\r", "&#13;")
