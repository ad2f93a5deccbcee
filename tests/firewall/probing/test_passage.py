"""How far a packet got, by the steps that the kernel reports."""

from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_NETDEV
from igd.firewall.probing.passage import Reached, passage
from igd.firewall.probing.table import FIRST, FORWARDED, MAPPED, MARKED, ROUTED, TO_TUNNEL
from igd.firewall.probing.trace import Step

OURS = "igd_wg0/probe"


def own(chain: str, handle: int = 0, *, ends: bool = False) -> Step:
    return Step(NFPROTO_IPV4, OURS, chain, handle, ends)


def theirs(chain: str, handle: int = 0, *, ends: bool = False) -> Step:
    return Step(NFPROTO_IPV4, "filter", chain, handle, ends)


START = [own(FIRST, 1), own(FIRST), own(MAPPED, 1, ends=False), own(ROUTED)]
OUT = [Step(NFPROTO_NETDEV, OURS, TO_TUNNEL, 1, ends=True)]


def test_a_packet_without_any_step_has_not_arrived() -> None:
    assert passage([], OURS) == (Reached.NOTHING, None, (), None)


def test_the_last_place_of_ours_counts_and_the_operators_stop() -> None:
    stop = theirs("FORWARD", 7, ends=True)
    assert passage([*START, own(MARKED, 1), own(MARKED), stop], OURS) == (Reached.ROUTED, stop, (stop,), True)


def test_a_policy_is_a_stop_without_a_rule() -> None:
    policy = theirs("FORWARD", ends=True)
    assert passage([*START, theirs("FORWARD", 3), policy], OURS)[:3] == (
        Reached.ROUTED,
        policy,
        (theirs("FORWARD", 3),),
    )


def test_a_mark_that_is_lost_between_the_two_chains_that_look_is_lost() -> None:
    marked = [own(MARKED, 1), own(MARKED)]
    assert passage([*START, *marked, own(FORWARDED, 1), own(FORWARDED), *OUT], OURS)[3] is True
    assert passage([*START, *marked, theirs("FORWARD", 3), own(FORWARDED), *OUT], OURS)[3] is False
    assert passage([*START, own(MARKED)], OURS)[3] is False


def test_what_the_probe_itself_consumes_is_no_stop() -> None:
    assert passage([*START, *OUT], OURS)[:2] == (Reached.TUNNEL, None)
