"""Connections leave enough descriptors for everything else, whatever the limit of open files is."""

import resource
import subprocess
import sys

import pytest

from igd.process import descriptors
from igd.process.descriptors import OTHERS

_FIT = """
import logging, resource, sys
from igd.process import descriptors
logging.basicConfig(format="%(message)s", stream=sys.stdout)
if sys.argv[4] == "fixed":
    def setrlimit(*_):
        raise PermissionError
    resource.setrlimit, set_limit = setrlimit, resource.setrlimit
    set_limit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
print(*descriptors.fitting(int(sys.argv[1]), 64), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def fitting(connections: int, soft: int, hard: int, change: str = "allowed") -> list[str]:
    """Return the lines that a process with these limits prints: warnings, then what fits and its limits."""
    words = (sys.executable, "-c", _FIT, str(connections), str(soft), str(hard), change)
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_sufficient_limit_is_left_alone() -> None:
    assert fitting(512, 1024, 2048) == ["512 64 1024 2048"]
    assert fitting(512, 576 + OTHERS, 2048) == [f"512 64 {576 + OTHERS} 2048"]


def test_the_limit_is_raised_as_far_as_needed() -> None:
    assert fitting(1500, 1024, 4096) == [f"1500 64 {1564 + OTHERS} 4096"]


@pytest.mark.parametrize(("soft", "hard"), [(200, 200), (100, 200)])
def test_connections_are_limited_to_what_fits(soft: int, hard: int) -> None:
    warning, fit = fitting(512, soft, hard)
    assert fit == "64 8 200 200"
    text = (
        "64 HTTP connections at once instead of 512, and 8 subscriptions instead of 64, because igd may have 200 open"
    )
    assert warning.startswith(text)
    assert f"LimitNOFILE={576 + OTHERS}" in warning


def test_a_service_that_may_not_change_its_limit_uses_it_as_it_is() -> None:
    warning, fit = fitting(512, 300, 2048, "fixed")
    assert fit == "152 19 300 2048"
    assert "because igd may have 300 open files" in warning


def test_at_least_one_connection_is_served() -> None:
    assert fitting(512, 100, 100)[-1] == "1 1 100 100"


def test_no_limit_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert descriptors.fitting(60_000, 256) == (60_000, 256)
