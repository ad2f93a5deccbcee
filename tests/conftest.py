"""What all tests share: the lab, and that whoever lacks the rights for a test hears of it."""

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.fixtures import lab, root

__all__ = ["lab", "root"]

# Property tests must not depend on the speed of the machine: by default, an example that stalls for 200 ms fails.
settings.register_profile("igd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("igd")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root, for network namespaces and the kernel's tables")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.usefixtures("root"))
