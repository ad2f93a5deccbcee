"""Which rule sets the host has, and iptables' programs that read and edit them. Reading creates no tables."""

import errno
import os
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Literal

from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink, NetlinkError
from igd.firewall.nf_tables import NFT_MSG, NFTA_TABLE
from igd.firewall.nfnetlink import body, nft_message

# A kernel without netfilter; netfilter without this subsystem (nfnetlink_rcv_msg)
_NO_NF_TABLES = {errno.EPROTONOSUPPORT, errno.EINVAL}

_LEGACY_NAMES = Path("/proc/net/ip_tables_names")
_LEGACY_NAMES_6 = Path("/proc/net/ip6_tables_names")
_MODULES = Path("/proc/modules")
_DROP_IN = "see systemd/iptables-legacy.conf"
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"  # users' PATHs often leave out sbin
_INCOMPATIBLE = "is incompatible, use 'nft' tool"  # iptables-nft-save, about native nftables rules in its tables
_TIMEOUT = 15.0  # seconds; above the 5 that the programs themselves wait for the xtables lock


def legacy_tables(version: Literal[4, 6] = 4) -> frozenset[str]:
    """Return the names of iptables-legacy's tables (6: ip6tables-legacy's) in this network namespace.

    Its own programs would create the tables that they list. Empty if this process may not use them: see legacy_unseen.
    Raise FirewallError if the names cannot be read now.
    """
    names = _LEGACY_NAMES if version == 4 else _LEGACY_NAMES_6
    try:
        return frozenset(names.read_text().split()) if _raw_socket_permitted() else frozenset()
    except FileNotFoundError:  # ip_tables is not loaded, or not part of this kernel
        return frozenset()
    except PermissionError:
        return frozenset()
    except OSError as error:  # too many open files
        raise FirewallError(f"the tables of iptables-legacy are not known: {error}") from error


def legacy_unseen() -> str:
    """Return why this process cannot see rules of iptables-legacy that may exist, or an empty string.

    Only root's group may read the tables' names (mode 0440), and the programs need a raw socket (CAP_NET_RAW).
    """
    try:
        names = _LEGACY_NAMES.read_text().split()
    except FileNotFoundError:
        return ""
    except PermissionError:
        return f"{_LEGACY_NAMES} is not readable; {_DROP_IN}" if _legacy_may_be_in_use() else ""
    except OSError as error:  # too many open files
        raise FirewallError(f"the tables of iptables-legacy are not known: {error}") from error
    if not names:
        return ""
    if not _raw_socket_permitted():
        return f"there are tables ({', '.join(sorted(names))}), and listing them needs CAP_NET_RAW; {_DROP_IN}"
    if program("iptables-legacy-save") is None:
        return f"there are tables ({', '.join(sorted(names))}), and iptables-legacy-save is not installed"
    return ""


def _raw_socket_permitted() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except PermissionError:
        return False
    return True


def _legacy_may_be_in_use() -> bool:
    """Return whether any network namespace may have such tables; each has a module (iptable_filter, iptable_nat)."""
    try:
        return "iptable_" in _MODULES.read_text()
    except FileNotFoundError:  # a kernel without modules may have them built in
        return True


def nft_tables() -> list[tuple[int, str]] | None:
    """Return family (NFPROTO_*) and name of each nftables table, including iptables-nft's; None without nf_tables."""
    try:
        with closing(Netlink()) as netlink:
            found = netlink.dump(nft_message(NFT_MSG.GETTABLE, socket.AF_UNSPEC))
    except NetlinkError as error:
        if error.errno in _NO_NF_TABLES:
            return None
        raise
    return [(payload[0], body(payload)[NFTA_TABLE.NAME].rstrip(b"\0").decode()) for payload in found]


def program(name: str) -> str | None:
    """Return the path of one of iptables' programs, or None if it is not installed."""
    return shutil.which(name, path=_PATH)


def saved(flavour: str, table: str) -> str | None:
    """Return what e.g. iptables-nft-save prints for a table; None if native nftables rules keep it from reading it.

    Raise FirewallError if it fails.
    """
    text = run(f"{flavour}-save", "-t", table)
    return None if _INCOMPATIBLE in text else text


def run(name: str, *arguments: str, text: str = "") -> str:
    """Run the program with `text` as input and return its output; raise FirewallError with its message if it fails."""
    path = program(name)
    if path is None:
        raise FirewallError(f"{name}: not installed")
    environment = {"PATH": _PATH, "LC_ALL": "C"}
    if "XTABLES_LOCKFILE" in os.environ:  # the operator moved the lock for all programs
        environment["XTABLES_LOCKFILE"] = os.environ["XTABLES_LOCKFILE"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, found in the system's own directories
            [path, *arguments],
            input=text,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # comments may be any bytes, and must be written back unchanged
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"{name}: {error}") from error
    if done.returncode != 0:
        raise FirewallError(f"{name}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
