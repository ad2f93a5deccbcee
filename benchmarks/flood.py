"""What one peer's flood costs another peer, and the server: `python -m benchmarks.flood [--kinds KIND ...]`."""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.bystander import Bystander
from benchmarks.figures import Row, Series, table
from benchmarks.flooder import KINDS, ROUTED
from benchmarks.soap import GATEWAY
from tests.e2e import serving
from tests.lab import Lab, Process

RATE = 10_000
PAUSE_SECONDS = 0.02  # between two rounds of the other peer

_PYTHON = ("env", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable, "-m")
_MAP = ("UPnP", "NAT-PMP", "PCP", "SSDP")


class Measured(NamedTuple):
    """One flood: how many requests came to pass, what the other peer saw, and what the server's process logged."""

    offered: str
    bystander: Bystander
    log_bytes: float  # a second


def let_route(lab: Lab) -> None:
    """Have c1 send from the addresses of ROUTED, and the server take them for c1's."""
    key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
    lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"10.100.0.2/32,2001:470:100::2/128,{ROUTED}")
    lab.srv.run("ip", "route", "add", str(ROUTED), "dev", "wg0")
    lab.c1.run("ip", "route", "add", "local", str(ROUTED), "dev", "lo")


@contextlib.contextmanager
def answering(lab: Lab) -> Iterator[Process]:
    """Run what only answers."""
    with lab.srv.start(*_PYTHON, "benchmarks.answering", GATEWAY) as process:
        process.wait_for("listening")
        yield process


def flood(lab: Lab, server: Process, kind: str, seconds: float, *, strict: bool) -> Measured:
    """Have c1 flood for so long, and c2 ask meanwhile."""
    lines = len(server.lines)
    bystander = Bystander(lab.c2, strict=strict)
    with lab.c1.start("nice", *_PYTHON, "benchmarks.flooder", kind, str(RATE), str(seconds)) as flooder:
        flooder.wait_for("flooding")
        begin = time.monotonic()
        while time.monotonic() < begin + seconds - 0.5:
            bystander.ask_all()
            time.sleep(PAUSE_SECONDS)
        offered = flooder.wait_for(r"sent (\d+)")[1]
        passed = time.monotonic() - begin
    return Measured(offered, bystander, sum(len(line) + 1 for line in server.lines[lines:]) / passed)


def resident_kilobytes(pid: int) -> int:
    """Return what a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0])


def measure(lab: Lab, kind: str, seconds: float) -> list[Row]:
    """Flood igd twice, and once what only answers; a row for each protocol of the other peer."""
    with serving.serving(lab) as process:
        flood(lab, process, kind, seconds, strict=True)
        time.sleep(1.0)
        before = resident_kilobytes(process.pid)
        ours = flood(lab, process, kind, seconds, strict=True)
        time.sleep(1.0)
        grown = resident_kilobytes(process.pid) - before
    with answering(lab) as process:
        floor = flood(lab, process, kind, seconds, strict=False)
    for failure in sorted(set(ours.bystander.failures)):
        print(f"{kind}: {failure}", file=sys.stderr)
    return [_row(kind, name, ours, floor, grown) for name in _MAP]


def _row(kind: str, name: str, ours: Measured, floor: Measured, grown: int) -> Row:
    mine, base = Series(tuple(ours.bystander.times[name])), Series(tuple(floor.bystander.times[name]))
    failed = sum(failure.startswith(f"{name}:") for failure in ours.bystander.failures)
    first = name == _MAP[0]
    return (
        kind if first else "",
        ours.offered if first else "",
        name,
        f"{len(mine.values) - failed}/{len(mine.values)}",
        str(ours.bystander.repeated) if first else "",
        mine.shown(1e3, 1),
        f"{max(mine.values) * 1e3:,.0f}",
        base.shown(1e3, 1),
        f"{mine.median / base.median:.1f}",
        f"{grown:,}" if first else "",
        f"{ours.log_bytes / 1e3:.1f}" if first else "",
        "",
    )


_HEAD = (
    "flood",
    "req/s",
    "the other",
    "granted",
    "repeats",
    "ms",
    "worst",
    "floor ms",
    "ratio",
    "kB more",
    "log kB/s",
    "",
)


def main() -> None:
    """Measure each kind of flood, and print as it comes."""
    parser = argparse.ArgumentParser(prog="benchmarks.flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="the length of one flood")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    for kind in options.kinds:
        with Lab() as lab:
            let_route(lab)
            print(table(f"Flood: {kind}", _HEAD, measure(lab, kind, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
