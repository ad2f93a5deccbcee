"""The address lives as long as the way out, and is asked for again: after an answer, a failure, a move."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import cast

import pytest

from igd.host.nat_in_front import NatTest, Verdict
from igd.host.stun import Answer, NoAnswer, StunClient
from igd.host.stun_address import Pace, StunAddress
from igd.host.stun_server import StunServer
from igd.wire.stun import IPv4Endpoint

SOURCE, OTHER_SOURCE = IPv4Address("10.0.0.5"), IPv4Address("10.0.1.5")
PUBLIC, OTHER_PUBLIC = IPv4Address("60.60.60.1"), IPv4Address("60.60.60.2")
DEAD = NoAnswer("stun.example.net:3478: no answer")
FORWARDS = Verdict(forwards=True, text="forwards (port 1)")


class World:
    """The servers, the NAT and the clock around one StunAddress.

    `answer` is what the servers do; None: nothing at all. `asked` gets each question, `pauses` each pause's seconds.
    """

    def __init__(self) -> None:
        self.answer: IPv4Address | NoAnswer | None = PUBLIC
        self.verdict = FORWARDS
        self.asked: asyncio.Queue[tuple[str, IPv4Address]] = asyncio.Queue()
        self.pauses: asyncio.Queue[float] = asyncio.Queue()
        self.changes = 0
        self._passed = asyncio.Event()
        client, nat_test = cast("StunClient", self), cast("NatTest", self)
        self.stun = StunAddress(client, nat_test, random.Random(1), Pace(), self._sleep)
        self.stun.on_change.append(self._count)

    async def ask(self, interface: str, source: IPv4Address) -> Answer:
        """Answer as a StunClient."""
        self.asked.put_nowait((interface, source))
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, NoAnswer):
            raise self.answer
        mapped = IPv4Endpoint(cast("IPv4Address", self.answer), 4000)
        return Answer(StunServer("stun.example.net", 3478), mapped, IPv4Endpoint(source, 4000), mapped, None)

    async def judge(self, _interface: str, _answer: Answer) -> Verdict:
        """Judge as a NatTest."""
        return self.verdict

    async def next_pause(self) -> float:
        """End the pause; return how long the next one is."""
        self._passed.set()
        return await self.pauses.get()

    async def _sleep(self, seconds: float) -> None:
        self.pauses.put_nowait(seconds)
        await self._passed.wait()
        self._passed.clear()

    def _count(self) -> None:
        self.changes += 1


@asynccontextmanager
async def running(answer: IPv4Address | NoAnswer | None = PUBLIC) -> AsyncIterator[World]:
    """Run it on eth0, from its first answer or failure on if there is one."""
    world = World()
    world.answer = answer
    task = asyncio.create_task(world.stun.run())
    world.stun.ask_from("eth0", SOURCE)
    assert await world.asked.get() == ("eth0", SOURCE)
    if answer is not None:
        await world.pauses.get()
    yield world
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_before_the_answer_there_is_no_address() -> None:
    async with running(None) as world:
        assert world.stun.address is None
        assert world.stun.missing == "an answer of a STUN server"


async def test_the_answer_is_the_address_and_is_asked_for_again_in_five_minutes() -> None:
    async with running() as world:
        assert (world.stun.address, world.stun.missing, world.changes) == (PUBLIC, None, 1)
        pauses = [await world.next_pause() for _ in range(20)]
    assert all(270 <= pause <= 330 for pause in pauses)
    assert len(set(pauses)) == 20, "servers are not asked by all the world at once"
    assert world.changes == 1


async def test_another_answer_is_a_change() -> None:
    async with running() as world:
        world.answer = OTHER_PUBLIC
        await world.next_pause()
        assert (world.stun.address, world.changes) == (OTHER_PUBLIC, 2)


async def test_a_failure_is_retried_ever_more_slowly_and_heals() -> None:
    async with running(DEAD) as world:
        assert world.stun.missing == "an answer of a STUN server (stun.example.net:3478: no answer)"
        pauses = [await world.next_pause() for _ in range(8)]
        expected = [2, 4, 8, 16, 32, 60, 60, 60]
        assert all(0.9 * most <= pause <= 1.1 * most for pause, most in zip(pauses, expected, strict=True))
        world.answer = PUBLIC
        assert await world.next_pause() >= 270
        assert world.stun.address == PUBLIC
        assert world.stun.missing is None
        world.answer = DEAD
        assert await world.next_pause() <= 1.1, "from the beginning"


async def test_a_known_address_stays_while_no_server_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as world:
        world.answer = DEAD
        for _ in range(3):
            await world.next_pause()
        assert (world.stun.address, world.changes) == (PUBLIC, 2), "once for the address, once for the failure"
        world.answer = NoAnswer("stun.example.net:3478: I/O error")
        await world.next_pause()
        world.answer = PUBLIC
        await world.next_pause()
        world.answer = DEAD
        await world.next_pause()
    assert caplog.messages == [
        "asking STUN servers from 10.0.0.5 on eth0 for the external address",
        "STUN server stun.example.net:3478 sees this server at 60.60.60.1",
        "forwards (port 1)",
        "no STUN server gives an answer (stun.example.net:3478: no answer): the external address stays 60.60.60.1",
        "no STUN server gives an answer (stun.example.net:3478: I/O error): the external address stays 60.60.60.1",
        "a STUN server answers again: stun.example.net:3478",
        "no STUN server gives an answer (stun.example.net:3478: no answer): the external address stays 60.60.60.1",
    ]


async def test_another_way_out_has_another_address() -> None:
    async with running() as world:
        world.answer = OTHER_PUBLIC
        world.stun.ask_from("eth0", OTHER_SOURCE)
        assert world.stun.address is None, "the old one is wrong at once"
        assert await world.asked.get() == ("eth0", OTHER_SOURCE)
        await world.pauses.get()
        assert world.stun.address == OTHER_PUBLIC
        world.stun.ask_from("eth1", OTHER_SOURCE)
        assert (world.stun.address, await world.asked.get()) == (None, ("eth1", OTHER_SOURCE))


async def test_the_same_way_out_changes_nothing() -> None:
    async with running() as world:
        world.stun.ask_from("eth0", SOURCE)
        assert world.stun.address == PUBLIC
        await world.next_pause()
        assert world.asked.qsize() == 1


async def test_a_move_ends_the_question_under_way() -> None:
    async with running(None) as world:
        world.answer = PUBLIC
        world.stun.ask_from("eth0", OTHER_SOURCE)
        assert await world.asked.get() == ("eth0", OTHER_SOURCE)
        await world.pauses.get()
        assert world.stun.address == PUBLIC


async def test_an_answer_that_comes_with_the_move_is_that_of_the_old_way_out() -> None:
    """Both happen in one turn of the event loop: the task that asks has not been cancelled yet."""
    async with running() as world:
        real = world.ask

        async def moved_meanwhile(interface: str, source: IPv4Address) -> Answer:
            answer = await real(interface, source)
            if source == SOURCE:
                world.stun.ask_from("eth0", OTHER_SOURCE)
                world.answer = None
            return answer

        world.ask = moved_meanwhile  # type: ignore[method-assign]
        world.asked = asyncio.Queue()
        world._passed.set()
        assert await world.asked.get() == ("eth0", SOURCE)
        assert await world.asked.get() == ("eth0", OTHER_SOURCE)
        assert world.stun.address is None


async def test_without_a_way_out_nobody_is_asked() -> None:
    async with running() as world:
        world.stun.ask_from("", None)
        assert (world.stun.address, world.stun.verdict, world.stun.missing) == (None, None, None)
        world.stun.ask_from("eth0", SOURCE)
        assert await world.asked.get() == ("eth0", SOURCE)
        await world.pauses.get()
        assert (world.stun.address, world.asked.qsize()) == (PUBLIC, 0)


async def test_a_verdict_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    verdicts = [
        Verdict(forwards=True, text="forwards (port 2)"),
        Verdict(forwards=False, text="forwards nothing (port 3)"),
        Verdict(forwards=False, text="forwards nothing (port 4)"),
        Verdict(forwards=None, text="cannot tell: a"),
        Verdict(forwards=None, text="cannot tell: a"),
        Verdict(forwards=None, text="cannot tell: b"),
        Verdict(forwards=True, text="forwards (port 5)"),
    ]
    async with running() as world:
        caplog.clear()
        for world.verdict in verdicts:
            await world.next_pause()
            assert world.stun.verdict == world.verdict, "igd status shows the newest"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "forwards nothing (port 3)"),
        ("WARNING", "cannot tell: a"),
        ("WARNING", "cannot tell: b"),
        ("INFO", "forwards (port 5)"),
    ]


async def test_a_mistake_of_ours_ends_the_daemon() -> None:
    world = World()
    world.verdict = cast("Verdict", None)
    world.stun.ask_from("eth0", SOURCE)
    with pytest.raises(AttributeError):
        await world.stun.run()
