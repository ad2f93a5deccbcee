"""What reading an entry costs by how many there are, and a long list costs another peer: `python -m benchmarks.lists`.

Beside Debian's miniupnpd, which has the first action, and lists the mappings of everybody.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import figures, gateways, soap
from benchmarks.figures import Series
from benchmarks.gateways import Gateway
from benchmarks.soap import Action
from tests.lab import Lab

HELD = (10, 1_000, 10_000)
MINIUPNPD_HELD = (10, 1_000)
"""10,000 requests would take it five minutes."""

READINGS = 300
LISTING_SECONDS = 8.0
PAUSE = 0.005  # seconds between two requests of the other peer

LIST = Action(
    "GetListOfPortMappings",
    {
        "NewStartPort": 1,
        "NewEndPort": 65535,
        "NewProtocol": "TCP",
        "NewManage": 0,
        "NewNumberOfPorts": 0,
    },
)


def main() -> None:
    """Measure, and print."""
    rows = []
    for held in HELD:
        with _igd(held) as gateway:
            ours = [_entry(gateway, index) for index in (0, held - 1)]
        theirs = []
        if held in MINIUPNPD_HELD:
            with Lab() as lab, gateways.miniupnpd(lab) as gateway:
                gateways.fill(gateway, held)
                theirs = [_entry(gateway, index) for index in (0, held - 1)]
        for number, place in enumerate(("first", "last")):
            other = theirs[number] if theirs else None
            ratio = f"{ours[number].median / other.median:.2f}" if other else "-"
            rows.append(
                (f"{place} of {held:,}", ours[number].shown(1e3), other.shown(1e3) if other else "-", ratio, "")
            )
    head = ("entry", "igd, ms", "miniupnpd, ms", "ratio", "")
    print(figures.table("GetGenericPortMappingEntry", head, rows))
    with _igd(HELD[-1]) as gateway:
        _beside_lists(gateway)


@contextmanager
def _igd(held: int) -> Iterator[Gateway]:
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        store = Path(folder) / "leases"
        gateways.write_store(lab, store, held)
        with gateways.igd(lab, store) as gateway:
            yield gateway


def _entry(gateway: Gateway, index: int) -> Series:
    action = Action("GetGenericPortMappingEntry", {"NewPortMappingIndex": index})
    return Series(tuple(soap.ask(gateway.lab.c1, gateway.control, action) for _ in range(READINGS)))


def _beside_lists(gateway: Gateway) -> None:
    """Print how long requests of c2's take alone, and while c1 lists all its mappings again and again."""
    lists: list[float] = []
    stopped = threading.Event()

    def list_again() -> None:
        while not stopped.is_set():
            lists.append(soap.ask(gateway.lab.c1, gateway.control, LIST))

    alone = _others(gateway)
    listing = threading.Thread(target=list_again)
    listing.start()
    beside = _others(gateway)
    stopped.set()
    listing.join()
    print(f"Another peer's GetExternalIPAddress, ms: {alone.shown(1e3)} alone, {beside.shown(1e3)} beside lists")
    worst = sorted(beside.values)[int(len(beside.values) * 0.99)] - alone.median
    print(f"99 of 100 were delayed by less than {worst * 1e3:.1f} ms; a list took {Series(tuple(lists)).shown(1e3)} ms")


def _others(gateway: Gateway) -> Series:
    times = []
    end = time.monotonic() + LISTING_SECONDS
    while time.monotonic() < end:
        times.append(soap.ask(gateway.lab.c2, gateway.control, soap.EXTERNAL_ADDRESS))
        time.sleep(PAUSE)
    return Series(tuple(times))


if __name__ == "__main__":
    main()
