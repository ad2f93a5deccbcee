"""XML 1.0: untrusted documents are read or rejected, and every document that is written can be read."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.wire.malformed import Malformed
from igd.wire.upnp.xml import DEEPEST, CData, Element, fragment, parse, write

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
    "an unknown encoding": b'<?xml version="1.0" encoding="no-such"?><a/>',
    "not in its encoding": b'<?xml version="1.0" encoding="utf-8"?><a>\xe9</a>',
    "a control character": b"<a>\x01</a>",
    "a control character's reference": b"<a>&#1;</a>",
    "an attribute twice": b"<a b='1' b='2'/>",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents_are_malformed_at_once(body: bytes) -> None:
    start = time.process_time()
    with pytest.raises(Malformed):
        parse(body)
    assert time.process_time() - start < 5


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
    "Latin-1": (b'<?xml version="1.0" encoding="iso-8859-1"?><a>\xe9</a>', "é"),
    "empty": (b"<a/>", ""),
}


@pytest.mark.parametrize(("body", "text"), READ.values(), ids=READ)
def test_text_is_read(body: bytes, text: str) -> None:
    assert parse(body) == Element("a", "", text, ())


def test_names_lose_their_prefix_and_keep_their_namespace() -> None:
    assert parse(b'<p:a xmlns:p="n"> <b/> </p:a>') == Element("a", "n", " ", (Element("b", "", "", ()),))


@given(st.binary())
def test_any_bytes_are_read_or_malformed(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert parse(body).name


XML_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
    lambda character: character >= " " or character in "\t\n\r"))  # fmt: skip


@given(XML_TEXT)
def test_what_xml_can_say_is_written_and_read_again(text: str) -> None:
    assert parse(write(("a", text))).text == text


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
    assert fragment(('a b="c"', (("d", ""), ("e", ())))) == '<a b="c"><d></d><e></e></a>'
