"""The WireGuard interface: its key, its peers, their allowed-ips and handshakes, as `wg show` tells them.

`wg` speaks to the kernel's WireGuard and to userspace ones alike, and is there wherever wg-quick is. Each call asks
for one field: the private key is never read.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from typing import Protocol

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
        self._peers = Peers([], [])
        self._read_at: float | None = None

    async def public_key(self) -> str:
        """The interface's own public key, in base64."""
        return (await self._show("public-key")).strip()

    async def peers(self) -> Peers:
        """The peers as they were at most FRESH_SECONDS ago; whoever asks meanwhile shares one reading."""
        async with self._lock:
            if self._read_at is None or self._clock() - self._read_at > FRESH_SECONDS:
                read_at = self._clock()
                text = await self._show("allowed-ips")
                self._peers = Peers(map(_peer, text.splitlines()), await self._links.addresses(self._interface))
                self._read_at = read_at
            return self._peers

    async def reaches(self, address: Address) -> bool:
        """Tell whether packets to `address` leave through this interface."""
        return await self._links.route(address) == self._interface

    async def handshakes(self) -> Mapping[str, float]:
        """When each peer last shook hands (public key -> moment on `clock`); who never did is left out."""
        shift = self._clock() - self._wall_clock()
        rows = [line.split("\t") for line in (await self._show("latest-handshakes")).splitlines()]
        return {key: int(seconds) + shift for key, seconds in rows if int(seconds)}

    async def _show(self, field: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "wg",
            "show",
            self._interface,
            field,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip - a command reads best as one
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise OSError(f"wg show {self._interface} {field}: no answer in {ANSWER_SECONDS:g} s") from None
        if process.returncode:
            reason = err.decode(errors="replace").strip()
            hint = next((hint for words, hint in _HINTS.items() if words in reason), "")
            raise OSError(f"wg show {self._interface} {field}: {reason}{hint}")
        return out.decode()


def _peer(line: str) -> Peer:
    """Read `KEY<tab>NETWORK NETWORK ...`; a peer without any has the word "(none)" there."""
    key, networks = line.split("\t")
    return Peer(key, tuple(map(ipaddress.ip_network, networks.split() if networks != "(none)" else ())))
