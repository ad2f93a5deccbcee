"""Places are shared: a peer that has less than its share always gets one."""

import random

import pytest

from igd.core.places import Places


def test_a_peer_has_no_more_places_than_its_own() -> None:
    places: Places[int] = Places(10, 2)
    assert [places.take("c1", each) for each in (1, 2)] == [None, None]
    assert not places.is_open_to("c1")
    assert places.is_open_to("c2")
    places.release("c1", 1)
    assert places.is_open_to("c1")


def test_the_oldest_of_the_peer_with_the_most_makes_room() -> None:
    places: Places[str] = Places(4, 4)
    for holder in ("a", "b", "c"):
        places.take("c1", holder)
    places.take("c2", "d")
    assert places.take(None, "e") == "a"
    assert not places.is_open_to("c1")
    assert not places.is_open_to("c2")
    assert not places.is_open_to(None)
    places.release("c1", "a")
    assert places.take("c3", "f") == "b"
    assert not places.is_open_to("c4")


def test_peers_with_equally_many_do_not_displace_each_other() -> None:
    places: Places[int] = Places(5, 5)
    for each in range(3):
        places.take("c1", each)
    for each in range(2):
        places.take("c2", 10 + each)
    assert not places.is_open_to("c2")


@pytest.mark.parametrize("seed", range(20))
def test_a_peer_below_its_share_always_gets_a_place(seed: int) -> None:
    rng = random.Random(seed)
    total, per_peer = rng.randint(1, 40), rng.randint(1, 40)
    places: Places[int] = Places(total, per_peer)
    held: dict[int, list[int]] = {}
    for holder in range(2000):
        peer = int(rng.paretovariate(0.5)) % 12
        own = len(held.get(peer, ()))
        is_open = places.is_open_to(peer)
        if own < min(per_peer, total // len(held.keys() | {peer})):
            assert is_open
        if is_open:
            displaced = places.take(peer, holder)
            _move(held, peer, holder, displaced)
        if rng.random() < 0.3 and held:
            leaver = rng.choice(list(held))
            places.release(leaver, rng.choice(held[leaver]))
            held = {peer: [each for each in mine if each in places._held.get(peer, ())] for peer, mine in held.items()}
            held = {peer: mine for peer, mine in held.items() if mine}
        counts = [len(mine) for mine in held.values()]
        assert sum(counts) <= total
        assert max(counts, default=0) <= per_peer


def _move(held: dict[int, list[int]], peer: int, holder: int, displaced: int | None) -> None:
    """Record that `holder` has a place, and that `displaced` has lost it, which was the oldest of the largest."""
    if displaced is not None:
        (largest,) = (other for other, mine in held.items() if displaced in mine)
        assert held[largest][0] == displaced
        assert len(held[largest]) == max(map(len, held.values()))
        assert len(held[largest]) >= len(held.get(peer, ())) + 2
        held[largest].remove(displaced)
    held.setdefault(peer, []).append(holder)


def test_sixteen_hostile_peers_leave_room_for_another() -> None:
    places: Places[tuple[int, int]] = Places(512, 32)
    for hostile in range(16):
        for each in range(32):
            assert places.is_open_to(hostile)
            places.take(hostile, (hostile, each))
    for each in range(512 // 17):
        assert places.is_open_to("c2")
        displaced = places.take("c2", (99, each))
        assert displaced is not None
        assert displaced[0] != 99
        for hostile in range(16):  # each takes what it can get back
            if places.is_open_to(hostile):
                lost = places.take(hostile, (hostile, 100 + each))
                assert lost is None or lost[0] != 99


def test_fewer_places_leave_the_holders_theirs_and_more_are_open_at_once() -> None:
    places: Places[int] = Places(3, 3)
    for each in (1, 2, 3):
        places.take("c1", each)
    places.resize(1, 1)
    assert not places.is_open_to("c1")
    places.release("c1", 1)
    assert not places.is_open_to("c1")
    assert places.is_open_to("c2"), "the peer with the most makes room"
    assert places.take("c2", 4) == 2
    places.release("c1", 3)
    assert not places.is_open_to("c3"), "the one that is left is taken"
    places.resize(2, 2)
    assert places.is_open_to("c3")
