"""The host's own rule sets: which are there, and iptables' programs to read and edit them. Looking creates nothing."""

import errno
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Literal

from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink, NetlinkError
from igd.firewall.nf_tables import NFT_MSG, NFTA_TABLE
from igd.firewall.nfnetlink import NFNL_SUBSYS_NFTABLES, Message, body

# No netfilter at all; netfilter without this subsystem (nfnetlink_rcv_msg)
_NO_NF_TABLES = {errno.EPROTONOSUPPORT, errno.EINVAL}

_LEGACY_NAMES = Path("/proc/net/ip_tables_names")
_LEGACY_NAMES_6 = Path("/proc/net/ip6_tables_names")
_MODULES = Path("/proc/modules")
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"  # users' PATHs often leave out sbin
_INCOMPATIBLE = "is incompatible, use 'nft' tool"  # iptables-nft-save, about nftables' own rules in its tables
_PATIENCE = 15.0  # seconds; above the 5 that the programs themselves wait for the xtables lock


def legacy_tables(version: Literal[4, 6] = 4) -> frozenset[str]:
    """Name the tables of iptables-legacy (6: of ip6tables-legacy) in this network namespace.

    Its programs would create those they ask about. Raise FirewallError where that cannot be read now.
    """
    names = _LEGACY_NAMES if version == 4 else _LEGACY_NAMES_6
    try:
        return frozenset(names.read_text().split())
    except FileNotFoundError:  # the kernel, or so far the running kernel, is without ip_tables
        return frozenset()
    except PermissionError:  # see legacy_hidden
        return frozenset()
    except OSError as error:  # no more files can be opened
        raise FirewallError(f"the tables of iptables-legacy are not known: {error}") from error


def legacy_hidden() -> bool:
    """Say whether there may be such tables that we may not see: their names are for root's group alone (0440)."""
    try:
        _LEGACY_NAMES.read_text()
    except FileNotFoundError:
        return False
    except PermissionError:
        return _legacy_may_be_in_use()
    return False


def _legacy_may_be_in_use() -> bool:
    """Say whether any network namespace may have such tables; each has its module (iptable_filter, iptable_nat)."""
    try:
        return "iptable_" in _MODULES.read_text()
    except FileNotFoundError:  # a kernel without modules has it built in
        return True


def nft_tables() -> list[tuple[int, str]] | None:
    """Give family (NFPROTO_*) and name of each nftables table, iptables-nft's among them; None: a kernel without."""
    try:
        found = _dump_tables()
    except NetlinkError as error:
        if error.errno in _NO_NF_TABLES:
            return None
        raise
    return [(payload[0], body(payload)[NFTA_TABLE.NAME].rstrip(b"\0").decode()) for payload in found]


def _dump_tables() -> list[bytes]:
    netlink = Netlink()
    try:
        return netlink.dump(Message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG.GETTABLE, socket.AF_UNSPEC))
    finally:
        netlink.close()


def program(name: str) -> str | None:
    """Give the path of one of iptables' programs, or None where the host is without."""
    return shutil.which(name, path=_PATH)


def saved(flavour: str, table: str) -> str | None:
    """Give what e.g. iptables-nft-save prints of a table; None: rules of nftables' own keep it from reading that.

    Raise FirewallError when it fails.
    """
    text = run(f"{flavour}-save", "-t", table)
    return None if _INCOMPATIBLE in text else text


def run(name: str, *arguments: str, text: str = "") -> str:
    """Give what the program prints when fed `text`; raise FirewallError with its complaint when it fails."""
    path = program(name)
    if path is None:
        raise FirewallError(f"{name}: not installed")
    environment = {"PATH": _PATH, "LC_ALL": "C"}
    if "XTABLES_LOCKFILE" in os.environ:  # the operator moved the lock for everybody
        environment["XTABLES_LOCKFILE"] = os.environ["XTABLES_LOCKFILE"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, found in the system's own directories
            [path, *arguments],
            input=text,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # comments are bytes of the operator's, and go back as they came
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"{name}: {error}") from error
    if done.returncode != 0:
        raise FirewallError(f"{name}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
