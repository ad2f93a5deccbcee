"""The benchmark: `./benchmark [--quick]`."""

import argparse
import logging
import os
import platform
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from benchmarks import phases

LATEST_END = 900
"""After so many seconds it ends, whatever it waits for."""

_LEGEND = """\
Two servers of one shape take turns, round by round and spell by spell. Medians, with the quartiles in brackets.
CPU is the processor time of the gateway's process for one request, mean. A request goes from a client through
WireGuard, as miniupnpc makes it; the floor is what the same request costs with a server that only answers it.
Traffic goes from the internet to the client past WireGuard. benchmarks/README.md says more.
"""


def main() -> int:
    """Measure everything, and print as it comes."""
    parser = argparse.ArgumentParser(prog="benchmark", description="igd beside Debian's miniupnpd, measured.")
    parser.add_argument("--quick", action="store_true", help="in about a minute, and less exactly")
    plan = phases.QUICK if parser.parse_args().quick else phases.DEFAULT
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, _end)
    signal.alarm(LATEST_END)
    begin = time.monotonic()
    print(f"{_machine()}\n\n{_LEGEND}", flush=True)
    for phase in (phases.against_miniupnpd, phases.many_mappings, phases.nat_pmp, phases.starts):
        for text in phase(plan):
            print(text, flush=True)
    print(f"Took {time.monotonic() - begin:.0f} s; {_load()} at the end.")
    return 0


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through every `with`: they stop what was started."""
    sys.exit(f"ended by {signal.Signals(number).name}")


def _machine() -> str:
    python = f"Python {platform.python_version()}"
    return f"Linux {platform.release()}, {os.cpu_count()} processors, {python}; {_load()} at the beginning."


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
