"""Changes messages as a fuzzer does: each mutant is a sample with some octets, numbers or words changed."""

import random
import re
from collections.abc import Callable, Sequence

MOST_CHANGES = 5
LONGEST = 20_000
"""Octets of a mutant: more than the largest message that any decoder accepts."""

OCTETS = b"\x00\x01\x7f\x80\xff\xfe\xef\xed09aZ-+.:;,#/*%&<>[](){}'\"\\ \t\r\n"
NUMBERS = (
    *("0", "-0", "+1", "-1", "00", "1.0", "1e9", "0x10", "255", "256", "65535", "65536", "2147483648", "4294967295"),
    *("4294967296", "18446744073709551616", "9" * 40, "9" * 5000, "\u00b2", "\u0661", "\uff11", "", "1_0", "NaN"),
)
_NUMBER = re.compile(rb"[0-9]+")
_BORDERS = (0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF)

Change = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def mutant(rng: random.Random, samples: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return one of `samples`, changed up to MOST_CHANGES times; `words` mean something in these messages."""
    data = bytearray(rng.choice(samples))
    for _ in range(rng.randint(1, MOST_CHANGES)):
        rng.choice(_CHANGES)(rng, data, samples if rng.random() < 0.1 else words)
    return bytes(data[:LONGEST])


def _place(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(len(data) + 1)


def _piece(rng: random.Random, data: bytearray) -> slice:
    """Return where a piece of the message is: short as a rule."""
    start = _place(rng, data)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, rng.randrange(len(data) + 1))))


def _flip(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(OCTETS)


def _set_number(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    """Replace two or four octets by a binary number at a border."""
    at, size = _place(rng, data), rng.choice((2, 4))
    data[at : at + size] = (rng.choice(_BORDERS) * rng.choice((1, -1)) % 2 ** (8 * size)).to_bytes(size, "big")


def _write_number(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    """Replace a number in text by another."""
    found = list(_NUMBER.finditer(data))
    if found:
        chosen = rng.choice(found)
        data[chosen.start() : chosen.end()] = rng.choice(NUMBERS).encode()


def _insert(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    at = _place(rng, data)
    data[at:at] = rng.choice((rng.randbytes(rng.randint(1, 8)), bytes([rng.choice(OCTETS)]) * rng.randint(1, 300)))


def _insert_word(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    at = _place(rng, data)
    data[at:at] = rng.choice(words)


def _replace_word(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> None:
    """Replace a word, if it is in the message, by another."""
    old = rng.choice(words)
    at = data.find(old)
    if at >= 0:
        data[at : at + len(old)] = rng.choice(words)


def _delete(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    del data[_piece(rng, data)]


def _double(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    piece = _piece(rng, data)
    data[piece.start : piece.start] = data[piece] * rng.choice((1, 1, 1, 2, 40))
    del data[LONGEST:]


def _move(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    piece = _piece(rng, data)
    moved = data[piece]
    del data[piece]
    at = _place(rng, data)
    data[at:at] = moved


def _cut(rng: random.Random, data: bytearray, _words: Sequence[bytes]) -> None:
    del data[_place(rng, data) :]


_CHANGES: tuple[Change, ...] = (
    *(_flip, _set, _set_number, _write_number, _insert, _insert_word, _replace_word, _delete, _double, _move),
    _cut,
)
