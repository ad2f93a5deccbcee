"""A short run of the fuzzer of the gateway."""

import random
from pathlib import Path

from tests.fuzz.gateway import Session

REQUESTS = 3000
"""About two seconds. A long run has a hundred thousand (CONTRIBUTING.md)."""


async def test_table_kernel_and_store_agree_after_failures(tmp_path: Path) -> None:
    seed = str(random.getrandbits(32))
    session = Session(seed, tmp_path)
    try:
        await session.run(REQUESTS)
    except Exception as error:
        error.add_note(f"Session({seed!r}, ...).run({REQUESTS})")
        raise
    granted = {"MapPort", "UnmapPorts", "UnmapInternal", "RenewPinhole", "UnmapPinhole"}
    assert (
        granted | {"SYSTEM_FAILURE", "CONFLICT", "QUOTA", "OTHER_NONCE", "NOT_YOUR_ADDRESS"} <= session.outcomes.keys()
    )
