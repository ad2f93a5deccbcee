"""Each subject has lines of its own, and what is left out is counted."""

import pytest

from igd.core.line_budget import LineBudget


def admitted(budget: LineBudget[str], subject: str, now: float, tried: int, *, important: bool = False) -> int:
    return sum(budget.admit(subject, now, important=important) for _line in range(tried))


def test_a_burst_and_then_so_many_in_a_second() -> None:
    budget = LineBudget[str](20)
    assert admitted(budget, "c1", 100.0, 500, important=True) == 40
    assert [admitted(budget, "c1", 101.0 + second, 500, important=True) for second in range(5)] == [20] * 5
    assert admitted(budget, "c1", 200.0, 500, important=True) == 40


def test_half_of_a_burst_is_kept_for_what_is_important() -> None:
    budget = LineBudget[str](20)
    assert admitted(budget, "c1", 100.0, 500) == 20
    assert admitted(budget, "c1", 100.0, 500, important=True) == 20
    assert admitted(budget, "c1", 101.0, 500) == 0
    assert admitted(budget, "c1", 101.0, 500, important=True) == 20


def test_a_flood_of_refusals_leaves_room_for_grants_at_every_time() -> None:
    budget = LineBudget[str](20)
    for second in range(100, 110):
        admitted(budget, "c1", float(second), 500)
        assert admitted(budget, "c1", float(second), 10, important=True) == 10


def test_subjects_do_not_share() -> None:
    budget = LineBudget[str](20)
    admitted(budget, "c1", 100.0, 10_000)
    assert admitted(budget, "c2", 100.0, 20) == 20


def test_long_lines_count_for_more() -> None:
    budget = LineBudget[str](20)
    assert [budget.admit("c1", 100.0 + second / 2, lines=20) for second in range(6)] == [True, False] * 3


@pytest.mark.parametrize("per_second", [1, 7, 10_000])
def test_every_limit_admits_what_it_says(per_second: int) -> None:
    budget = LineBudget[str](per_second)
    assert admitted(budget, "c1", 100.0, 50_000, important=True) == 2 * per_second
    assert admitted(budget, "c1", 101.0, 50_000, important=True) == per_second


def test_what_was_left_out_is_reported_once() -> None:
    budget = LineBudget[str](20)
    for subject, tried in (("c1", 25), ("c2", 120), ("c3", 20)):
        admitted(budget, subject, 100.0, tried)
    assert budget.left_out() == [("c2", 100), ("c1", 5)]
    assert budget.left_out() == []
    assert admitted(budget, "c1", 100.5, 500) == 10
    assert budget.left_out() == [("c1", 490)]
