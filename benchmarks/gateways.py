"""The two that are compared, each started as its operator would, and what answers in no time beside them."""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from benchmarks.soap import CLIENT, GATEWAY, LEASE_SECONDS, PATIENCE, Control, add, ask
from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import NFT_MSG, NFTA_RULE
from igd.firewall.nfnetlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NLA_F_NESTED,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    attribute,
    body,
    nft_message,
    text,
)
from igd.host import clock
from igd.store.leases import LeaseStore
from tests.lab import Lab, Process

log = logging.getLogger(__name__)

READY_SECONDS = 60.0
"""How long a gateway may take to start."""

_SOURCES = Path(__file__).parents[1]
PYTHON = ("env", f"PYTHONPATH={_SOURCES}", sys.executable, "-m")

_FIRST_FILLED_PORT = 6000

_IGD_CONFIG = """
[limits]
mappings_per_peer = 65535
requests_per_second = 1000000
[store]
path = "{store}"
"""

_MINIUPNPD_CONFIG = """
ext_ifname=ens0
listening_ip=wg0
port=5000
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 0.0.0.0/0 1024-65535
"""

# As Debian's /etc/miniupnpd/nft_init.sh makes them. That drops all other forwarding, answers included, and says "Add
# other rules here": the two rules after the jump are those that every operator has to add there.
_MINIUPNPD_CHAINS = """
table inet miniupnpd {
    chain forward {
        type filter hook forward priority 0; policy drop;
        jump miniupnpd
        ct state established,related accept
        iifname "wg0" accept
    }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
    }
    chain miniupnpd {
    }
    chain prerouting_miniupnpd {
    }
    chain postrouting_miniupnpd {
    }
}
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Something that answers requests on a lab's server; `pid` as we see it."""

    name: str
    lab: Lab
    pid: int
    control: Control

    def processor_seconds(self) -> float:
        """Return the processor time of all its threads (see clock_getcpuclockid(3)), and of its children that ended."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        children = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime and cstime of proc(5)
        return time.clock_gettime((~self.pid << 3) | 2) + children

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


@contextmanager
def igd(lab: Lab, store: Path, config: str = "") -> Iterator[Gateway]:
    """Run `igd run wg0` with this file for its leases, and these lines in its configuration."""
    _forget_requests(lab)
    with _started(lab, store, config) as process:
        yield Gateway("igd", lab, process.pid, Control(2869, "/control/WANIPConn1"))


def start_seconds(lab: Lab, store: Path) -> float:
    """Start igd, stop it again, and give the seconds from exec until it said that it serves."""
    start = time.perf_counter()
    with _started(lab, store):
        return time.perf_counter() - start


@contextmanager
def _started(lab: Lab, store: Path, config: str = "") -> Iterator[Process]:
    lab.srv.write("/etc/igd/wg0.toml", _IGD_CONFIG.format(store=store) + config)
    with lab.srv.start(*PYTHON, "igd", "run", "wg0") as process:
        process.wait_for("ready for", READY_SECONDS)
        yield process
    for line, times in Counter(line for line in process.lines if not line.startswith("INFO")).items():
        log.warning("igd wrote %s times: %s", times, line)


@contextmanager
def miniupnpd(lab: Lab) -> Iterator[Gateway]:
    """Run Debian's miniupnpd as a daemon: in the foreground (-d) it writes some lines for each mapping it holds."""
    _forget_requests(lab)
    lab.srv.run("nft", "-f", "-", input=_MINIUPNPD_CHAINS)
    lab.srv.write("/etc/miniupnpd/miniupnpd.conf", _MINIUPNPD_CONFIG)
    # Where there is no syslog, it writes to the console, which may be a slow one.
    lab.srv.run("mount", "--bind", "/dev/null", "/dev/console", check=False)
    lab.srv.run("miniupnpd", "-f", "/etc/miniupnpd/miniupnpd.conf")
    control = Control(5000, "/ctl/IPConn")
    _await_listener(lab, control.port)
    pid = _find(lab, "miniupnpd")
    try:
        yield Gateway("miniupnpd", lab, pid, control)
    finally:
        _end(pid)


@contextmanager
def floor(lab: Lab) -> Iterator[Gateway]:
    """Run what gives every request the same answer at once."""
    control = Control(8080, "/", 8080)
    with lab.srv.start(*PYTHON, "benchmarks.fixed_answer", GATEWAY, str(control.port)) as process:
        process.wait_for("listening", READY_SECONDS)
        yield Gateway("floor", lab, process.pid, control)


