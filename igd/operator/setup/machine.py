"""Looks at the machine on which igd shall serve an interface, and changes nothing."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path

from igd import config_file, site_settings
from igd.config import Config, default_path, load_for
from igd.core.peers import Interface, Peer, Peers
from igd.firewall import detect
from igd.firewall.operator_rules import advice, rule_sets
from igd.host import clock
from igd.host.external_address import ExternalAddressReader
from igd.host.links import Links
from igd.host.wireguard import WireGuard
from igd.operator import admin_client, admin_paths
from igd.operator.wg_quick import configured_peers

USERSPACE, LEGACY = "userspace-wireguard.conf", "iptables-legacy.conf"
"""The drop-ins of igd@.service."""

_NETWORKD = ("/etc/systemd/network", "/run/systemd/network", "/usr/lib/systemd/network")
_NETWORK_MANAGER = tuple(
    f"{root}/NetworkManager/system-connections" for root in ("/etc", "/run", "/usr/lib")
)  # netplan writes those in /run


class Manager(StrEnum):
    """What brings the interface up."""

    WG_QUICK = "wg-quick"
    NETWORKD = "systemd-networkd"
    NETWORK_MANAGER = "NetworkManager"
    UNKNOWN = "something else"


@dataclass(frozen=True)
class Service:
    """igd@INTERFACE as systemd has it: where its unit is ("" without one), its state, and the names of its drop-ins."""

    unit: str
    active: bool
    drop_ins: frozenset[str]
    masked: bool = False


@dataclass(frozen=True)
class Machine:
    """What matters to setup.

    `program` is what runs igd. `peers` is None while the interface does not exist. `service` is None without systemd,
    and where the service cannot be the interface's.
    `opens` are the lines that let peers reach igd through INPUT, each with the rule that stops them; `forward_chains`
    the nft chains that stop mapped flows. `miniupnpd` are its processes.
    """

    interface: str
    config: Config
    program: str = "igd"
    config_before: bytes | None = None
    up: bool = False
    userspace: bool = False
    addresses: tuple[Interface, ...] = ()
    peers: Peers | None = None
    manager: Manager = Manager.UNKNOWN
    manager_file: Path | None = None
    manager_content: bytes = b""
    service: Service | None = None
    running: bool = False
    external: str = ""
    announced: IPv4Address | None = None
    firewall: str = ""
    legacy_rules: bool = False
    opens: dict[str, str] = field(default_factory=dict)
    forward_chains: tuple[str, ...] = ()
    miniupnpd: tuple[int, ...] = ()

    def named_peers(self) -> list[Peer]:
        """Return the peers with the names of the configuration or, where it has none, of wg-quick's file."""
        text = self.manager_content.decode("utf-8", "replace") if self.manager is Manager.WG_QUICK else ""
        names = {peer.public_key: peer.name for peer in configured_peers(text)}
        names |= {key: name for key, name in self.config.policies.names.items() if name}
        return [replace(peer, name=names.get(peer.public_key, "")) for peer in self.peers.all] if self.peers else []

    @property
    def config_path(self) -> Path:
        """The configuration of this interface, behind symbolic links."""
        return default_path(self.interface).resolve()


def as_text(machine: Machine) -> str:
    """Describe the machine for the operator."""
    addresses = ", ".join(map(str, machine.addresses))
    kind = "a userspace WireGuard" if machine.userspace else "WireGuard"
    number = len(machine.peers.all) if machine.peers else 0
    state = f"{'up' if machine.up else 'down'}, {addresses}, {kind} with {number} peers"
    service = machine.service
    rows = (
        ("interface", f"{machine.interface}, {state if machine.peers is not None else 'does not exist yet'}"),
        ("managed by", f"{machine.manager}{f', {machine.manager_file}' if machine.manager_file else ''}"),
        (
            "way out",
            f"{machine.external}, {machine.announced or 'without an IPv4 address'}" if machine.external else "none",
        ),
        ("firewall", machine.firewall),
        ("igd", f"{'runs' if machine.running else 'does not run'}, {service.unit if service else 'without systemd'}"),
    )
    return "\n".join(f"{title:<12} {text}" for title, text in rows)


