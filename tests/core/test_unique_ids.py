"""A UniqueID names one pinhole, and for a while after its end no other."""

import random
from ipaddress import IPv6Address

import pytest

from igd.core.mapping import Endpoint, Pinhole, TransportProtocol
from igd.core.unique_ids import RETIRED, UNIQUE_IDS, UniqueIds


def pinhole(unique_id: int) -> Pinhole:
    return Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address("2001:db8::2"), unique_id), "c1", unique_id=unique_id)


ALL = [pinhole(each) for each in UNIQUE_IDS]


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


def without(*free: int) -> UniqueIds:
    """Return UniqueIDs of which only these are free."""
    return UniqueIds(each for each in ALL if each.unique_id not in free)


def test_they_are_chosen_by_chance_from_all(rng: random.Random) -> None:
    found = [UniqueIds().free(rng) for _ in range(1000)]
    assert len(set(found)) > 980
    assert {each in UNIQUE_IDS for each in found} == {True}


def test_the_only_free_one_is_found_and_then_there_is_none(rng: random.Random) -> None:
    unique_ids = without(65535)
    assert unique_ids.free(rng) == 65535
    assert unique_ids.free(rng, {65535}) is None
    unique_ids.take(pinhole(65535))
    assert unique_ids.are_used_up
    assert unique_ids.free(rng) is None
    assert len(unique_ids) == 65535


def test_one_of_a_closed_pinhole_is_not_given_again_at_once(rng: random.Random) -> None:
    unique_ids = without(1, 2, 3)
    for each in (1, 3):
        unique_ids.take(pinhole(each))
        unique_ids.retire(pinhole(each))
    assert unique_ids.free(rng) == 2
    assert unique_ids.free(rng, {2}) == 1, "the oldest, where there is no other"
    assert unique_ids.free(rng, {1, 2}) == 3
    unique_ids.take(pinhole(1))
    assert unique_ids.free(rng, {2}) == 3


def test_one_of_a_closed_pinhole_is_given_again_after_many_others(rng: random.Random) -> None:
    unique_ids = without(*range(1, RETIRED + 2))
    for each in range(1, RETIRED + 2):
        unique_ids.take(pinhole(each))
        unique_ids.retire(pinhole(each))
    assert unique_ids.free(rng) == 1


def test_one_of_a_pinhole_that_was_only_planned_is_free_at_once(rng: random.Random) -> None:
    unique_ids = without(7)
    unique_ids.take(pinhole(7))
    assert unique_ids.free(rng) is None
    unique_ids.release(pinhole(7))
    assert unique_ids.free(rng) == 7
    assert unique_ids.key(7) is None


def test_two_pinholes_cannot_have_one(rng: random.Random) -> None:
    unique_ids = UniqueIds([pinhole(7)])
    unique_ids.take(pinhole(7))  # a renewal
    with pytest.raises(AssertionError):
        unique_ids.take(Pinhole(TransportProtocol.UDP, pinhole(7).internal, "c1", unique_id=7))
    with pytest.raises(AssertionError):
        unique_ids.take(pinhole(0))
    assert unique_ids.free(rng) != 7
