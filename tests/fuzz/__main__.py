"""The long runs of the fuzzers, by hand.

nice python -m tests.fuzz decoders --count 10000000 --workers 2
"""

import argparse
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz import decoders
from tests.fuzz.decoders import DECODERS, Finding

CHUNK = 10_000
"""Messages for one task of a worker."""


def _chunks(count: int, seed: int) -> Iterator[tuple[str, int, str]]:
    """Return the tasks: `count` messages in all, for each decoder in turn."""
    for number, name in zip(range(0, count, CHUNK), itertools.cycle(DECODERS)):
        yield name, min(CHUNK, count - number), f"{seed}.{number}"


def _run(task: tuple[str, int, str]) -> tuple[int, list[Finding]]:
    return task[1], list(decoders.run(*task))


def fuzz_decoders(count: int, workers: int, seed: int) -> bool:
    """Print progress and findings, and store the messages that found something; return whether none did."""
    begin, done, known = time.monotonic(), 0, set()
    with ProcessPoolExecutor(workers) as pool:
        for size, findings in pool.map(_run, _chunks(count, seed)):
            done += size
            for finding in findings:
                if finding.where not in known:
                    known.add(finding.where)
                    print(f"{finding.store()}: {finding.what}", flush=True)
            if done % (100 * CHUNK) == 0 or done == count:
                print(
                    f"{done:,} messages in {time.monotonic() - begin:.0f} s, {len(known)} kinds of findings", flush=True
                )
    return not known


def main() -> bool:
    """Run what the command line asks for; return whether nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Long runs of the fuzzers.")
    parser.add_argument("subject", choices=["decoders"])
    parser.add_argument("--count", type=int, default=10_000_000, help="messages, in all")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeats a run")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    return fuzz_decoders(chosen.count, chosen.workers, chosen.seed)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
