"""The clocks of a host, and the name of its boot."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from igd.host import clock
from tests.lab.fixtures import requires_root

_ROOT = Path(__file__).parents[2]
_SHOW = "import json; from igd.host import clock; now = clock.moment(); print(json.dumps([now.boot, now.boottime]))"


def test_a_moment_is_now() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    now = clock.moment()
    after = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    assert before[0] <= now.boottime <= after[0]
    assert before[1] <= now.wall <= after[1]
    assert before[0] <= clock.boottime()


def elsewhere(*prefix: str) -> tuple[str, float]:
    """Return the name of the boot and the boottime as another process sees them."""
    out = subprocess.run([*prefix, sys.executable, "-c", _SHOW], cwd=_ROOT, capture_output=True, check=True).stdout
    boot, boottime = json.loads(out)
    return boot, boottime


def test_all_processes_of_a_boot_give_it_the_same_name() -> None:
    assert elsewhere()[0] == clock.moment().boot
    assert clock.moment().boot


@requires_root
def test_a_time_namespace_is_another_boot() -> None:
    inside, boottime = elsewhere("unshare", "--time", "--boottime", "1000000", "--fork")
    assert boottime >= 1_000_000
    assert inside
    assert inside != clock.moment().boot


def test_a_boot_whose_name_cannot_be_read_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_BOOT_ID", tmp_path / "missing")
    assert not clock._boot.__wrapped__()


def test_a_kernel_without_time_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_OFFSETS", tmp_path / "missing")
    assert clock._boot.__wrapped__() == Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
