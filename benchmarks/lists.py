"""What reading an entry costs by how many there are, and a long list costs another peer: `python -m benchmarks.lists`.

Beside Debian's miniupnpd, which has the first action, and lists the mappings of everybody.
"""

import tempfile
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
LISTERS = (1, 8)
"""How many connections of one peer list at the same time."""

LONGEST = "\u00e9&" * 128
"""A description as long as igd takes it, and longer as XML."""
PAUSE = 0.005  # seconds between two requests of the other peer


def main() -> None:
    """Measure, and print."""
    rows = []
    for held in HELD:
        with _igd(held) as gateway:
            ours = [_entry(gateway, index) for index in (0, held - 1)]
        theirs: list[Series] = []
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
    for description in ("benchmark", LONGEST):
        with _igd(HELD[-1], description) as gateway:
            print(f"Descriptions of {len(description)} characters.")
            for connections in LISTERS:
                _beside_lists(gateway, connections)


@contextmanager
def _igd(held: int, description: str = "benchmark") -> Iterator[Gateway]:
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        store = Path(folder) / "leases"
        gateways.write_store(lab, store, held, description)
        with gateways.igd(lab, store) as gateway:
            yield gateway


def _entry(gateway: Gateway, index: int) -> Series:
    action = Action("GetGenericPortMappingEntry", {"NewPortMappingIndex": index})
    return Series(tuple(soap.ask(gateway.lab.c1, gateway.control, action) for _ in range(READINGS)))


def _beside_lists(gateway: Gateway, connections: int) -> None:
    """Print how long requests of c2's take alone, and while c1 lists by so many connections all the time."""
    alone = _others(gateway)
    seconds = str(LISTING_SECONDS + 1)
    with gateway.lab.c1.start(*gateways.PYTHON, "benchmarks.lister", str(connections), seconds) as lister:
        lister.wait_for("listing")
        beside = _others(gateway)
        listed = lister.wait_for("listed (.*)")[1]
    print(f"{connections} at a time. Another peer's GetExternalIPAddress, ms:")
    print(f"    alone {alone.shown(1e3)}, beside lists {beside.shown(1e3)}; a list takes {listed}")
    median, most = (each - alone.median for each in (beside.median, _percentile(beside, 99)))
    print(f"    half were delayed by {median * 1e3:.1f} ms, 99 of 100 by less than {most * 1e3:.1f}")
    print(f"    alone, 99 of 100 were delayed by less than {(_percentile(alone, 99) - alone.median) * 1e3:.1f}")


def _percentile(series: Series, percent: int) -> float:
    return sorted(series.values)[len(series.values) * percent // 100]


def _others(gateway: Gateway) -> Series:
    times = []
    end = time.monotonic() + LISTING_SECONDS
    while time.monotonic() < end:
        times.append(soap.ask(gateway.lab.c2, gateway.control, soap.EXTERNAL_ADDRESS))
        time.sleep(PAUSE)
    return Series(tuple(times))


if __name__ == "__main__":
    main()
