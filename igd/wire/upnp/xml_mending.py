"""Mends XML that is not well-formed and can mean one thing only, as programs write it that build XML from strings.

Well-formed documents are not passed to this module. No entity is expanded that a document declares: a DOCTYPE stays
one, and is refused when the mended document is read.
"""

import codecs
import html
import html.entities
import re

MOST_MENDED = 500
"""Places of one document that are mended; the next one makes it malformed. A description has a few."""

LABELS = {
    **dict.fromkeys(("utf-8", "utf8", "utf_8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "ascii"), None),
    **dict.fromkeys(("latin1", "latin-1", "iso8859-1", "iso_8859-1", "cp1252"), "cp1252"),
    **{f"iso-8859-{part}": f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16)},
    **{f"windows-{page}": f"cp{page}" for page in range(1250, 1259)},
    **dict.fromkeys(("gb2312", "gbk", "gb18030"), "gb18030"),
    **{label: label for label in ("big5", "euc-jp", "euc-kr", "koi8-r", "shift_jis")},
}
"""The declared encodings that are read, with Python's name of each; None: the octets tell what they are.

In all of them ASCII's octets are ASCII. For names that it does not know, Python keeps an entry for good.
"""

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF16_LE: "utf-16"}
_DECLARED = re.compile(rb"""\s*+<\?xml\s[^>]{0,200}?encoding\s{0,9}=\s{0,9}["']\s{0,9}([\w.:-]{1,40})""", re.IGNORECASE)

_BEFORE = "\ufeff \t\r\n"
_BEHIND = "\0\ufeff \t\r\n"
"""A client in C that counts the end of its string sends NUL behind the envelope."""

_PLACE = re.compile(
    r"""
    (?P<cdata> <!\[CDATA\[ .*? (?:\]\]>|\Z) )
    | (?P<comment> <!-- .*? --> | <\? .*? \?> )
    | (?P<unended> <!-- .* | <\? .* )
    | &\#(?: (?P<decimal>[0-9]{1,7}) | [xX](?P<hexadecimal>[0-9a-fA-F]{1,6}) );
    | &(?P<entity>[A-Za-z][A-Za-z0-9]{0,31});
    | (?P<ampersand> & )
    | (?P<less> <(?=[\s0-9<&=.,;)-]) )
    | (?P<end_of_cdata> \]\]> )
    | (?P<character> [^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff] )
    """,
    re.VERBOSE | re.DOTALL,
)
"""What is kept or mended. A "<" before a character that begins no name is text."""

_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_XML_ENTITIES = {"lt", "gt", "amp", "quot", "apos"}

_FIXED = {
    "comment": "",
    "ampersand": "&amp;",
    "less": "&lt;",
    "end_of_cdata": "]]&gt;",
    "character": "\ufffd",
}
"""What stands for each kind of place."""


def mend(body: bytes) -> str | None:
    """Return the document without its XML declaration and with its mistakes mended; None for an unknown encoding."""
    text = _decode(body)
    if text is None:
        return None
    mended = _PLACE.sub(_mended, text.lstrip(_BEFORE).rstrip(_BEHIND), MOST_MENDED)
    # two references to the halves of a surrogate pair are one character
    return mended.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decode(body: bytes) -> str | None:
    """Decode by the mark, by the zeros of UTF-16, or by the declaration if the octets can be what it says."""
    for mark, codec in _MARKS.items():
        if body.startswith(mark):
            return body.decode(codec, "replace")
    if body[1:2] == b"\0":
        return body.decode("utf-16-le", "replace")
    if body[:1] == b"\0":
        return body.decode("utf-16-be", "replace")
    declared = _DECLARED.match(body)
    label = declared[1].decode("ascii", "replace").lower() if declared else "utf-8"
    if label not in LABELS:
        return None
    declared_codec = LABELS[label]
    return body.decode(declared_codec, "replace") if declared_codec else _decode_undeclared(body)


def _decode_undeclared(body: bytes) -> str:
    """Decode UTF-8, also where a character was cut; octets that are never UTF-8 are Windows-1252, or Latin-1."""
    text = body.decode("utf-8", "replace")
    if "\ufffd" in text and text.replace("\ufffd", "").isascii():
        return body.decode("cp1252", "replace")
    return text


def _mended(place: re.Match[str]) -> str:
    kind = place.lastgroup
    assert kind is not None, "every alternative has a name"
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "cdata":
        return _CHARACTER.sub("\ufffd", place[0])
    if kind == "entity":
        return _entity(place)
    if kind in {"decimal", "hexadecimal"}:
        return _reference(int(place[kind], 10 if kind == "decimal" else 16), place[0])
    return place[0]


def _entity(place: re.Match[str]) -> str:
    """Return HTML's character for a name of HTML; expat refuses unknown names."""
    if place["entity"] in _XML_ENTITIES:
        return place[0]
    character = html.entities.html5.get(place["entity"] + ";")
    return place[0] if character is None else html.escape(character)


def _reference(code: int, written: str) -> str:
    """Return a reference that XML allows as it is, else the character, half of a surrogate pair, or U+FFFD."""
    if 0xD800 <= code < 0xE000:
        return chr(code)
    return written if code <= 0x10FFFF and not _CHARACTER.match(chr(code)) else "\ufffd"
