"""Keeps the external address that STUN servers see, while the host and the NAT in front of it change."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.host.nat_in_front import NatTest, Verdict
from igd.host.stun import Answer, NoAnswer, StunClient, cancel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two questions: `again` after an answer, else from `retry` doubling up to `longest_retry`."""

    again: float = 300.0
    retry: float = 1.0
    longest_retry: float = 60.0


Sleep = Callable[[float], Awaitable[None]]


class WayOut(NamedTuple):
    """The interface and address from which to ask."""

    interface: str
    source: IPv4Address


class StunAddress:
    """The `address` that the servers see, None until they have answered; `run` asks them again and again.

    A known address stays while no server answers: a server that is down does not mean another address. It is forgotten
    when the way out changes. What is in `on_change` is called when the servers' answer or silence changes it or
    `missing`. `verdict` is what is known about the NAT.
    """

    def __init__(
        self, client: StunClient, nat_test: NatTest, rng: random.Random, pace: Pace, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.address: IPv4Address | None = None
        self.verdict: Verdict | None = None
        self.on_change: list[Callable[[], None]] = []
        self._client = client
        self._nat_test = nat_test
        self._rng = rng
        self._pace = pace
        self._sleep = sleep
        self._way_out: WayOut | None = None
        self._left = asyncio.Event()  # the way out has changed
        self._failures: list[str] = []  # since the last answer, each once

    @property
    def missing(self) -> str | None:
        """What is waited for, or None."""
        if self.address is not None or self._way_out is None:
            return None
        return "an answer of a STUN server" + (f" ({self._failures[-1]})" if self._failures else "")

    def ask_from(self, interface: str, source: IPv4Address | None) -> None:
        """Ask from this interface and address from now on; None: there is nothing to ask from.

        If they are new, forget the address, which was that of the old way out, and ask at once.
        """
        way_out = None if source is None else WayOut(interface, source)
        if way_out != self._way_out:
            self._way_out = way_out
            self.address = self.verdict = None
            self._left.set()
            if way_out is not None:
                log.info("asking STUN servers from %s on %s for the external address", source, interface)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self._left.clear()
            tasks: list[asyncio.Task[object]] = [asyncio.create_task(self._left.wait())]
            if self._way_out is not None:
                tasks.append(asyncio.create_task(self._keep_asking(self._way_out)))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                await cancel(tasks)

    async def _keep_asking(self, way_out: WayOut) -> None:
        retry = self._pace.retry
        while True:
            try:
                answer = await self._client.ask(*way_out)
                if way_out != self._way_out:  # it has just changed
                    return
            except NoAnswer as failure:
                self._report_failure(str(failure))
                pause, retry = retry, min(2 * retry, self._pace.longest_retry)
            else:
                self._use(answer)
                self._report_verdict(await self._nat_test.judge(way_out.interface, answer))
                pause, retry = self._pace.again, self._pace.retry
            await self._sleep(pause * self._rng.uniform(0.9, 1.1))

    def _use(self, answer: Answer) -> None:
        if self._failures:
            log.info("a STUN server answers again: %s", answer.server)
            self._failures.clear()
        if answer.mapped.address != self.address:
            log.info("STUN server %s sees this server at %s", answer.server, answer.mapped.address)
            self.address = answer.mapped.address
            self._notify()

    def _report_failure(self, failure: str) -> None:
        """Log a failure when it begins, and other reasons when they appear."""
        if failure in self._failures:
            return
        self._failures.append(failure)
        effect = f"the external address stays {self.address}" if self.address else "clients hear of no external address"
        log.warning("no STUN server gives an answer (%s): %s", failure, effect)
        self._notify()

    def _notify(self) -> None:
        for notify in self.on_change:
            notify()

    def _report_verdict(self, verdict: Verdict) -> None:
        """Log a verdict that differs from the last one in more than the port that was tried."""
        before, self.verdict = self.verdict, verdict
        if before is None or before.forwards != verdict.forwards or (verdict.forwards is None and before != verdict):
            log.log(logging.INFO if verdict.forwards else logging.WARNING, "%s", verdict.text)