async def look(interface: str) -> Machine:
    """Look at this machine; ConfigError if the configuration is invalid, OSError, FirewallError."""
    config = load_for(interface)
    path = default_path(interface)
    service = _service(interface)
    manager, manager_file = _manager(interface, service is not None)
    facts = detect.probe()
    async with Links() as links:
        state = await links.state(interface)
        addresses = await links.addresses(interface)
        peers = await _peers(interface, addresses) if state else None
        external = ExternalAddressReader(links, interface, config.external_interface, config.external_address)
        await external.read(peers.addresses if peers else ())
    site = site_settings.site(config, interface, external.interface, peers or Peers([], []))
    found = rule_sets.chains("input"), rule_sets.chains("forward")
    return Machine(
        interface,
        config,
        _program(),
        path.read_bytes() if config_file.is_present(path) else None,
        up=state is not None and state.up and not all(each.ip.is_link_local for each in addresses),
        userspace=_userspace(interface, exists=state is not None),
        addresses=addresses,
        peers=peers,
        manager=manager,
        manager_file=manager_file,
        manager_content=manager_file.read_bytes() if manager_file else b"",
        service=service,
        running=service.active if service else _answers(interface),
        external=external.interface,
        announced=external.addresses.announced,
        firewall=": ".join(detect.choose(config.firewall.backend, facts)),
        legacy_rules=bool(facts.legacy_rule_sets),
        opens=advice.opening_lines(site, found[0].found, site_settings.ports(config), [each.ip for each in addresses]),
        forward_chains=tuple(advice.forward_chains(site, found[1].found)),
        miniupnpd=tuple(_processes("miniupnpd")),
    )


def _program() -> str:
    return "igd" if shutil.which("igd") else str(Path(sys.argv[0]).resolve())


async def _peers(interface: str, addresses: tuple[Interface, ...]) -> Peers:
    wireguard = WireGuard(interface, clock=clock.boottime, wall_clock=time.time)
    wireguard.addresses = addresses
    return await wireguard.peers()


def _service(interface: str) -> Service | None:
    """Return the service; None without systemd, and for an interface whose name cannot stand in a unit's name."""
    if not Path("/run/systemd/system").is_dir() or not re.fullmatch(r"[A-Za-z0-9:_.-]+", interface):  # sd_booted(3)
        return None
    shown = _shown(f"igd@{interface}.service")
    return Service(
        shown["FragmentPath"] if shown["LoadState"] == "loaded" else "",
        shown["ActiveState"] in {"active", "activating", "reloading"},
        frozenset(Path(path).name for path in shown["DropInPaths"].split()),
        masked=shown["LoadState"] == "masked",
    )


def _shown(unit: str) -> dict[str, str]:
    names = "LoadState,FragmentPath,DropInPaths,ActiveState,UnitFileState"
    printed = _printed("systemctl", "show", f"--property={names}", "--", unit)
    return dict.fromkeys(names.split(","), "") | dict(
        line.split("=", 1) for line in printed.splitlines() if "=" in line
    )


def _manager(interface: str, systemd: bool) -> tuple[Manager, Path | None]:  # noqa: FBT001 - one caller
    """Return what manages the interface, and its file.

    NetworkManager imports wg-quick's file and leaves it where it is: then that of wg-quick counts only if it is in use.
    """
    wg_quick = Path(f"/etc/wireguard/{interface}.conf")
    in_use = False
    if systemd and wg_quick.exists():
        shown = _shown(f"wg-quick@{interface}.service")
        in_use = shown["ActiveState"] == "active" or shown["UnitFileState"] == "enabled"
    if not in_use:
        for file in _files(_NETWORKD, "*.netdev"):
            if _value(file, "NetDev", "Kind") == "wireguard" and _value(file, "NetDev", "Name") == interface:
                return Manager.NETWORKD, file
        for file in _files(_NETWORK_MANAGER, "*.nmconnection"):
            if _value(file, "connection", "interface-name") == interface:
                return Manager.NETWORK_MANAGER, file
    return (Manager.WG_QUICK, wg_quick.resolve()) if wg_quick.exists() else (Manager.UNKNOWN, None)


def _files(directories: Iterable[str], pattern: str) -> Iterator[Path]:
    for directory in directories:
        yield from sorted(Path(directory).glob(pattern))


def _value(file: Path, section: str, key: str) -> str | None:
    parser = configparser.ConfigParser(
        strict=False, interpolation=None, allow_no_value=True, comment_prefixes=("#", ";")
    )
    try:
        parser.read_string(file.read_text(encoding="utf-8", errors="replace"))
    except (configparser.Error, OSError):
        return None
    return parser.get(section, key, fallback=None)


def _userspace(interface: str, *, exists: bool) -> bool:
    """Return whether WireGuard is a program of root's, whose control socket the user igd may not use."""
    if exists:
        try:
            return Path(f"/run/wireguard/{interface}.sock").stat().st_uid == 0
        except FileNotFoundError:
            return False
    return not (Path("/sys/module/wireguard").exists() or _printed("modinfo", "wireguard"))


def _answers(interface: str) -> bool:
    try:
        admin_client.get(Path(f"/run/igd/{interface}"), admin_paths.STATUS)
    except OSError:
        return False
    return True


def _processes(name: str) -> Iterator[int]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text(encoding="utf-8", errors="replace").strip() == name:
                yield int(directory.name)
        except OSError:  # it has ended
            continue


def _printed(*argv: str) -> str:
    """Return what a program prints; empty if there is none, or it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - fixed commands
    except FileNotFoundError:
        return ""
    return done.stdout
