"""What an installed igd may leave on a machine: files, units and rules, to be compared before and after."""

import re
from typing import NamedTuple

from tests.e2e.serving import rules
from tests.systemd.booted import Booted
from tests.systemd.machine import Machine

_USED = ("/usr/local/bin", "/etc", "/var/lib", "/run", "/opt")
_CHANGES_BY_ITSELF = r"""
    /run/(systemd|udev|log|dbus|user|utmp|xtables\.lock|wireguard) /etc/(passwd-|shadow-|group-|gshadow-)
    /etc/wireguard /var/lib/(systemd|dpkg) /run/down-wg0
""".split()  # fmt: skip
_PLAIN = ("--plain", "--no-legend", "--no-pager")


class Footprint(NamedTuple):
    """What is compared: each file or link, the names of all files in /usr, each unit and its state, and all rules."""

    contents: dict[str, str]
    usr: set[str]
    units: list[str]
    rules: str


def footprint(server: Booted) -> Footprint:
    """Return what the machine has now."""
    lists = ("list-unit-files", "list-units --all igd*")
    units = [
        line for words in lists for line in server.machine.run("systemctl", *words.split(), *_PLAIN).stdout.splitlines()
    ]
    usr = server.machine.run("find", "/usr", "-xdev").stdout.splitlines()
    return Footprint(contents(server.machine), set(usr), units, rules(server.lab))


def contents(machine: Machine) -> dict[str, str]:
    """Return the sum of each file, or the target of each link, and "" for a directory, where igd may write."""
    show = "-type f -exec sha256sum {} + -o -type l -printf '%l  %p\n' -o -type d -printf '.  %p\n'"
    found = machine.run("sh", "-c", f"find {' '.join(_USED)} -xdev {show}").stdout.splitlines()
    pairs = (line.split("  ", 1) for line in found)
    ignored = re.compile("|".join(_CHANGES_BY_ITSELF))
    return {path: value for value, path in pairs if not ignored.match(path)}
