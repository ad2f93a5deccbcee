"""XML as UPnP uses it: expat reads untrusted documents, and lxml writes documents that every known client can read.

lxml must not read what a client sends: libxml2 keeps every name that it has read until the process ends.
"""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from lxml import etree

from igd.wire.malformed import Malformed
from igd.wire.upnp.xml_mending import mend

DEEPEST = 16
"""Levels of elements that are read: a control request has four, and its SOAP header may have more."""

CONTENT_TYPE = 'text/xml; charset="utf-8"'


# Reading


@dataclass(frozen=True, slots=True)
class Element:
    """An element that was read: name without prefix, namespace, and the text before the first child.

    The namespace is "" if there is none, and for a prefix that is not declared.
    """

    name: str
    namespace: str
    text: str
    children: tuple["Element", ...]


_ENCODINGS = {"utf-8", "utf8", "utf-16", "utf-16be", "utf-16le", "iso-8859-1", "us-ascii", "windows-1252"}
"""The encodings that expat reads. For others it asks Python, which keeps every name that it does not know."""

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF16_LE: "utf-16"}
"""The encoding by the byte order mark, which counts more than the XML declaration (RFC 7303 §3.3)."""

_MISSPELT_UTF8 = re.compile(rb"""<\?xml[^>]*["']utf8["']""", re.IGNORECASE)


class _UnknownEncodingError(Exception):
    """A declared encoding that is not in _ENCODINGS."""


def parse(body: bytes) -> Element:
    """Read a document, mended if necessary; raise Malformed for a DOCTYPE, and so for entities that it declares.

    What is read leaves nothing behind in the process: expat's table of names ends with the document.
    """
    try:
        return _parse(body, _encoding(body))
    except (expat.ExpatError, _UnknownEncodingError):
        mended = mend(body)
    if mended is None:
        raise Malformed("not XML: an encoding that is not supported")
    try:
        return _parse(mended.encode(), "utf-8")
    except expat.ExpatError as error:
        raise Malformed(f"not XML: {error}") from error


def _parse(body: bytes, encoding: str | None) -> Element:
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    document = _Document()
    parser.XmlDeclHandler = _check_encoding
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = document.start
    parser.CharacterDataHandler = document.add_text
    parser.EndElementHandler = document.end
    parser.Parse(body, True)  # noqa: FBT003 - it takes no keywords
    return document.root


def _encoding(body: bytes) -> str | None:
    """Return the encoding if it is known without the XML declaration, or if expat does not know the declared name."""
    for mark, encoding in _MARKS.items():
        if body.startswith(mark):
            return encoding
    return "utf-8" if _MISSPELT_UTF8.match(body) else None


def _check_encoding(_version: str, encoding: str | None, _standalone: int) -> None:
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        raise _UnknownEncodingError


def _refuse_doctype(*_declared: object) -> NoReturn:
    raise Malformed("a DOCTYPE is not accepted")


_DECLARATION = re.compile("xmlns(?:$|:)")
"""The name of an attribute that declares a namespace."""


@dataclass(slots=True)
class _Open:
    """An element whose end has not been read, or the document; `namespaces` has what it declares, by prefix."""

    namespaces: dict[str, str]
    text: str = ""
    children: list[Element] = field(default_factory=list)


def _declared(attributes: dict[str, str]) -> dict[str, str]:
    """Return the namespaces that attributes declare, by prefix; "": the default namespace."""
    return {name[5:].lstrip(":"): uri for name, uri in attributes.items() if _DECLARATION.match(name)}


class _Document:
    """Builds the elements of a document from what expat reports; an exception raised here stops expat."""

    def __init__(self) -> None:
        self._open = [_Open({})]

    @property
    def root(self) -> Element:
        return self._open[0].children[0]

    def start(self, _name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > DEEPEST:
            raise Malformed(f"more than {DEEPEST} levels of elements")
        self._open.append(_Open(_declared(attributes) if attributes else {}))

    def add_text(self, text: str) -> None:
        if not self._open[-1].children:
            self._open[-1].text += text

    def end(self, name: str) -> None:
        prefix, _, local = name.rpartition(":")
        if not local:
            raise Malformed("an element without a name")
        namespace = self._namespace(prefix)
        ended = self._open.pop()
        self._open[-1].children.append(Element(local, namespace, ended.text, tuple(ended.children)))

    def _namespace(self, prefix: str) -> str:
        return next((each.namespaces[prefix] for each in reversed(self._open) if prefix in each.namespaces), "")


# Writing: libxml2 keeps the names of elements and attributes, and so none may come from a client.

_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 §2.2 does not allow, not even as character references."""


class CData(str):
    """Text that is written as a CDATA section, the only form in which miniupnpc reads port listings."""

    __slots__ = ()


Namespaces = Mapping[str | None, str]
"""Namespaces by prefix; None: the default namespace."""


@dataclass(frozen=True, slots=True)
class Tag:
    """The start tag of an element that declares namespaces or has attributes."""

    name: str
    namespaces: Namespaces = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


Tree = tuple[str | Tag, "str | tuple[Tree, ...]"]
"""An element to write: its tag, or just its name, and its text or its children. Names have the prefix to write."""


def write(tree: Tree) -> bytes:
    """Return the document in UTF-8; an empty element has both tags, which some clients' own parsers require.

    The XML declaration is the one that clients have always been sent; lxml's has single quotes.
    """
    return b'<?xml version="1.0"?>\n' + etree.tostring(_element(tree), encoding="utf-8") + b"\n"


def fragment(tree: Tree) -> str:
    """Return the element without an XML declaration."""
    return etree.tostring(_element(tree), encoding="unicode")


def _element(tree: Tree) -> etree._Element:
    return _add(etree.Element("parent"), tree, {})


def _add(parent: etree._Element, tree: Tree, declared: Namespaces) -> etree._Element:
    """Add an element to `parent` and return it; `declared` are the namespaces of the elements around it."""
    tag, content = tree
    if isinstance(tag, Tag):
        declared = {**declared, **tag.namespaces}
        name = _qualified(tag.name, declared)
        element = etree.SubElement(parent, name, nsmap=tag.namespaces)  # type: ignore[arg-type] # the stubs lack None
        for attribute, value in tag.attributes.items():
            # An attribute without prefix is in no namespace.
            element.set(_qualified(attribute, declared) if ":" in attribute else attribute, value)
    else:
        element = etree.SubElement(parent, _qualified(tag, declared))
    if isinstance(content, str):
        element.text = _text(content)
    else:
        element.text = ""
        for child in content:
            _add(element, child, declared)
    return element


def _qualified(name: str, declared: Namespaces) -> str:
    """Return the name in lxml's notation, with the namespace that its prefix stands for."""
    prefix, _, local = name.rpartition(":")
    namespace = declared[prefix] if prefix else declared.get(None)
    return f"{{{namespace}}}{local}" if namespace else local


def _text(text: str) -> str | etree.CDATA:
    """Return text as lxml takes it; characters that XML does not allow become U+FFFD."""
    writable = _UNWRITABLE.sub("\ufffd", text)
    return etree.CDATA(writable) if isinstance(text, CData) else writable
