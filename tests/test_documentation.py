"""The documents are built without a warning, and say of keys and commands what the program says."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from igd import cli
from igd.config import Config
from igd.config_peers import PeerSettings
from igd.config_values import Section

ROOT = Path(__file__).parents[1]

_OF_THE_WHOLE: dict[str, type[Section]] = {"Top level": Config, "`[peers.NAME]`": PeerSettings}
SECTIONS = _OF_THE_WHOLE | {
    f"`[{name}]`": type(field.default)
    for name, field in Config.model_fields.items()
    if isinstance(field.default, Section)
}

OWN_SECTIONS = dict.fromkeys(SECTIONS, frozenset[str]()) | {
    "Top level": {"peers", *(name.strip("`[]") for name in SECTIONS)}
}
"""Keys that are sections themselves."""


def build(builder: str, into: Path) -> Path:
    command = (
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-b",
        builder,
        "-d",
        into / "doctrees",
        "docs",
        into / builder,
    )
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return into / builder


def test_the_site_has_no_dead_link_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Sphinx warns of links that lead nowhere; each warning is an error."""
    pages = list(build("html", tmp_path).rglob("*.html"))
    assert {"index", "operating", "configuration", "clients", "commands"} <= {page.stem for page in pages}
    loaded = [
        re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="(?:https?:)?//[^"]*', page.read_text()) for page in pages
    ]
    assert not any(loaded)


def test_the_manual_pages_name_every_command_and_key(tmp_path: Path) -> None:
    built = build("man", tmp_path)
    commands, configuration = (as_text(built / name) for name in ("igd.8", "igd.toml.5"))
    for command, what in cli.COMMANDS.items():
        assert re.search(rf"(?m)^ +{command}$", commands)
        assert what.purpose.split()[0] in commands
    for section in SECTIONS.values():
        for key in section.model_fields:
            assert key in configuration.lower()  # titles are in capitals


def as_text(page: Path) -> str:
    """Return the page as `man` shows it in 120 columns; it must have no error."""
    shown = subprocess.run(
        ("groff", "-k", "-man", "-t", "-Tutf8", "-P-cbou", "-ww", "-Wbreak", "-rLL=120n", page),
        capture_output=True,
        text=True,
        check=True,
        env=C_LOCALE,
    )
    assert not shown.stderr
    return shown.stdout


C_LOCALE = os.environ | {"LC_ALL": "C.UTF-8"}


def test_the_completions_of_bash_name_every_command() -> None:
    script = subprocess.run(
        (sys.executable, "-m", "shtab", "--shell=bash", "igd.cli.parser"), capture_output=True, text=True, check=True
    ).stdout
    asked = 'COMP_WORDS=(igd ""); COMP_CWORD=1; _shtab_igd igd "" igd; echo "${COMPREPLY[@]}"'
    completed = subprocess.run(("bash", "-c", f"{script}\n{asked}"), capture_output=True, text=True, check=True)
    assert cli.COMMANDS.keys() <= set(completed.stdout.split())


def table(title: str) -> Iterator[dict[str, str]]:
    """Yield the rows of the first table below this title of the page, by column."""
    text = (ROOT / "docs/configuration.md").read_text()
    below = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = next(part for part in below.split("\n\n") if part.strip().startswith("| key "))
    header, _, *rows = map(cells, lines.strip().splitlines())
    for row in rows:
        yield dict(zip(header, row, strict=True))


def cells(line: str) -> list[str]:
    """Return what is between the bars of a row; a bar inside code has no space around it."""
    return [cell.strip() for cell in re.split(r"(?:^|(?<= ))\|(?= |$)", line)[1:-1]]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_page_of_the_configuration_has_each_key_with_its_default_and_range(title: str) -> None:
    expected = {key: field for key, field in SECTIONS[title].model_fields.items() if key not in OWN_SECTIONS[title]}
    seen = set[str]()
    for row in table(title):
        for key in re.findall(r"`(\w+)`", row["key"]):
            seen.add(key)
            check(row, expected[key])
    assert seen == expected.keys()


def check(row: dict[str, str], field: FieldInfo) -> None:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, str | int):
        assert value(row["default"]) == default, row["key"]
    if "range" in row:
        bounds = {type(each): each for each in field.metadata}
        assert row["range"] == f"{bounds[Ge].ge} to {bounds[Le].le}", row["key"]


def value(cell: str) -> Any:  # noqa: ANN401 - any TOML value
    """Return the value that a cell such as `"auto"` has as code."""
    return tomllib.loads(f"it = {cell.strip('`')}")["it"]
