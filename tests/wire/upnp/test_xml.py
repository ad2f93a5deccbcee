"""XML 1.0: untrusted documents are read or rejected, and every document that is written can be read."""

import codecs
import contextlib
import encodings
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd.wire.malformed import Malformed
from igd.wire.upnp.xml import DEEPEST, CData, Element, Tag, fragment, parse, write
from igd.wire.upnp.xml_mending import MOST_MENDED
from tests.wire.upnp.lxml_reader import read_by_lxml

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))

HOSTILE = {
    "nothing": b"",
    "not XML": b"{}",
    "two roots": b"<a/><b/>",
    "a DOCTYPE": b"<!DOCTYPE a><a/>",
    "a DOCTYPE in UTF-16": "<!DOCTYPE a><a/>".encode("utf-16"),
    "an external DTD": b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd"><a/>',
    "an entity of its own": b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
    "an external entity": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    "a parameter entity": b'<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]><a/>',
    "an undeclared entity": b"<a>&x;</a>",
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l9;</a>'.encode(),
    "billion laughs in an attribute": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a b="&l9;"/>'.encode(),
    "too deep": b"<a>" * (DEEPEST + 1) + b"</a>" * (DEEPEST + 1),
    "much too deep": b"<a>" * 5000,
    "a quadratic blow-up": f'<!DOCTYPE a [<!ENTITY x "{"x" * 8000}">]><a>{"&x;" * 2600}</a>'.encode(),
    "an unknown encoding": b'<?xml version="1.0" encoding="no-such"?><a/>',
    "UTF-7": b'<?xml version="1.0" encoding="utf-7"?><a>+AGE-</a>',
    "UTF-32": "<a/>".encode("utf-32"),
    "EBCDIC": '<?xml version="1.0" encoding="cp037"?><a/>'.encode("cp037"),
    "a codec of Python's": b'<?xml version="1.0" encoding="unicode_escape"?><a>\\x61</a>',
    "a codec of Python's that is not for text": b'<?xml version="1.0" encoding="zlib"?><a/>',
    "an attribute twice": b"<a b='1' b='2'/>",
    "an unclosed tag": b"<a><b></a>",
    "a tag that is closed twice": b"<a/></a>",
    "two documents": b"<?xml version='1.0'?><a/><?xml version='1.0'?><a/>",
    "something behind a zero": b"<a/>\0x",
    "text behind": b"<a/>x",
    "text in front": b"x<a/>",
    "a comment without an end": b"<a/><!-- x",
    "a control character in a name": b"<a\x01/>",
    "a tag that begins with a space": b"< a/>",
    "a DOCTYPE behind a line break and a bare ampersand": b"\n<?xml version='1.0'?><!DOCTYPE a><a>&</a>",
    "an entity of its own, and mistakes": b'\n<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><p:a>& &x;\x01</p:a>',
    "billion laughs in Latin-1": f'<!DOCTYPE a [<!ENTITY l0 "h\xe4">{LAUGHS}]><a>&l9;</a>'.encode("latin-1"),
    "too many mistakes": b"<a>" + b"&" * (MOST_MENDED + 1) + b"</a>",
    "very many mistakes": b"<a>" + b"&<<\x01]]>" * 100_000 + b"</a>",
    "very many comments without an end": b"<a>\x01" + b"<!--" * 100_000,
    "very many sections without an end": b"<a>\x01" + b"<![CDATA[" * 100_000,
    "very many instructions without an end": b"<a>\x01" + b"<?" * 100_000,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents_are_malformed_at_once(body: bytes) -> None:
    start = time.process_time()
    with pytest.raises(Malformed):
        parse(body)
    assert time.process_time() - start < 5


MENDED = {
    "a line break before the declaration": (b'\r\n<?xml version="1.0"?><a>x</a>', "x"),
    "spaces before the declaration": (b' \t<?xml version="1.0" encoding="utf-8"?><a>x</a>', "x"),
    "a mark and a line break before it": (b'\xef\xbb\xbf\n<?xml version="1.0"?><a>x</a>', "x"),
    "two marks": (b'\xef\xbb\xbf\xef\xbb\xbf<?xml version="1.0"?><a>x</a>', "x"),
    "two declarations": (b'<?xml version="1.0"?><?xml version="1.0"?><a>x</a>', "x"),
    "a bare ampersand": (b"<a>Tom & Jerry</a>", "Tom & Jerry"),
    "ampersands": (b"<a>&&a=1c&; &amp;&#65</a>", "&&a=1c&; &&#65"),
    "a bare ampersand in an attribute": (b"<a b='x&y'>x</a>", "x"),
    "HTML's names": (b"<a>&uuml;&nbsp;&AMP;&hearts;</a>", "\xfc\xa0&\u2665"),
    "a less-than sign": (b"<a>1 < 2, <3 <= <</a>", "1 < 2, <3 <= <"),
    "the end of a section that never began": (b"<a>x]]>y</a>", "x]]>y"),
    "nothing is changed in a section": (b"<a><![CDATA[&amp;&uuml;<3]]>&</a>", "&amp;&uuml;<3&"),
    "a comment with hyphens": (b"<a>x<!-- a -- & b -->y</a>", "xy"),
    "Latin-1": ("<a>\xe4\xf6\xfc</a>".encode("latin-1"), "\xe4\xf6\xfc"),
    "Latin-1, declared as UTF-8": (b'<?xml version="1.0" encoding="UTF-8"?><a>\xe9</a>', "\xe9"),
    "Latin-1, declared as ASCII": (b'<?xml version="1.0" encoding="us-ascii"?><a>\xe9</a>', "\xe9"),
    "Windows": (b"<a>\x80\x93</a>", "\u20ac\u201c"),
    "an octet that Windows does not have": (b"<a>\x81</a>", "\ufffd"),
    "UTF-8 that was cut": ("<a>\xe9\xfc</a>".encode().replace(b"\xbc<", b"<"), "\xe9\ufffd"),
    "UTF-8, declared as ASCII": ('<?xml version="1.0" encoding="ascii"?><a>\xe9</a>'.encode(), "\xe9"),
    "UTF-8, declared as UTF-16": ('<?xml version="1.0" encoding="utf-16"?><a>\xe9</a>'.encode(), "\xe9"),
    "UTF-16, and a bare ampersand": ("<a>&\xe9</a>".encode("utf-16"), "&\xe9"),
    "UTF-16 with a zero behind it": ("<a>\xe9</a>\0".encode("utf-16"), "\xe9"),
    "UTF-16 without a mark, behind a line break": ("\n<a>\xe9</a>".encode("utf-16-be"), "\xe9"),
    "another Latin": ('<?xml version="1.0" encoding="ISO-8859-15"?><a>\u20ac</a>'.encode("iso8859-15"), "\u20ac"),
    "a Windows page": ('<?xml version="1.0" encoding="windows-1251"?><a>\u0434</a>'.encode("cp1251"), "\u0434"),
    "Chinese": ('<?xml version="1.0" encoding="GB2312"?><a>\u7f51\u5173</a>'.encode("gb2312"), "\u7f51\u5173"),
    "Japanese": ('<?xml version="1.0" encoding="shift_jis"?><a>\u65e5</a>'.encode("shift_jis"), "\u65e5"),
    "a control character": (b"<a>x\x01y\0z</a>", "x\ufffdy\ufffdz"),
    "a control character's reference": (b"<a>&#1;&#x0;</a>", "\ufffd\ufffd"),
    "a character above all": (b"<a>&#x110000;</a>", "\ufffd"),
    "halves of a character": (b"<a>&#xD83D;&#xDE00; &#55357;</a>", "\U0001f600 \ufffd"),
    "a zero behind": (b"<a>x</a>\0", "x"),
    "zeros and line ends behind": (b"<a>x</a>\r\n\0\0\r\n", "x"),
    "a prefix that is not declared": (b"<p:a>x</p:a>", "x"),
    "a prefix of an attribute that is not declared": (b"<a q:b='c'>x</a>", "x"),
    "a prefix that is declared as empty": (b"<a xmlns:p=''>x</a>", "x"),
    "most mistakes": (b"<a>" + b"&" * MOST_MENDED + b"</a>", "&" * MOST_MENDED),
}


@pytest.mark.parametrize(("body", "text"), MENDED.values(), ids=MENDED)
def test_what_is_not_well_formed_and_means_one_thing_is_read(body: bytes, text: str) -> None:
    assert parse(body) == Element("a", "", text, ())


def test_a_prefix_has_its_nearest_declaration() -> None:
    found = parse(b"<p:a xmlns:p='m'><p:b xmlns:p='n'/><p:c/><q:d/></p:a>")
    assert (found.namespace, [each.namespace for each in found.children]) == ("m", ["n", "m", ""])


def test_unknown_encodings_are_not_remembered() -> None:
    """Python's codecs keep every name that they were asked for, known or not."""
    known = set(encodings._cache)
    for name in ("ever-new", "x-1", "hex"):
        with pytest.raises(Malformed):
            parse(f'<?xml version="1.0" encoding="{name}"?><a/>'.encode())
    assert set(encodings._cache) == known


def test_levels_up_to_the_limit_are_read() -> None:
    assert parse(b"<a>" * DEEPEST + b"</a>" * DEEPEST).name == "a"


READ = {
    "plain": (b"<a>x</a>", "x"),
    "predefined entities and references": (b"<a>&lt;&amp;&gt;&quot;&apos;&#233;&#xe9;</a>", "<&>\"'éé"),
    "CDATA": (b"<a>x<![CDATA[<&]]>y</a>", "x<&y"),
    "comments and instructions": (b"<?x y?><!-- --><a>x<!-- z -->y<?z z?></a><!-- -->", "xy"),
    "line ends": (b"<a>x\r\ny\rz\n</a>", "x\ny\nz\n"),
    "UTF-8": ("<a>é\U0001f600</a>".encode(), "é\U0001f600"),
    "UTF-8 with a mark": (b"\xef\xbb\xbf<a>x</a>", "x"),
    "UTF-16": ("<a>é</a>".encode("utf-16"), "é"),
    "UTF-16, the other byte order": (codecs.BOM_UTF16_BE + "<a>é</a>".encode("utf-16-be"), "é"),
    "UTF-16 without a mark": ('<?xml version="1.0" encoding="UTF-16"?><a>é</a>'.encode("utf-16-le"), "é"),
    "UTF-16, declared as UTF-8": ('<?xml version="1.0" encoding="utf-8"?><a>é</a>'.encode("utf-16"), "é"),
    "UTF-8 with a mark, declared as UTF-16": (b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-16"?><a>x</a>', "x"),
    "Latin-1": (b'<?xml version="1.0" encoding="iso-8859-1"?><a>\xe9</a>', "é"),
    "ASCII": (b'<?xml version="1.0" encoding="US-ASCII" standalone="yes"?><a>x</a>', "x"),
    "Windows": (b'<?xml version="1.0" encoding="windows-1252"?><a>\x80</a>', "€"),
    "UTF-8, misspelt": ('<?xml version="1.0" encoding="utf8"?><a>é</a>'.encode(), "é"),
    "XML 1.1": (b'<?xml version="1.1"?><a>x</a>', "x"),
    "long": (b"<a>" + b"x" * 100_000 + b"</a>", "x" * 100_000),
    "empty": (b"<a/>", ""),
}


@pytest.mark.parametrize(("body", "text"), READ.values(), ids=READ)
def test_text_is_read(body: bytes, text: str) -> None:
    assert parse(body) == read_by_lxml(body) == Element("a", "", text, ())


def test_names_lose_their_prefix_and_keep_their_namespace() -> None:
    assert parse(b'<p:a xmlns:p="n"> <b/> </p:a>') == Element("a", "n", " ", (Element("b", "", "", ()),))


@pytest.mark.parametrize("namespace", ["a#b", "#", "a b", "%%", " ", "é"])
def test_a_namespace_may_be_no_uri(namespace: str) -> None:
    assert parse(f'<p:a xmlns:p="{namespace}"/>'.encode()) == Element("a", namespace, "", ())


@given(st.binary())
def test_any_bytes_are_read_or_malformed(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert parse(body).name


XML_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
    lambda character: character >= " " or character in "\t\n\r"))  # fmt: skip

PIECES = (
    "<a>", "</a>", "<b>", "</b>", "<p:a>", "</p:a>", "<a xmlns:p='n'>", "<p:b xmlns:p='m#'>", "</p:b>",
    "<a xmlns='n'>", "<a xmlns=''>", "<c/>", "<c x='1' y='&amp;'/>", "<c x='1' x='2'/>", "<c x='<'/>",
    "<c xml:lang='en'/>", "<!-- x -->", "<!-- -- -->", "<?x y?>", "<?xml version='1.0'?>", "<![CDATA[<&]]>",
    "<![CDATA[", "]]>", "&lt;", "&#x20;", "&#0;", "&x;", "<!DOCTYPE a>", "text", " ", "\r\n", "\t", "é", "\U0001f600",
    "\ufffe", "\x01", "<", ">", "&", "'", '"', "/>",
)  # fmt: skip


def markup(element: Element) -> str:
    """Return the element with its namespace as the default."""
    inner = element.text + "".join(map(markup, element.children))
    return f"<{element.name} xmlns='{element.namespace}'>{inner}</{element.name}>"


NAMES = st.sampled_from(["a", "B", "é", "_", "a-1", "a.b"])
TREES = st.recursive(
    st.builds(Element, NAMES, st.sampled_from(["", "n", "urn:x:1"]), st.sampled_from(["", "x", " \n"]), st.just(())),
    lambda trees: st.builds(Element, NAMES, st.just("n"), st.just("y"), st.lists(trees, max_size=3).map(tuple)),
    max_leaves=30,
)
DOCUMENTS = st.one_of(
    st.binary(),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=9).map(lambda pieces: f"<a xmlns:p='n'>{''.join(pieces)}</a>"),
    TREES.map(markup),
)


