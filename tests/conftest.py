"""Shared by all tests: the lab, a lock of iptables' for each worker, the hypothesis profile, and the need for root."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.fixtures import lab, root

__all__ = ["lab", "root"]

# Property tests must not depend on the speed of the machine: by default, an example that stalls for 200 ms fails.
settings.register_profile("igd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("igd")

ROOT_FIXTURES = {"root", "alone"}


@pytest.fixture(scope="session", autouse=True)
def xtables_lock(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let iptables' programs and igd use a lock of this worker's: for the machine's own they would wait, or fail."""
    os.environ["XTABLES_LOCKFILE"] = str(tmp_path_factory.mktemp("run") / "xtables.lock")


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Undo what a test does to the log: its level, and filters of its handlers, decide what later tests capture.

    Without another fixture, so that it is set up before them and has the last word.
    """
    root = logging.getLogger()
    level = root.level
    filters = [(handler, handler.filters) for handler in root.handlers]
    for handler, _ in filters:
        handler.filters = []
    yield
    for handler, before in filters:
        handler.filters = before
    root.setLevel(level)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root, for network namespaces and the kernel's tables")


@pytest.hookimpl(tryfirst=True)  # before -m "not root" deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        if item.get_closest_marker("root") or ROOT_FIXTURES.intersection(item.fixturenames):
            item.add_marker("root")
            item.fixturenames.insert(0, "root")
