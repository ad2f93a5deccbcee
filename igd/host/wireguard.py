"""The WireGuard interface: its public key, its peers, their AllowedIPs and handshakes, as `wg show` prints them.

`wg` works with the kernel's WireGuard and with userspace implementations, and is installed wherever wg-quick is. Each
call reads one field; none reads the private key.
"""

import asyncio
import functools
import ipaddress
import math
import os
import socket
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO

from igd.core.peers import Address, Interface, Peer, Peers
from igd.host.readable import wait_until_readable
from igd.host.routes import RTN_LOCAL, RTN_UNICAST, Route, is_up, routes

WG_SECONDS = 5.0
"""The time limit of one `wg`: a userspace WireGuard that hangs must block neither requests nor our exit."""

_HINTS = {
    "Permission denied": " (a userspace WireGuard's socket belongs to root: see userspace-wireguard.conf)",
    "not supported": " (it is not a WireGuard interface)",
}
"""What `wg` prints, and its usual cause."""

FRESH_SECONDS = 1.0
"""The usual maximum age of the list of peers."""


class WireGuard:
    """One WireGuard interface. Clocks are in seconds. Its methods raise OSError when the interface cannot be read.

    `addresses` are the interface's own; the caller keeps them up to date. `name_of` returns a peer's name by its public
    key, "" if it has none; when the caller replaces it, the peers count as changed.
    """

    def __init__(
        self,
        interface: str,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        name_of: Callable[[str], str] = lambda _public_key: "",
    ) -> None:
        self.addresses: tuple[Interface, ...] = ()
        self._interface = interface
        self._clock = clock
        self._wall_clock = wall_clock
        self.name_of = name_of
        self._lock = asyncio.Lock()
        self._allowed_ips = ""
        self._read_at = -math.inf
        self._handshakes: dict[str, tuple[int, float]] = {}  # wall time as `wg` prints it, and the same on `clock`
        self._handshakes_read_at = 0.0  # the kernel forgets handshakes at a reboot

    async def public_key(self) -> str:
        """Return the interface's own public key, in base64."""
        return (await self._show("public-key")).strip()

    async def peers(self, max_age: float = FRESH_SECONDS) -> Peers:
        """Return the peers as of at most `max_age` seconds before this call; concurrent callers share one `wg`.

        The same object is returned until the peers or the interface's addresses change.
        """
        oldest = self._clock() - max_age
        async with self._lock:
            if self._read_at < oldest:
                now = self._clock()
                printed = await self._show("allowed-ips")
                # wireguard-go has the same peers in another order each time
                if sorted(printed.splitlines()) != sorted(self._allowed_ips.splitlines()):
                    self._allowed_ips = printed
                self._read_at = now
            return _parse(self._allowed_ips, self.addresses, self.name_of)

    @property
    def last_read(self) -> Peers:
        """The peers as of the last call of `peers`; none before."""
        return _parse(self._allowed_ips, self.addresses, self.name_of)

    def reaches(self, address: Address) -> bool:
        """Return whether packets to `address` leave through this interface."""
        tunnel = Route(RTN_UNICAST, socket.if_nametoindex(self._interface))
        return routes([address])[address] == tunnel

    def routed_elsewhere(self, addresses: Collection[Address]) -> Collection[Address]:
        """Return those of `addresses` to which packets leave through another interface, or not at all.

        An address without any route may be reached again later, and so may every address while the interface is down.
        While the interface has no address of an IP version but a link-local one, which is how a link that went down
        and up loses its IPv6 routes, only an address that is the server's own is elsewhere.
        """
        if not is_up(self._interface):
            return ()
        tunnel = Route(RTN_UNICAST, socket.if_nametoindex(self._interface))
        versions = {interface.version for interface in self.addresses if not interface.is_link_local}
        return [
            address
            for address, route in routes(addresses).items()
            if route not in {None, tunnel} and (address.version in versions or (route and route.kind == RTN_LOCAL))
        ]

    async def handshakes(self) -> Mapping[str, float]:
        """Return the time on `clock` of each peer's last handshake, by public key; peers without one are omitted.

        `wg` prints wall time. Each handshake is converted once, to a time between the previous reading and this one:
        it does not move when the wall clock is set.
        """
        rows = [line.split("\t") for line in (await self._show("latest-handshakes")).splitlines()]
        now, last = self._clock(), self._handshakes_read_at
        shift = now - self._wall_clock()
        found = {key: int(seconds) for key, seconds in rows if int(seconds)}
        known = self._handshakes
        self._handshakes = {
            key: known[key] if key in known and known[key][0] == wall else (wall, min(max(wall + shift, last), now))
            for key, wall in found.items()
        }
        self._handshakes_read_at = now
        return {key: moment for key, (_, moment) in self._handshakes.items()}

    async def _show(self, field: str) -> str:
        command = ("wg", "show", self._interface, field)
        try:
            status, out, err = await _run(command)
        except TimeoutError:
            raise OSError(f"{' '.join(command)}: no answer in {WG_SECONDS:g} s") from None
        except FileNotFoundError:
            raise FileNotFoundError("the program wg is not in PATH; apt install wireguard-tools has it") from None
        if status:
            reason = err.strip()
            hint = next((hint for words, hint in _HINTS.items() if words in reason), "")
            raise OSError(f"{' '.join(command)}: {reason}{hint}")
        return out


async def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Run a program; return its exit status, standard output and standard error. TimeoutError after WG_SECONDS.

    It writes to memory files, which never block, and a pidfd reports its exit. asyncio's subprocesses cost twice as
    much, and leave a thread that logs a warning when a child is killed because its caller was cancelled.
    """
    with _memory_file("out") as out, _memory_file("err") as err:
        with subprocess.Popen(command, stdout=out, stderr=err) as process:  # noqa: ASYNC220, S603 - takes 1 ms; fixed command
            try:
                async with asyncio.timeout(WG_SECONDS):
                    with os.fdopen(os.pidfd_open(process.pid), "rb", buffering=0) as pidfd:
                        await wait_until_readable(pidfd.fileno())
            finally:
                process.kill()  # no effect on one that has exited
        return process.returncode, _content(out), _content(err)


def _memory_file(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "r+b")


def _content(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@functools.lru_cache(1)
def _parse(allowed_ips: str, addresses: tuple[Interface, ...], name_of: Callable[[str], str]) -> Peers:
    """Parse what `wg show INTERFACE allowed-ips` prints; the same is printed again until peers change."""
    return Peers((_peer(line, name_of) for line in allowed_ips.splitlines()), addresses)


def _peer(line: str, name_of: Callable[[str], str]) -> Peer:
    """Parse `KEY<tab>NETWORK NETWORK ...`, or `KEY<tab>(none)` for a peer without networks."""
    key, networks = line.split("\t")
    allowed_ips = tuple(map(ipaddress.ip_network, networks.split() if networks != "(none)" else ()))
    return Peer(key, allowed_ips, name_of(key))
