"""How far a packet of a probe got, by the steps that the kernel reported of it. Pure."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from igd.firewall.probing.table import (
    FIRST,
    FORWARDED,
    MAPPED,
    MARKED,
    RECEIVED,
    ROUTED,
    STRAYS,
    TO_INTERNET,
    TO_TUNNEL,
)
from igd.firewall.probing.trace import Step


class Reached(enum.IntEnum):
    """The last place on its way at which a packet was seen."""

    NOTHING = enum.auto()  # not even the first hook of netfilter
    ARRIVAL = enum.auto()
    TRANSLATION = enum.auto()
    ROUTED = enum.auto()  # the kernel forwards it
    FORWARDED = enum.auto()  # behind all forward chains
    WRONG_WAY = enum.auto()  # leaves by a third interface
    RECEIVED = enum.auto()  # by the server itself
    INTERNET = enum.auto()  # leaves by the external interface
    TUNNEL = enum.auto()  # leaves by the tunnel's


class Passage(NamedTuple):
    """How far a packet got; `stop` is the operator's rule or policy that ended its way, if one is known.

    `rules` are the operator's rules that it matched. `marked`: it had the mark of mapped flows in the last chain that
    looked; None: it came to none.
    """

    reached: Reached
    stop: Step | None
    rules: tuple[Step, ...]
    marked: bool | None


def passage(steps: Sequence[Step], ours: str) -> Passage:
    """Return how far a packet with these steps got; `ours` is the name of the probe's tables."""
    own = [step for step in steps if step.table == ours]
    theirs = [step for step in steps if step.table != ours]
    looked = [step.chain for step in own if step.chain in {MARKED, FORWARDED}]
    return Passage(
        max(map(_place, own), default=Reached.NOTHING),
        next((step for step in theirs if step.ends), None),
        tuple(step for step in theirs if step.handle),
        any(step.handle and step.chain == looked[-1] for step in own) if looked else None,
    )


def _place(step: Step) -> Reached:
    if step.chain in _CONSUMING:
        return _CONSUMING[step.chain] if step.ends else Reached.NOTHING
    return _PLACES[step.chain]


_CONSUMING = {STRAYS: Reached.WRONG_WAY, TO_INTERNET: Reached.INTERNET, TO_TUNNEL: Reached.TUNNEL}


_PLACES = {
    FIRST: Reached.ARRIVAL,
    MAPPED: Reached.TRANSLATION,
    ROUTED: Reached.ROUTED,
    MARKED: Reached.ROUTED,
    FORWARDED: Reached.FORWARDED,
    RECEIVED: Reached.RECEIVED,
}
