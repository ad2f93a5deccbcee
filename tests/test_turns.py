"""However many long lists are made at once, other tasks run after each piece of any of them."""

import asyncio

import pytest

from igd.turns import Turns, pieces

SIZE = 3


@pytest.mark.parametrize(("items", "expected"), [([], []), ([1, 2, 3], [[1, 2, 3]]), ([1, 2, 3, 4], [[1, 2, 3], [4]])])
def test_pieces(items: list[int], expected: list[list[int]]) -> None:
    assert list(pieces(items, SIZE)) == expected


async def test_other_tasks_run_between_the_pieces_of_all_lists() -> None:
    turns, rounds, made = Turns(), 0, list[tuple[int, str]]()

    async def make(name: str) -> None:
        for _ in pieces(range(4 * SIZE), SIZE):
            async with turns:
                made.append((rounds, name))

    async def serve_others() -> None:
        nonlocal rounds
        while len(made) < 12:
            rounds += 1
            await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await asyncio.gather(make("a"), make("b"), make("c"), serve_others())
    assert len({when for when, _ in made}) == 12
    assert [name for _, name in made] == ["a", "b", "c"] * 4


async def test_a_list_that_is_abandoned_ends_its_turn() -> None:
    turns = Turns()

    async def fail() -> None:
        async with turns:
            raise ConnectionError

    async def hang() -> None:
        async with turns:
            await asyncio.Event().wait()

    with pytest.raises(ConnectionError):
        await fail()
    hanging = asyncio.create_task(hang())
    await asyncio.sleep(0)
    hanging.cancel()
    async with asyncio.timeout(60), turns:
        assert hanging.done()