def _forget_requests(lab: Lab) -> None:
    """Have the kernels forget the flow of a request soon after it, instead of after two minutes.

    All hosts share one table of flows, igd's sweeps walk through all of it, and no real server hears thousands of
    requests in a minute.
    """
    timeouts = ("tcp_timeout_time_wait=1", "udp_timeout=5", "udp_timeout_stream=5")
    for host in (lab.srv, lab.c1):
        host.run("sysctl", "-qw", *(f"net.netfilter.nf_conntrack_{timeout}" for timeout in timeouts))


# What they hold: TCP and UDP in turn


def filled(number: int) -> tuple[TransportProtocol, int]:
    """Return protocol and port of a mapping by its number, from 0."""
    return (TransportProtocol.UDP if number % 2 else TransportProtocol.TCP), _FIRST_FILLED_PORT + number // 2


def fill(gateway: Gateway, count: int) -> None:
    """Have it hold this many mappings, asked for one after another."""
    for protocol, port in map(filled, range(count)):
        ask(gateway.lab.c1, gateway.control, add(protocol.name, port))


def copy_rules(gateway: Gateway, count: int) -> None:
    """Have a miniupnpd that holds nothing hold this many mappings: one of its own, and copies of its rules.

    It reads its rules back from the kernel, so that it takes these for its own; asking for as many takes an hour. The
    `nft` program cannot do it: it does not load what it prints of them.
    """
    sample = _SAMPLE.to_bytes(2, "big")
    for protocol in TransportProtocol:
        ask(gateway.lab.c1, gateway.control, add(protocol.name, _SAMPLE))
    with gateway.lab.srv.entered():
        netlink = Netlink()
    try:
        rules = [
            body(payload)
            for payload in netlink.dump(_rule_message(NFT_MSG.GETRULE, text(NFTA_RULE.TABLE, "miniupnpd")))
        ]
        samples = [rule for rule in rules if sample in rule[NFTA_RULE.EXPRESSIONS]]
        assert len(samples) == 2 * len(TransportProtocol), "one that redirects, one that lets in"
        copies = [
            _rule_message(
                NFT_MSG.NEWRULE,
                *(attribute(kind, rule[kind]) for kind in (NFTA_RULE.TABLE, NFTA_RULE.CHAIN)),
                attribute(
                    NFTA_RULE.EXPRESSIONS | NLA_F_NESTED,
                    rule[NFTA_RULE.EXPRESSIONS].replace(sample, port.to_bytes(2, "big")),
                ),
                *(attribute(kind, rule[kind]) for kind in (NFTA_RULE.USERDATA,) if kind in rule),
            )
            for port in range(_FIRST_FILLED_PORT, _FIRST_FILLED_PORT + count // len(TransportProtocol))
            for rule in samples
        ]
        for start in range(0, len(copies), _BATCH):
            netlink.transact(NFNL_SUBSYS_NFTABLES, copies[start : start + _BATCH])
    finally:
        netlink.close()


_SAMPLE = 0xABCD  # two bytes that are nowhere else in its rules
_BATCH = 2000


def _rule_message(kind: int, *parts: bytes) -> Message:
    flags = NLM_F_CREATE | NLM_F_APPEND if kind == NFT_MSG.NEWRULE else 0
    return nft_message(kind, NFPROTO_INET, *parts, flags=flags)


def write_store(lab: Lab, store: Path, count: int, description: str = "benchmark") -> None:
    """Leave what igd would have left that held this many mappings of c1."""
    peer = next(line.split()[0] for line in _allowed_ips(lab) if f"{CLIENT}/32" in line)
    lease = Lease(clock.boottime() + LEASE_SECONDS)
    leases = LeaseStore(store, clock.moment)
    try:
        leases.save([Change(None, Entry(_mapping(number, peer, description), lease)) for number in range(count)])
    finally:
        leases.close()


def _allowed_ips(lab: Lab) -> Sequence[str]:
    return lab.srv.run("wg", "show", "wg0", "allowed-ips").stdout.splitlines()


def _mapping(number: int, peer: str, description: str) -> PortMapping:
    protocol, port = filled(number)
    return PortMapping(protocol, port, Endpoint(IPv4Address(CLIENT), port), peer, description)


# A daemon, which leaves no handle


def _await_listener(lab: Lab, port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with lab.c1.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            if connection.connect_ex((GATEWAY, port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {GATEWAY}:{port}")
        time.sleep(0.02)


def _find(lab: Lab, name: str) -> int:
    """Find the one process of this name in the server's network."""
    network = lab.srv.netns_path.stat()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == name and os.path.samestat(
                (process / "ns/net").stat(), network
            ):
                return int(process.name)
        except OSError:  # it ended meanwhile
            continue
    raise ProcessLookupError(f"{name} does not run")


def _end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if not select.select([descriptor], [], [], PATIENCE)[0]:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
