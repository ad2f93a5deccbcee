"""Names in the house say something; that its imports point one way, import-linter checks (pyproject.toml)."""

from pathlib import Path

import pytest

IGD = Path(__file__).parents[1] / "igd"

VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}

MODULES = sorted(path.relative_to(IGD).with_suffix("") for path in IGD.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_name_that_says_something(module: Path) -> None:
    assert VAGUE.isdisjoint(module.parts)
