"""What all tests share: whoever lacks the rights for a test hears of it, and continuous integration insists."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root, for network namespaces and the kernel's tables")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root where there is none; fail instead where CI or IGD_REQUIRE_ALL says so."""
    if item.get_closest_marker("root") is None or os.geteuid() == 0:
        return
    reason = "needs root: it makes network namespaces and changes the kernel's tables inside them"
    if os.environ.get("CI") or os.environ.get("IGD_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)
