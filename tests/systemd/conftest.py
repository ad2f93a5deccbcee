"""Booted machines; in CI they must boot."""

from pathlib import Path

import pytest

from tests import trees
from tests.lab.fixtures import needs
from tests.systemd import tree

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):  # whichever comes first waits for the mirrors
            item.add_marker(pytest.mark.timeout(trees.PATIENCE))


@pytest.fixture(scope="session")
def layers(root: None) -> tuple[Path, Path]:
    """The files of all machines."""
    needs("mmdebstrap", "systemd-nspawn")
    return tree.layers()
