"""A short run of the fuzzer of the decoders, and all messages that ever found something."""

import random
from pathlib import Path

import pytest

from tests.fuzz.decoders import DECODERS, examine, run, stored_findings

MESSAGES = 8000
"""About a second for all decoders. A long run has millions (CONTRIBUTING.md)."""


@pytest.mark.parametrize("decoder", DECODERS)
def test_mutants_are_decoded_or_malformed(decoder: str) -> None:
    seed = str(random.getrandbits(32))
    findings = list(run(decoder, MESSAGES, seed))
    assert not findings, f"run({decoder!r}, {MESSAGES}, {seed!r}): {findings}"


@pytest.mark.parametrize("path", stored_findings(), ids=lambda path: path.stem)
def test_what_found_something_finds_nothing_any_more(path: Path) -> None:
    assert examine(path.stem.partition("-")[0], path.read_bytes()) is None
