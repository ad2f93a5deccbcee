"""igd as its operator runs it, in the lab's server, and what the server's kernel then holds."""

import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

from tests.lab import Host, Lab, Process

_SOURCES = Path(__file__).parents[2]
IGD = ("env", f"PYTHONPATH={_SOURCES}", sys.executable, "-m", "igd")

ROUNDED = 1  # seconds: leases are stored and listed in whole seconds

PUBLIC = "60.60.60.1"
REMOTE = "60.60.60.2"  # net, as the server and its clients see it
GATEWAY = "10.100.0.1"
C1, C2 = "10.100.0.2", "10.100.0.3"


def start(lab: Lab, config: str = "", command: Sequence[str] = IGD) -> Process:
    """Start `igd run wg0` with this /etc/igd/wg0.toml, or none, and return once it serves."""
    if config:
        lab.srv.write("/etc/igd/wg0.toml", config)
    process = lab.srv.start(*command, "run", "wg0")
    process.wait_for("ready for")
    return process


@contextmanager
def serving(lab: Lab, config: str = "", command: Sequence[str] = IGD) -> Iterator[Process]:
    """Run igd, and assert that it ends with exit status 0."""
    with start(lab, config, command) as process:
        yield process
        assert process.stop() == 0, process.lines


def igd(lab: Lab, *words: str, check: bool = True) -> "CompletedProcess[str]":
    """Run one of igd's other commands to its end."""
    return lab.srv.run(*IGD, *words, check=check)


def decisions(lab: Lab) -> dict[str, int]:
    """Return igd's counters of requests by what became of them."""
    counters: dict[str, int] = json.loads(igd(lab, "status", "wg0", "--json").stdout)["decisions"]
    return counters


def mappings(lab: Lab) -> list[dict[str, Any]]:
    """Return what `igd list --json` prints."""
    listed: list[dict[str, Any]] = json.loads(igd(lab, "list", "wg0", "--json").stdout)
    return listed


class Listed(NamedTuple):
    """What `igd list --json` printed, and the monotonic times between which it did."""

    mappings: list[dict[str, Any]]
    begin: float
    end: float


def listed(lab: Lab) -> Listed:
    """Return the mappings with the time at which their leases were these."""
    begin = time.monotonic()
    return Listed(mappings(lab), begin, time.monotonic())


def assert_only_aged(before: Listed, after: Listed) -> None:
    """Assert that the mappings are the same but for their leases, which are shorter by the time that has passed."""
    passed = range(math.floor(after.begin - before.end) - ROUNDED, math.ceil(after.end - before.begin) + ROUNDED + 1)
    ages = [old["lease"] - new["lease"] for old, new in zip(before.mappings, after.mappings, strict=True)]
    assert [{**mapping, "lease": 0} for mapping in after.mappings] == [
        {**mapping, "lease": 0} for mapping in before.mappings
    ]
    assert all(age in passed for age in ages), (ages, passed)


def ports(lab: Lab) -> list[tuple[str, int]]:
    """Return protocol and external port of all mappings in igd's table."""
    return [(mapping["protocol"], mapping["external_port"]) for mapping in mappings(lab)]


def upnpc(client: Host, *words: str) -> str:
    """Run upnpc without its two seconds of discovery; CommandFailed shows what it printed."""
    return client.run("upnpc", "-u", f"http://{GATEWAY}:2869/1/device.xml", *words).stdout


def natpmpc(client: Host, *words: str) -> tuple[int, int]:
    """Map by natpmpc; return the public port and the epoch in seconds."""
    printed = client.run("natpmpc", "-g", GATEWAY, "-a", *words).stdout
    match = re.search(r"Mapped public port (\d+) .*\nepoch = (\d+)\n", printed)
    assert match, printed
    return int(match[1]), int(match[2])


def held(lab: Lab) -> list[tuple[str, int]]:
    """Return protocol and external port of all mappings in the kernel's map."""
    listing = json.loads(lab.srv.run("nft", "-j", "list", "map", "inet", "igd_wg0", "mappings").stdout)
    (found,) = (item["map"] for item in listing["nftables"] if "map" in item)
    keys = (element["elem"]["val"]["concat"] for element, _ in found.get("elem", ()))
    return sorted((protocol.upper(), port) for protocol, port in keys)


def rules(lab: Lab) -> str:
    """Return all rules of the server, as the three programs print them, without what changes by itself."""
    nftables = lab.srv.run("nft", "-s", "list", "ruleset").stdout
    nftables = re.sub(r"elements = \{ ([^}]*) \}", _one_a_line, nftables)
    nft_save = lab.srv.run("iptables-nft-save").stdout
    # Listing a table of iptables-legacy creates it, and it cannot be deleted: an empty one counts as none.
    legacy_save = re.sub(r"(?m)^(:\w+ ACCEPT|\*|COMMIT).*\n", "", lab.srv.run("iptables-legacy-save").stdout)
    return nftables + re.sub(r"(?m)^#.*\n| \[\d+:\d+\]", "", nft_save + legacy_save)


def _one_a_line(elements: re.Match[str]) -> str:
    """Return the elements without their timeouts and comments; their order means nothing, and comments have commas."""
    found = re.findall(r'(?:[^,"]|"[^"]*")+', elements[1])
    return "\n".join(sorted(re.sub(r' timeout (?:[^:"]|"[^"]*")*', "", element).strip() for element in found))


def operators_rules(lab: Lab) -> str:
    """Return the server's rules without those of igd."""
    blocks = re.sub(r"(?ms)^(\t?)(table inet|chain) igd_wg0(?:/rate|/traffic)? \{$.*?^\1\}\n", "", rules(lab))
    return "\n".join(line for line in blocks.splitlines() if line and "igd" not in line)


def flows(lab: Lab, port: int) -> list[str]:
    """Return the flows to this port of the public address that connection tracking knows."""
    known = lab.srv.run("conntrack", "-L", "--orig-dst", PUBLIC).stdout.splitlines()
    return [flow for flow in known if re.search(rf" dport={port} (\[UNREPLIED\] )?src=", flow)]


def everything(lab: Lab) -> object:
    """Return the content of igd's table, without the leases, and of the kernel."""
    results = [{**mapping, "lease": None} for mapping in mappings(lab)]
    return results, held(lab), rules(lab)
