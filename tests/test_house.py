"""Module names are specific. The direction of imports is checked by import-linter (pyproject.toml)."""

from pathlib import Path

import pytest

IGD = Path(__file__).parents[1] / "igd"

VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}

MODULES = sorted(path.relative_to(IGD).with_suffix("") for path in IGD.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_names_are_specific(module: Path) -> None:
    assert VAGUE.isdisjoint(module.parts)
