"""The long runs of the fuzzers, by hand.

nice python -m tests.fuzz decoders --count 10000000
nice python -m tests.fuzz gateway --count 100000
"""

import argparse
import asyncio
import itertools
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.fuzz import decoders
from tests.fuzz.decoders import DECODERS
from tests.fuzz.gateway import Session

CHUNK = 5000
"""Messages or requests for one task of a worker."""

PROGRESS_SECONDS = 30.0

Task = tuple[str, int, str]
"""The decoder, if one is meant, how many messages or requests, and a seed."""

Texts = dict[str, str]
"""What was found: each kind once, with its description."""


def _feed(task: Task) -> Texts:
    """Feed a decoder; store the messages that found something."""
    return {found.where: f"{found.store()}: {found.what}" for found in decoders.run(*task)}


def _ask(task: Task) -> Texts:
    """Make requests of a new gateway."""
    _, count, seed = task
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(Session(seed, Path(folder)).run(count))
        except Exception as error:  # noqa: BLE001 - any exception that gets here is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"Session({seed!r}, ...).run({count}): {traceback.format_exc()}"
            return {f"{where.filename} {where.lineno}": text}
    return {}


SUBJECTS: dict[str, tuple[Callable[[Task], Texts], tuple[str, ...]]] = {
    "gateway": (_ask, ("",)),
    "decoders": (_feed, tuple(DECODERS)),
    **{name: (_feed, (name,)) for name in DECODERS},
}


def _tasks(subjects: tuple[str, ...], count: int, seed: int) -> Iterator[Task]:
    for number, subject in zip(range(0, count, CHUNK), itertools.cycle(subjects), strict=False):
        yield subject, min(CHUNK, count - number), f"{seed}.{number}"


def fuzz(subject: str, count: int, workers: int, seed: int) -> bool:
    """Print progress and findings; return whether there was none."""
    work, subjects = SUBJECTS[subject]
    known: Texts = {}
    begin = reported = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        for number, found in enumerate(pool.map(work, _tasks(subjects, count, seed)), start=1):
            for where in found.keys() - known.keys():
                print(found[where], flush=True)
            known |= found
            now, done = time.monotonic(), min(number * CHUNK, count)
            if done == count or now - reported > PROGRESS_SECONDS:
                print(f"{done:,} in {now - begin:.0f} s, findings: {len(known)}", flush=True)
                reported = now
    return not known


def main() -> bool:
    """Run what the command line asks for; return whether nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Long runs of the fuzzers.")
    parser.add_argument("subject", choices=SUBJECTS, help="the gateway, all decoders, or one")
    parser.add_argument("--count", type=int, default=100_000, help="messages or requests, in all")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="repeats a run")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    return fuzz(chosen.subject, chosen.count, chosen.workers, chosen.seed)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
