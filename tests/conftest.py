"""What all tests share: the lab, and that whoever lacks the rights for a test hears of it."""

import pytest

from tests.lab.fixtures import lab, root

__all__ = ["lab", "root"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root, for network namespaces and the kernel's tables")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.usefixtures("root"))
