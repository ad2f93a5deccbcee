"""The rate limit admits up to its rate and one burst, and no more."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.rate_limit import RateLimit


@pytest.mark.parametrize("rate", [1, 2, 3, 7, 200, 1000])
@pytest.mark.parametrize("now", [0.0, 0.1, 123456.789, 2.0**25 + 0.3])
def test_a_burst_equals_one_second_of_the_rate(rate: int, now: float) -> None:
    limit = RateLimit(rate)
    assert [limit.admit("peer", now) for _ in range(rate + 1)] == [True] * rate + [False]


def test_a_refused_event_is_not_counted() -> None:
    limit = RateLimit(2)
    assert [limit.admit("peer", 0.0) for _ in range(100)].count(True) == 2
    assert [limit.admit("peer", 0.5) for _ in range(100)].count(True) == 1


def test_keys_have_separate_buckets() -> None:
    limit = RateLimit(1)
    assert limit.admit("one", 0.0)
    assert not limit.admit("one", 0.0)
    assert limit.admit("two", 0.0)


def test_full_buckets_are_dropped() -> None:
    limit = RateLimit(1)
    for key in range(1000):
        limit.admit(key, 1.0)
    limit.admit("later", 100.0)
    assert len(limit._full_at) == 1


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 70)), max_size=200),
    st.floats(0, 1e6),
)
def test_never_more_than_the_rate_and_one_burst(rate: int, events: list[tuple[str, float]], start: float) -> None:
    limit = RateLimit(rate)
    now, admitted = start, Counter[str]()
    for key, pause in events:
        now += pause / 100
        admitted[key] += limit.admit(key, now)
        assert admitted[key] <= rate * (now - start + 1) + 0.11


@given(st.integers(1, 20), st.lists(st.floats(1.0, 200.0), max_size=100))
def test_events_within_the_rate_are_always_admitted(rate: int, pauses: list[float]) -> None:
    limit = RateLimit(rate)
    now = 0.0
    for pause in pauses:
        now += pause / rate
        assert limit.admit("peer", now)


def test_the_cost_counts_as_events_up_to_one_second() -> None:
    limit = RateLimit(10)
    assert limit.admit("a", 0.0, cost=9)
    assert not limit.admit("a", 0.0, cost=2)
    assert limit.admit("a", 0.0)
    assert limit.admit("b", 0.0, cost=256)
    assert not limit.admit("b", 0.5, cost=6)
    assert limit.admit("b", 1.0, cost=10)


def test_a_longer_burst_of_the_same_key() -> None:
    limit = RateLimit(10)
    assert [limit.admit("peer", 0.0) for _ in range(15)].count(True) == 10
    assert [limit.admit("peer", 0.0, burst=2.0) for _ in range(15)].count(True) == 10
    assert not limit.admit("peer", 1.0)
    assert limit.admit("peer", 1.0, burst=2.0)
