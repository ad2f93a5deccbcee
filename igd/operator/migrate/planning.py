"""What there is of miniupnpd on this machine, and what would become of it: reads, and changes nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from pathlib import Path

from igd import config_file
from igd.config import Config, default_path, load, parse
from igd.core.peers import Interface, Peers
from igd.firewall.operator_rules import xtables
from igd.host import clock
from igd.host.links import Links
from igd.host.wireguard import WireGuard
from igd.operator.migrate import running, stopping
from igd.operator.migrate.conversion import Conversion, convert
from igd.operator.migrate.lines import Line, listening, read_lines, value_of
from igd.operator.migrate.mappings import Entries, Former, entries, read_lease_file
from igd.operator.migrate.values import Situation

Addresses = dict[str, tuple[Interface, ...]]
"""The addresses of each interface."""


async def addresses() -> Addresses:
    """Return the addresses of all interfaces; OSError."""
    async with Links() as links:
        return {name: await links.addresses(name) for name in _names()}


def _names() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def meant(word: str, known: Addresses) -> str:
    """Return the interface that a word of listening_ip means: by its name, an address or a network; "" if none."""
    if word in known:
        return word
    try:
        network = ip_network(word, strict=False)
    except ValueError:
        return ""
    return next((name for name, borne in known.items() if any(each.ip in network for each in borne)), "")


def wireguard_interfaces(lines: Sequence[Line], known: Addresses) -> list[str]:
    """Return the WireGuard interfaces on which miniupnpd listens. FirewallError if wg does not tell."""
    present = xtables.run("wg", "show", "interfaces").split()
    return [name for name in dict.fromkeys(meant(word, known) for word in listening(lines)) if name in present]


@dataclass(frozen=True, slots=True)
class Miniupnpd:
    """What there is of miniupnpd: its file, and if it runs its process and where it answers at `address`.

    `unit`: systemd runs it, as miniupnpd.service. `store` is where igd has its own leases.
    """

    file: Path
    text: str
    store: Path
    process: int | None = None
    unit: bool = False
    service: running.Service | None = None
    address: IPv4Address | None = None

    @property
    def lines(self) -> list[Line]:
        """The lines of its file."""
        return read_lines(self.text)

    def mappings(self) -> list[Former]:
        """Return the mappings that it has now, or those in the lease file of one that does not run. OSError."""
        if self.service is not None and self.address is not None:
            return running.mappings(self.address, self.service.port)
        if self.process is not None:
            raise OSError(f"miniupnpd (process {self.process}) runs and does not answer")
        return self._stored()

    def _stored(self) -> list[Former]:
        path = self._lease_file
        if path is None or self._is_outdated(path):
            return []
        return read_lease_file(path.read_text(errors="replace"), time.time()).mappings

    @property
    def _lease_file(self) -> Path | None:
        """The lease file, if there is one."""
        path = value_of(self.lines, "lease_file")
        return Path(path) if path and Path(path).is_file() else None

    def _is_outdated(self, path: Path) -> bool:
        """Return whether igd has served since: its clients may have closed what the file still has."""
        return self.store.exists() and self.store.stat().st_mtime > path.stat().st_mtime

    @property
    def began(self) -> float:
        """When the epoch of its NAT-PMP and PCP began, as a boottime: with system_uptime at the boot."""
        if self.process is None or value_of(self.lines, "system_uptime") == "yes":
            return 0.0
        return running.started(self.process)

    @property
    def origin(self) -> str:
        """Where the mappings come from, for people."""
        if self.process is not None:
            return f"the miniupnpd that runs (process {self.process})"
        path = self._lease_file
        if path is None:
            return "no miniupnpd: none runs with this file, and it names no lease_file that exists"
        return f"{path}, which is older than igd's leases" if self._is_outdated(path) else str(path)


def found(file: Path, text: str, store: Path, borne: Sequence[Interface]) -> Miniupnpd:
    """Return the miniupnpd of this file; `borne` are the addresses of the WireGuard interface. OSError."""
    process = running.process(file)
    if process is None:
        return Miniupnpd(file, text, store)
    unit = stopping.is_unit(process)
    for address in [each.ip for each in borne if isinstance(each.ip, IPv4Address)]:
        if service := running.service(process, address):
            return Miniupnpd(file, text, store, process, unit, service, address)
    return Miniupnpd(file, text, store, process, unit)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done for one interface; `written` is the text of its configuration."""

    miniupnpd: Miniupnpd
    interface: str
    conversion: Conversion
    written: str
    config: Config


def plan(miniupnpd: Miniupnpd, interface: str, known: Addresses) -> Plan:
    """Plan the change; ConfigError if the new configuration, or the one that is there, has mistakes."""
    lines, service = miniupnpd.lines, miniupnpd.service
    stays = stopping.leaves_chains(unit=miniupnpd.unit)
    situation = Situation(
        interface,
        {word: meant(word, known) for word in listening(lines)},
        service.port if service else None,
        service.uuid if service else None,
        stopping.forward_chain(lines) if stays else None,
    )
    conversion = convert(miniupnpd.text, situation)
    path = default_path(interface)
    before = load(path) if config_file.is_present(path) else Config()
    written = conversion.toml(str(miniupnpd.file), before.peers)
    return Plan(miniupnpd, interface, conversion, written, parse(written, path))


async def peers_of(interface: str, borne: Sequence[Interface]) -> Peers:
    """Return the peers of the interface, which has these addresses; OSError."""
    wireguard = WireGuard(interface, clock=clock.boottime, wall_clock=time.time)
    wireguard.addresses = tuple(borne)
    return await wireguard.peers()


def taken_over(mappings: Sequence[Former], peers: Peers, config: Config) -> Entries:
    """Return what igd takes over of these mappings, if it has none of its own."""
    return entries(mappings, peers, config.policies, (), clock.boottime())
