"""docs/conformance.md and docs/threats.md name tests that exist, and leave no row without a proof or a reason."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCUMENTS = {
    name: (TESTS.parent / "docs" / name).read_text(encoding="utf-8") for name in ("conformance.md", "threats.md")
}

NAMED = sorted({each for text in DOCUMENTS.values() for each in re.findall(r"`([\w/]+\.py)::(\w+)`", text)})
HEADERS = ("| § |", "| what", "| who", "| ---")
ROWS = [
    line
    for text in DOCUMENTS.values()
    for line in text.splitlines()
    if line.startswith("| ") and not line.startswith(HEADERS)
]


@cache
def functions_in(path: str) -> set[str]:
    """Give the names of the functions of a file."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    assert (TESTS / path).is_file()
    assert name in functions_in(path)


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_name_has_been_found(text: str) -> None:
    assert text.count(".py::") == len(re.findall(r"`[\w/]+\.py::test_\w+`", text))


@pytest.mark.parametrize("row", ROWS)
def test_every_clause_has_a_proof_or_a_reason(row: str) -> None:
    *_, clause, proof = (cell.strip() for cell in row.strip("|").split("|"))
    assert clause
    assert "::" in proof or proof.endswith("."), "a reason is a sentence"


@pytest.mark.parametrize("document", ["RFC 6886", "RFC 6887", "RFC 7723", "RFC 7753"])
def test_every_specification_is_there(document: str) -> None:
    assert f"({document})\n" in DOCUMENTS["conformance.md"]
