"""Stops a miniupnpd, and deletes the rules of its mappings, which it leaves to scripts such as Debian's."""

import json
import os
import re
import select
import signal
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import xtables
from igd.operator.migrate.lines import Line, value_of

UNIT = "miniupnpd.service"

NUDGE_SECONDS = 1.0

_SIGNALS = ((signal.SIGTERM, NUDGE_SECONDS), (signal.SIGINT, 10.0), (signal.SIGKILL, 10.0))
"""miniupnpd looks whether it is to end before it waits for requests. It notices a SIGTERM in between when it wakes up,
and ignores a second one; SIGINT wakes it up. What SIGKILL leaves is deleted as after any end."""

_SYSTEMD = Path("/run/systemd/system")
_SCRIPTS = Path("/etc/miniupnpd")
_DEFAULTS = Path("/etc/default/miniupnpd")

_OWN_CHAINS = {"forward", "prerouting", "postrouting", "miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"}
"""The chains of Debian's nft_init.sh: the first three have one rule each, a jump to one of the others."""


def is_unit(process: int) -> bool:
    """Return whether systemd runs this process as miniupnpd.service."""
    return _SYSTEMD.is_dir() and _output("systemctl", "show", "-P", "MainPID", UNIT).strip() == str(process)


def has_unit(unit: str) -> bool:
    """Return whether systemd runs here and knows this unit."""
    return _SYSTEMD.is_dir() and _output("systemctl", "show", "-P", "LoadState", unit).strip() == "loaded"


def leaves_chains(*, unit: bool) -> bool:
    """Return whether the chains of nftables are still there when miniupnpd has stopped; `unit`: systemd runs it."""
    return not (unit and (_SCRIPTS / "nft_removeall.sh").exists()) or _has_own_stop_command()


def _has_own_stop_command() -> bool:
    with suppress(OSError):
        return re.search(r"(?m)^MiniUPnPd_POSTSTOP_COMMAND=['\"]?[^'\"\s]", _DEFAULTS.read_text()) is not None
    return False


def forward_chain(lines: Sequence[Line]) -> str | None:
    """Return the nftables chain in which miniupnpd accepts mapped flows, as `forward_chain` names it; None without."""
    table = value_of(lines, "upnp_table_name") or "filter"
    chain = value_of(lines, "upnp_forward_chain") or "miniupnpd"
    return next((f"{family} {table} {chain}" for family in ("inet", "ip") if _has_chain(family, table, chain)), None)


def _has_chain(family: str, table: str, chain: str) -> bool:
    return any(
        each["family"] == family and each["table"] == table and each["name"] == chain for each in _nft_items("chain")
    )


def _nft_items(kind: str) -> list[dict[str, Any]]:
    """Return all chains or rules, as nft lists them; none if it cannot."""
    with suppress(ValueError, KeyError):
        return [item[kind] for item in json.loads(_output("nft", "-j", "list", "ruleset"))["nftables"] if kind in item]
    return []


def endangered(*, unit: bool) -> list[str]:
    """Return the operator's chains in tables that Debian's script deletes as a whole when the unit is stopped."""
    if leaves_chains(unit=unit):
        return []
    tables = _script_tables()
    jumps = {f"{each['table']} {each['chain']}" for each in _nft_items("rule") if not _is_jump(each)}
    return [
        f"{each['family']} {each['table']} {each['name']}"
        for each in _nft_items("chain")
        if each["family"] == "inet" and each["table"] in tables
        if each["name"] not in _OWN_CHAINS
        or (each["name"] in {"forward", "prerouting", "postrouting"} and f"{each['table']} {each['name']}" in jumps)
    ]


def _script_tables() -> set[str]:
    with suppress(OSError):
        text = (_SCRIPTS / "miniupnpd_functions.sh").read_text()
        return set(re.findall(r"(?m)^(?:NAT_)?TABLE=[\"']?([\w.-]+)", text))
    return set()


def _is_jump(rule: dict[str, Any]) -> bool:
    expressions = rule.get("expr", [])
    return len(expressions) == 1 and "jump" in expressions[0]


def stop(process: int, *, unit: bool) -> str:
    """Stop miniupnpd, and disable its unit; return what was done. OSError or FirewallError if it goes on."""
    with os.fdopen(os.pidfd_open(process), "rb", buffering=0) as pidfd:
        if not unit:
            _end(pidfd.fileno(), _SIGNALS)
            return f"kill {process}"
        xtables.run("systemctl", "disable", UNIT)
        xtables.run("systemctl", "stop", "--no-block", UNIT)
        _end(pidfd.fileno(), _SIGNALS[1:], wait=NUDGE_SECONDS)
    xtables.run("systemctl", "stop", UNIT)  # waits for the script that removes its chains
    return f"systemctl disable --now {UNIT}"


def _end(pidfd: int, signals: Iterable[tuple[signal.Signals, float]], wait: float = 0.0) -> None:
    """Send signals, each with the seconds to wait for the end; OSError if it does not come."""
    if wait and select.select([pidfd], [], [], wait)[0]:
        return
    for number, seconds in signals:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if select.select([pidfd], [], [], seconds)[0]:
            return
    raise OSError("miniupnpd does not end")


def flush_chains(lines: Sequence[Line]) -> list[str]:
    """Delete the rules in the chains that miniupnpd fills; return the commands that did. FirewallError."""
    done = []
    for command in (*_nft_flushes(lines), *_iptables_flushes(lines)):
        xtables.run(*command)
        done.append(" ".join(command))
    return done


def _nft_flushes(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    table = value_of(lines, "upnp_table_name") or "filter"
    nat = value_of(lines, "upnp_nat_table_name") or "filter"
    chains = {
        (table, value_of(lines, "upnp_forward_chain") or "miniupnpd"),
        (nat, value_of(lines, "upnp_nat_chain") or "prerouting_miniupnpd"),
        (nat, value_of(lines, "upnp_nat_postrouting_chain") or "postrouting_miniupnpd"),
    }
    families = ("ip", "ip6") if value_of(lines, "upnp_nftables_family_split") == "yes" else ("inet",)
    filled = {(each["family"], each["table"], each["chain"]) for each in _nft_items("rule")}
    for each in sorted(filled):
        if each[0] in families and each[1:] in chains:
            yield "nft", "flush", "chain", *each


def _iptables_flushes(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    nat = value_of(lines, "upnp_nat_chain") or "MINIUPNPD"
    rows = (
        ("nat", nat),
        ("nat", value_of(lines, "upnp_nat_postrouting_chain") or "MINIUPNPD-POSTROUTING"),
        ("mangle", nat),
        ("filter", value_of(lines, "upnp_forward_chain") or "MINIUPNPD"),
    )
    for flavour, tables in (("iptables-nft", _iptables_nft_tables()), ("iptables-legacy", xtables.legacy_tables())):
        for table, chain in rows:
            if table in tables and f"\n-A {chain} " in (xtables.saved(flavour, table) or ""):
                yield flavour, "-w", "-t", table, "-F", chain


def _iptables_nft_tables() -> set[str]:
    return {name for family, name in xtables.nft_tables() or () if family == socket.AF_INET}


def _output(name: str, *arguments: str) -> str:
    """Return what a program prints; "" if it fails or is not installed."""
    try:
        return xtables.run(name, *arguments)
    except FirewallError:
        return ""
