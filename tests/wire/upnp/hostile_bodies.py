"""Control requests whose XML has ever new names; as a program, prints by how many KiB the process grows by each kind.

python -m tests.wire.upnp.hostile_bodies COUNT
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from igd.wire.malformed import Malformed
from igd.wire.upnp import soap
from igd.wire.upnp.soap import Call, UPnPError
from igd.wire.upnp.xml import CData, parse

SIZE = soap.LARGEST_BODY - 1024

_numbers = count(10**9)


def _name() -> str:
    return f"n{next(_numbers):x}"


def _space() -> str:
    """Return a run of white space that was not used before."""
    number = next(_numbers)
    return "".join(" \t\n"[number // 3**digit % 3] for digit in range(20))


@dataclass(frozen=True)
class Kind:
    """Documents of many pieces, each with something new for {}."""

    before: str
    piece: str
    after: str
    new: Callable[[], str] = _name

    def document(self) -> str:
        """Return a document that was not returned before."""
        pieces = SIZE // len(self.piece.format(self.new()))
        return self.before + "".join(self.piece.format(self.new()) for _ in range(pieces)) + self.after


KINDS = {
    "elements": Kind("<a>", "<{}/>", "</a>"),
    "attributes": Kind("<a", " {}=''", "/>"),
    "targets of instructions": Kind("<a>", "<?{}?>", "</a>"),
    "white space": Kind("<a>", "<b/>{}", "</a>", _space),
    "entities that are declared": Kind("<!DOCTYPE a [", "<!ENTITY {} ''>", "]><a/>"),
    "entities that are used": Kind("<a>", "&{};", "</a>"),
    "namespaces": Kind("<a>", "<b xmlns='{}'/>", "</a>"),
    "prefixes": Kind("<a>", "<{0}:b xmlns:{0}='u'/>", "</a>"),
    "names of document types": Kind("<!DOCTYPE ", "{}", "><a/>"),
    "encodings": Kind('<?xml version="1.0" encoding="', "{}", '"?><a/>'),
    "text": Kind("<a>", "{}", "</a>"),
}


def _read(kind: Kind) -> None:
    with contextlib.suppress(Malformed):
        parse(kind.document().encode())


def _answer(kind: Kind) -> None:
    call = Call("urn:schemas-upnp-org:service:WANIPConnection:2", "GetListOfPortMappings", {})
    text = kind.document()
    soap.encode_response(call, {"NewPortListing": CData(text), "NewDescription": text})
    soap.encode_error(UPnPError(402, text))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def growth(number: int) -> Iterator[tuple[str, int]]:
    """Return by how many KiB the process grows while it reads `number` documents of each kind, and writes as many."""
    works = {name: partial(_read, kind) for name, kind in KINDS.items()}
    for name, work in (works | {"answers": partial(_answer, KINDS["white space"])}).items():
        for _ in range(number // 4):  # until the allocator has what it needs
            work()
        before = _resident()
        for _ in range(number):
            work()
        yield name, _resident() - before


if __name__ == "__main__":
    print(json.dumps(dict(growth(int(sys.argv[1])))))  # noqa: T201 - the test reads it