@settings(max_examples=1000)
@given(DOCUMENTS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_documents_that_lxml_reads_are_read_as_it_reads_them(document: bytes | str, encoding: str) -> None:
    body = document if isinstance(document, bytes) else document.encode(encoding)
    try:
        read = parse(body)
    except Malformed:
        read = None
    by_lxml = read_by_lxml(body)
    if by_lxml is not None:
        assert read == by_lxml


@given(XML_TEXT)
def test_what_xml_can_say_is_written_and_read_again(text: str) -> None:
    assert parse(write(("a", text))) == read_by_lxml(write(("a", text))) == Element("a", "", text, ())


@given(st.text(st.characters()))
def test_whatever_the_text_the_document_can_be_read(text: str) -> None:
    assert len(parse(write(("a", text))).text) == len(text)
    assert parse(write(("a", CData(text)))).name == "a"


@given(XML_TEXT.filter(lambda text: "\r" not in text))
def test_cdata_is_written_and_read_again(text: str) -> None:
    assert parse(write(("a", CData(text)))).text == text


def test_control_characters_are_replaced() -> None:
    assert write(("a", "x\0y\x1b")) == '<?xml version="1.0"?>\n<a>x\ufffdy\ufffd</a>\n'.encode()


def test_empty_elements_have_both_tags() -> None:
    assert fragment((Tag("a", attributes={"b": "c"}), (("d", ""), ("e", ())))) == '<a b="c"><d></d><e></e></a>'


def test_prefixes_are_written_as_they_are_given() -> None:
    inner = (Tag("u:b", {"u": "v"}), (("c", "1"), ("s:d", "2")))
    outer = Tag("s:a", {"s": "n", "t": "o"}, {"s:x": "1", "y": "2"})
    assert fragment((outer, (inner,))) == (
        '<s:a xmlns:s="n" xmlns:t="o" s:x="1" y="2"><u:b xmlns:u="v"><c>1</c><s:d>2</s:d></u:b></s:a>'
    )


def test_names_without_prefix_are_in_the_default_namespace() -> None:
    written = fragment((Tag("a", {None: "n"}), (("b", "1"), (Tag("c", {None: "m"}), (("d", "2"),)))))
    assert written == '<a xmlns="n"><b>1</b><c xmlns="m"><d>2</d></c></a>'


def test_the_end_of_a_cdata_section_inside_one() -> None:
    assert fragment(("a", CData("x]]>y"))) == "<a><![CDATA[x]]]]><![CDATA[>y]]></a>"


def test_a_carriage_return_is_written_as_a_reference() -> None:
    """Parsers turn a literal one into a line feed (§2.11)."""
    assert fragment(("a", "x\ry\n\t")) == "<a>x&#13;y\n\t</a>"


@pytest.mark.parametrize("name", ["a b", "a>", "", "p:a"])
def test_what_is_no_name_is_not_written(name: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        fragment((name, ""))
