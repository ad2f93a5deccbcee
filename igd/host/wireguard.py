"""The WireGuard interface: its key, its peers, their allowed-ips and handshakes, as `wg show` tells them.

`wg` speaks to the kernel's WireGuard and to userspace ones alike, and is there wherever wg-quick is. Each call asks
for one field: the private key is never read.
"""

import asyncio
import ipaddress
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Protocol

from igd.core.peers import Address, Interface, Peer, Peers

ANSWER_SECONDS = 5.0
"""How long `wg` may take: a userspace WireGuard that hangs must not hang us, nor our end."""

_HINTS = {
    "Permission denied": " (where WireGuard is a program, its socket is root's: see userspace-wireguard.conf)",
    "not supported": " (it is no WireGuard interface)",
}
"""What `wg` says, and what that mostly means."""

FRESH_SECONDS = 1.0
"""How old the answer to "who is who" may be: a peer that was removed has lost its voice after this long."""

ADDRESSES_SECONDS = 5.0
"""How old the interface's own addresses may be: they name no peer, they only bound what a wide entry (core/peers.py)
owns, and cost as much to read."""


class LinkFacts(Protocol):
    """What is asked of the machine's links; OSError."""

    async def addresses(self, name: str) -> tuple[Interface, ...]:
        """The addresses of this interface, with their networks."""

    async def route(self, address: Address) -> str | None:
        """The interface through which packets to `address` leave."""


class WireGuard:
    """One WireGuard interface. Clocks are in seconds.

    Raises OSError when the interface is gone or may not be read.
    """

    def __init__(
        self,
        interface: str,
        links: LinkFacts,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._interface = interface
        self._links = links
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = asyncio.Lock()
        self._told: tuple[str, tuple[Interface, ...]] | None = None  # what `_peers` is made of
        self._peers = Peers([], [])
        self._read_at = -math.inf
        self._addresses: tuple[Interface, ...] = ()
        self._addresses_read_at = -math.inf

    async def public_key(self) -> str:
        """The interface's own public key, in base64."""
        return (await self._show("public-key")).strip()

    async def peers(self) -> Peers:
        """The peers as they were at most FRESH_SECONDS ago; whoever asks meanwhile shares one reading."""
        async with self._lock:
            now = self._clock()
            if now - self._read_at > FRESH_SECONDS:
                await self._read(now)
            return self._peers

    async def _read(self, now: float) -> None:
        told = await self._show("allowed-ips"), await self._own_addresses(now)
        if told != self._told:
            allowed_ips, addresses = told
            self._peers = Peers(map(_peer, allowed_ips.splitlines()), addresses)
            self._told = told
        self._read_at = now

    async def _own_addresses(self, now: float) -> tuple[Interface, ...]:
        if now - self._addresses_read_at > ADDRESSES_SECONDS:
            self._addresses = await self._links.addresses(self._interface)
            self._addresses_read_at = now
        return self._addresses

    async def reaches(self, address: Address) -> bool:
        """Tell whether packets to `address` leave through this interface."""
        return await self._links.route(address) == self._interface

    async def handshakes(self) -> Mapping[str, float]:
        """When each peer last shook hands (public key -> moment on `clock`); who never did is left out."""
        shift = self._clock() - self._wall_clock()
        rows = [line.split("\t") for line in (await self._show("latest-handshakes")).splitlines()]
        return {key: int(seconds) + shift for key, seconds in rows if int(seconds)}

    async def _show(self, field: str) -> str:
        command = ("wg", "show", self._interface, field)
        try:
            status, out, err = await _run(command)
        except TimeoutError:
            raise OSError(f"{' '.join(command)}: no answer in {ANSWER_SECONDS:g} s") from None
        if status:
            reason = err.strip()
            hint = next((hint for words, hint in _HINTS.items() if words in reason), "")
            raise OSError(f"{' '.join(command)}: {reason}{hint}")
        return out


async def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Run a program to its end; its status and what it wrote. TimeoutError after ANSWER_SECONDS.

    It writes into memory, which is never full, and a pidfd tells its end. asyncio's subprocesses do the same with twice
    the work, and leave a thread behind that complains of a child which was ended together with whoever waited for it.
    """
    with _memory("out") as out, _memory("err") as err:
        with subprocess.Popen(command, stdout=out, stderr=err) as process:  # noqa: ASYNC220, S603 - over in 1 ms; ours
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await _end(process.pid)
            finally:
                process.kill()  # nothing to one that has ended
        return process.returncode, _written(out), _written(err)


async def _end(pid: int) -> None:
    """Wait for the end of this child."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _memory(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "r+b")


def _written(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _peer(line: str) -> Peer:
    """Read `KEY<tab>NETWORK NETWORK ...`; a peer without any has the word "(none)" there."""
    key, networks = line.split("\t")
    return Peer(key, tuple(map(ipaddress.ip_network, networks.split() if networks != "(none)" else ())))
