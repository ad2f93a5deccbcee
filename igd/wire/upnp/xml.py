"""XML as UPnP uses it: reads untrusted documents, and writes documents that every known client can read."""

import html
import re
from dataclasses import dataclass

from lxml import etree

from igd.wire.malformed import Malformed

DEEPEST = 16
"""Levels of elements that are read: a control request has four, and its SOAP header may have more."""

CONTENT_TYPE = 'text/xml; charset="utf-8"'

_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 §2.2 does not allow, not even as character references."""


@dataclass(frozen=True, slots=True)
class Element:
    """An element that was read: name without prefix, namespace ("" for none), and the text before the first child."""

    name: str
    namespace: str
    text: str
    children: tuple["Element", ...]


class CData(str):
    """Text that is written as a CDATA section, the only form in which miniupnpc reads port listings."""

    __slots__ = ()


Tree = tuple[str, "str | tuple[Tree, ...]"]
"""An element to write: its start tag without brackets, and its text or its children."""


def parse(body: bytes) -> Element:
    """Read a document in any encoding of XML; raise Malformed for a DOCTYPE, and so for entities that it declares."""
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
    """Return the document in UTF-8; an empty element has both tags, which some clients' own parsers require."""
    return f'<?xml version="1.0"?>\n{fragment(tree)}\n'.encode()


def fragment(tree: Tree) -> str:
    """Return the element without an XML declaration."""
    tag, content = tree
    inner = _text(content) if isinstance(content, str) else "".join(map(fragment, content))
    return f"<{tag}>{inner}</{tag.split(maxsplit=1)[0]}>"


def _text(text: str) -> str:
    """Return text as markup; characters that XML does not allow become U+FFFD.

    A carriage return becomes a reference: parsers normalise it otherwise (§2.11).
    """
    writable = _UNWRITABLE.sub("\ufffd", text)
    if isinstance(text, CData):
        return "<![CDATA[" + writable.replace("]]>", "]]]]><![CDATA[>") + "]]>"
    return html.escape(writable, quote=False).replace("\r", "&#13;")
