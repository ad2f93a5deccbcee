"""Checks that the kernel holds what igd, or without a daemon the store, says: each mapping, and nothing else."""

import asyncio
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from igd.core.mapping import TransportProtocol, abridged
from igd.firewall.backend import FirewallError
from igd.firewall.nfnetlink import NFPROTO_INET
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.saved_rules import Rule, parse
from igd.firewall.site import label
from igd.operator import admin_client, admin_paths
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine, has_systemd
from igd.operator.doctor.remedies import restart
from igd.store.read_only import read_only

_SHOWN = 4
_SETTLED_SECONDS = 1.0
"""After so long a mapping that was opened or closed between two readings is the same in both."""


class Opened(NamedTuple):
    """What identifies a mapping: protocol, external port, and the address of a pinhole ("": it is a port mapping)."""

    protocol: str
    port: int
    pinhole: str = ""

    def __str__(self) -> str:
        return f"{self.protocol} [{self.pinhole}]:{self.port}" if self.pinhole else f"{self.protocol} {self.port}"


async def kernel_state(machine: Machine) -> Sequence[Finding]:
    """Compare the kernel with the daemon's mappings, or with the store if there is no daemon."""
    if machine.status is None:
        return await asyncio.to_thread(_without_daemon, machine)
    if str(machine.status.get("backend")).startswith("pretend"):
        return []
    found = await asyncio.to_thread(_beside_daemon, machine)
    if found[0].colour is not Colour.GREEN:
        await asyncio.sleep(_SETTLED_SECONDS)
        found = await asyncio.to_thread(_beside_daemon, machine)
    return found


def _beside_daemon(machine: Machine) -> list[Finding]:
    mappings = admin_client.get(machine.paths.runtime_directory, admin_paths.MAPPINGS)
    return compared(_answered(mappings), held(machine.interface), "\n".join(restart(machine)))


def compared(expected: set[Opened], present: set[Opened], remedy: str) -> list[Finding]:
    """Return how the kernel's mappings differ from igd's; the remedy has them made equal."""
    rows = (
        ("the kernel does not have mappings of igd's", expected - present),
        ("the kernel has mappings that igd does not", present - expected),
    )
    found = [Finding(Colour.RED, f"{what}: {_shown(some)}", remedy) for what, some in rows if some]
    return found or green(f"the kernel has all {len(present)} mappings, and no others")


def _without_daemon(machine: Machine) -> list[Finding]:
    present = held(machine.interface)
    if not present:
        return green("igd is not running, and the kernel has no mappings")
    unknown = present - _stored(machine)
    start = f"systemctl start igd@{machine.name}" if has_systemd() else f"igd run {machine.name} --detach"
    if unknown:
        text = f"no igd runs, and the kernel has mappings that no lease is stored for: {_shown(unknown)}"
        return [Finding(Colour.RED, text, f"igd stop {machine.name}")]
    text = (
        f"no igd runs, and the kernel still has mappings, until 30 s after the end of their leases: {_shown(present)}"
    )
    return [Finding(Colour.YELLOW, text, start)]


def _shown(some: Iterable[Opened]) -> str:
    return abridged(list(map(str, sorted(some))), _SHOWN)


def _answered(mappings: Any) -> set[Opened]:  # noqa: ANN401 - JSON of a process that need not be root's
    """Return the daemon's mappings that are not suspended; OSError if it answered something else."""
    try:
        return {
            Opened(each["protocol"], each["external_port"], each["internal_address"] if each["unique_id"] else "")
            for each in mappings
            if not each["suspended"]
        }
    except (KeyError, TypeError) as error:
        raise OSError(f"igd sent an invalid response: {error!r}") from error


def _stored(machine: Machine) -> set[Opened]:
    """Return the mappings with a lease in the store, of whatever boot; none if it cannot be read."""
    try:
        with read_only(machine.config.store.path or machine.paths.store) as database:
            rows = database.execute("SELECT protocol, external_port, pinhole FROM lease").fetchall()
        return {Opened(TransportProtocol(kind).name, port, pinhole.partition(" ")[0]) for kind, port, pinhole in rows}
    except (sqlite3.Error, ValueError, TypeError, AttributeError, OSError):
        return set()


def held(interface: str) -> set[Opened]:
    """Return the mappings that the kernel holds for this interface, with whatever backend; FirewallError."""
    name = label(interface)
    found: set[Opened] = set()
    if (NFPROTO_INET, name) in (xtables.nft_tables() or ()):
        listed = xtables.run("nft", "-j", "list", "table", "inet", name)
        try:
            found |= set(_of_nft(json.loads(listed)))
        except (ValueError, KeyError, TypeError) as error:
            raise FirewallError(f"nft prints table inet {name} in an unknown form: {error!r}") from error
    for version, flavour in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        if "nat" in xtables.legacy_tables(4 if version == 4 else 6):
            rules = parse(xtables.saved(flavour, "nat") or "", "nat").chains.get(name, ())
            found |= {opened for rule in rules if (opened := _of_rule(rule)) is not None}
    return found


_SETS = {"mappings": False, "restricted_ports": False, "pinholes": True, "restricted_pinholes": True}
"""The sets that have each mapping once, and whether their elements are pinholes."""


def _of_nft(listing: dict[str, Any]) -> Iterator[Opened]:
    """Yield the mappings in what `nft -j list table` prints."""
    for item in listing["nftables"]:
        found = item.get("map") or item.get("set")
        if found is None or found["name"] not in _SETS:
            continue
        for element in found.get("elem", ()):
            key = element[0] if isinstance(element, list) else element
            values = key.get("elem", {}).get("val", key)["concat"]
            address, protocol, port = values if _SETS[found["name"]] else ("", *values)
            yield Opened(protocol.upper(), port, address)


def _of_rule(rule: Rule) -> Opened | None:
    """Return the mapping of a rule in igd's chain of iptables, None of the rules around them."""
    options = {condition.option: condition.value for condition in rule.conditions}
    if "--dport" not in options:
        return None
    pinhole = options.get("-d", "").removesuffix("/128") if rule.target == "CONNMARK" else ""
    return Opened(options["-p"].upper(), int(options["--dport"]), pinhole)
