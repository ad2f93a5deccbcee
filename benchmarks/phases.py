"""What is compared: each phase raises its labs, has turns taken in them, and gives a table for each comparison."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks import gateways, traffic
from benchmarks.figures import Row, Series, Target, table
from benchmarks.gateways import Gateway
from benchmarks.turns import NAT_PMP, UPNP, Cost, Kinds, Mappings, Rates, requests, traffic_rates
from tests.lab import Lab

log = logging.getLogger(__name__)

HELD = 1000
STORED = 10_000

_ADD_AT_0 = Target(0.4)
_ADD_AT_HELD = Target(0.1)
_ADD_AT_MANY = Target(1.3)
_CONNECTIONS = Target(2.5, at_most=False)
_NO_SLOWER = Target(0.9, at_most=False)
_START = Target(2.0)
_MAP_AT_0 = Target(1.2)
_MAP_AT_STORED = Target(0.02)


class Plan(NamedTuple):
    """How often, for how long, and with how many mappings."""

    rounds: int  # of requests
    spells: int  # of traffic, to each mapping
    spell_seconds: float
    starts: int
    many: tuple[int, ...]  # that igd holds alone


DEFAULT = Plan(rounds=80, spells=20, spell_seconds=0.2, starts=5, many=(10_000, 60_000))
QUICK = Plan(rounds=20, spells=5, spell_seconds=0.1, starts=2, many=(60_000,))


def against_miniupnpd(plan: Plan) -> Iterator[str]:
    """Compare requests with nothing held and with HELD mappings, and then the traffic to the last of them."""
    with tempfile.TemporaryDirectory() as folder, Lab() as left, Lab(forward="drop") as right, ExitStack() as life:
        log.info("miniupnpd and igd with nothing held")
        theirs = life.enter_context(gateways.miniupnpd(left))
        ours = life.enter_context(gateways.igd(right, Path(folder) / "leases"))
        floor = life.enter_context(gateways.floor(right))
        yield _requests("Requests with nothing held", (theirs, ours, floor), plan, _ADD_AT_0)
        log.info("having each hold %s mappings", HELD)
        gateways.fill(theirs, HELD)
        gateways.fill(ours, HELD)
        log.info("miniupnpd and igd with %s mappings held", HELD)
        yield _requests(f"Requests with {HELD:,} mappings held", (theirs, ours, floor), plan, _ADD_AT_HELD)
        log.info("traffic to these mappings")
        with traffic.cable(theirs), traffic.cable(ours):
            yield _traffic_against(left, right, plan)


def many_mappings(plan: Plan) -> Iterator[str]:
    """Compare igd that holds many mappings with one that holds none, and traffic to its last mapping and its first."""
    with tempfile.TemporaryDirectory() as folder, Lab() as left, Lab() as right, ExitStack() as life:
        empty = life.enter_context(gateways.igd(left, Path(folder) / "empty"))
        floor = life.enter_context(gateways.floor(right))
        for count in plan.many:
            log.info("igd with nothing and with %s mappings held", count)
            store = Path(folder) / str(count)
            gateways.write_store(right, store, count)
            with gateways.igd(right, store) as full:
                title = f"Requests with {count:,} mappings held"
                yield _requests(title, (replace(empty, name="igd, 0 held"), full, floor), plan, _ADD_AT_MANY)
                log.info("traffic to these mappings")
                with traffic.cable(full):
                    yield _traffic_within(right, count, plan)


def starts(plan: Plan) -> Iterator[str]:
    """Time the start without leases and with STORED."""
    counts = (0, STORED)
    seconds: Mapping[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder, Lab(forward="drop") as lab:
        for count in counts:
            gateways.write_store(lab, Path(folder) / str(count), count)
        for number in range(plan.starts):
            log.info("starts, %s of %s", number + 1, plan.starts)
            for count in counts:
                seconds[count].append(gateways.start_seconds(lab, Path(folder) / str(count)))
    medians = {count: Series(tuple(seconds[count])) for count in counts}
    rows = [
        (f"{count:,} stored leases", series.shown(), _START.verdict(series.median) if count else "")
        for count, series in medians.items()
    ]
    yield table("From exec until igd serves, seconds", ("", "igd", "to be"), rows)


def nat_pmp(plan: Plan) -> Iterator[str]:
    """Compare answers by NAT-PMP with nothing held and with STORED mappings."""
    with tempfile.TemporaryDirectory() as folder, Lab() as left, Lab() as right, ExitStack() as life:
        log.info("NAT-PMP: miniupnpd and igd with nothing held")
        theirs = life.enter_context(gateways.miniupnpd(left))
        floor = life.enter_context(gateways.floor(right))
        with gateways.igd(right, Path(folder) / "empty") as ours:
            title = "NAT-PMP requests with nothing held"
            yield _requests(title, (theirs, ours, floor), plan, _MAP_AT_0, NAT_PMP)
        log.info("NAT-PMP: miniupnpd and igd with %s mappings held", STORED)
        gateways.copy_rules(theirs, STORED)
        gateways.write_store(right, Path(folder) / "full", STORED)
        with gateways.igd(right, Path(folder) / "full") as ours:
            title = f"NAT-PMP requests with {STORED:,} mappings held"
            yield _requests(title, (theirs, ours, floor), plan, _MAP_AT_STORED, NAT_PMP)


def _requests(
    title: str, three: tuple[Gateway, Gateway, Gateway], plan: Plan, target: Target, kinds: Kinds = UPNP
) -> str:
    """Compare the second gateway with the first; the third is the floor."""
    base, other, floor = requests(three, kinds, plan.rounds)
    opening = ("add", "map")
    head = ("", three[0].name, "worst", "CPU", three[1].name, "worst", "CPU", "ratio", "of CPU", "ratio to be")
    rows = [_compared(kind, base[kind], other[kind], target if kind.startswith(opening) else None) for kind in kinds]
    rows.append(("(the floor)", "", "", "", *_milliseconds(floor[next(iter(kinds))]), "", "", ""))
    return table(f"{title}, milliseconds", head, rows)


def _compared(kind: str, base: Cost, other: Cost, target: Target | None) -> Row:
    ratio, of_processor = other.wall.median / base.wall.median, other.processor / base.processor
    verdict = target.verdict(ratio) if target else ""
    return kind, *_milliseconds(base), *_milliseconds(other), f"{ratio:.2f}", f"{of_processor:.2f}", verdict


def _milliseconds(cost: Cost) -> tuple[str, str, str]:
    return cost.wall.shown(1e3), f"{max(cost.wall.values) * 1e3:,.0f}", f"{cost.processor * 1e3:,.2f}"


def _traffic_against(left: Lab, right: Lab, plan: Plan) -> str:
    first, last = 0, HELD - 2
    theirs, theirs_first, ours, ours_first = _rates(
        plan, Mappings(left, last), Mappings(left, first), Mappings(right, last), Mappings(right, first)
    )
    # What an operator may do who knows of it: then only the first packet of a flow walks through miniupnpd's chain.
    left.srv.run(
        *["nft", "insert", "rule", "inet", "miniupnpd", "forward", "ct", "state", "established,related", "accept"]
    )
    tuned, ours_again = _rates(plan, Mappings(left, last), Mappings(right, last))
    rows = [
        _faster("TCP: last, miniupnpd's last", theirs.connections, ours.connections, _CONNECTIONS),
        _faster("TCP: last, miniupnpd's last, tuned", tuned.connections, ours_again.connections),
        _faster("TCP: first, miniupnpd's first", theirs_first.connections, ours_first.connections),
        _faster("UDP: last, miniupnpd's last", theirs.datagrams, ours.datagrams),
        _faster("UDP: last, miniupnpd's last, tuned", tuned.datagrams, ours_again.datagrams),
        _faster("UDP: first, miniupnpd's first", theirs_first.datagrams, ours_first.datagrams),
        *_last_to_first(ours_first, ours),
    ]
    return table(f"Traffic to one of {HELD:,} mappings, {_UNITS}", _TRAFFIC_HEAD, rows)


def _traffic_within(lab: Lab, count: int, plan: Plan) -> str:
    first, last = _rates(plan, Mappings(lab, 0), Mappings(lab, count - 2))
    return table(f"Traffic to one of {count:,} mappings, {_UNITS}", _TRAFFIC_HEAD, _last_to_first(first, last))


_UNITS = "new TCP connections or UDP packets a second"
_TRAFFIC_HEAD = ("igd's, and the other", "the other", "igd", "ratio", "ratio to be")


def _rates(plan: Plan, *mappings: Mappings) -> list[Rates]:
    return traffic_rates(mappings, plan.spells, plan.spell_seconds)


def _last_to_first(first: Rates, last: Rates) -> list[Row]:
    return [
        _faster("TCP: last, igd's first", first.connections, last.connections, _NO_SLOWER),
        _faster("UDP: last, igd's first", first.datagrams, last.datagrams, _NO_SLOWER),
    ]


def _faster(what: str, base: Series, other: Series, target: Target | None = None) -> Row:
    ratio = other.median / base.median
    verdict = target.verdict(ratio) if target else ""
    return what, base.shown(digits=0), other.shown(digits=0), f"{ratio:.2f}", verdict
