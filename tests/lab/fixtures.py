"""Pytest fixtures; `from tests.lab.fixtures import lab, root` in a conftest.py makes them known.

Tests that need other hosts than those of `lab` say `pytestmark = requires_root` and make their own.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from .host import Host
from .topology import Lab

_PROGRAMS = ("unshare", "nsenter", "ip", "wg", "wg-quick", "iptables-nft", "socat", "ping")

requires_root = pytest.mark.usefixtures("root")


@pytest.fixture(scope="session")
def root() -> None:
    """Skip the test, saying why, where no lab can be built; in CI and under IGD_REQUIRE_ALL=1, fail it."""
    if obstacle := _obstacle():
        _give_up(obstacle)


@pytest.fixture
def lab(root: None) -> Iterator[Lab]:
    """Build a lab with its tunnels up."""
    with Lab() as lab:
        yield lab


def needs(*programs: str) -> None:
    """Skip the running test where one of these is not installed; in CI and under IGD_REQUIRE_ALL=1, fail it."""
    if missing := _missing(programs):
        _give_up(missing)


def _give_up(reason: str) -> None:
    if os.environ.get("CI") == "true" or os.environ.get("IGD_REQUIRE_ALL") == "1":
        pytest.fail(f"must be tested here, but {reason}")
    pytest.skip(reason)


def _obstacle() -> str:
    """Return why no lab can be built here; empty if one can."""
    if os.geteuid() != 0:
        return "the lab needs root"
    if missing := _missing(_PROGRAMS):
        return missing
    if not (Path("/sys/module/wireguard").exists() or shutil.which("wireguard-go")):
        return "the lab needs WireGuard in the kernel, or wireguard-go"
    try:
        with Host("probe") as host:
            host.run("true")
    except OSError as error:
        return str(error)
    return ""


def _missing(programs: Iterable[str]) -> str:
    missing = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""
