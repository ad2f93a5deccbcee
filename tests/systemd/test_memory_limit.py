"""MemoryMax= of igd@.service ends an igd that grows without end, and none that does its work."""

import re
from ipaddress import IPv4Address
from pathlib import Path

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.host import clock
from igd.store.leases import LeaseStore
from igd.wire.upnp.variables import LONGEST_STRING
from tests.e2e.serving import C1, serving
from tests.lab import Lab

UNIT = Path(__file__).parents[2] / "systemd" / "igd@.service"

FIRST_PORT = 5000
MAPPINGS = 20_000
"""A third of 60,000, so that the test takes a third of the time: they must fit into a third of the limit."""


def memory_max() -> int:
    """Return MemoryMax= of the unit in KiB."""
    found = re.search(r"^MemoryMax=(\d+)M$", UNIT.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def peak(pid: int) -> int:
    """Return the largest resident set that the process has had, in KiB (VmHWM of proc(5))."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def store_mappings(path: Path, peer: str) -> None:
    """Leave what an igd leaves that held MAPPINGS of the peer, each with the longest description."""
    description, internal = "\U0001f600" * LONGEST_STRING, Endpoint(IPv4Address(C1), 80)
    lease = Lease(clock.boottime() + 3600)
    ports = range(FIRST_PORT, FIRST_PORT + MAPPINGS // len(TransportProtocol))
    leases = LeaseStore(path, clock.moment)
    leases.save(
        [
            Change(None, Entry(PortMapping(protocol, port, internal, peer, description), lease))
            for protocol in TransportProtocol
            for port in ports
        ]
    )
    leases.close()


def test_60_000_mappings_fit(lab: Lab, tmp_path: Path) -> None:
    allowed_ips = lab.srv.run("wg", "show", "wg0", "allowed-ips").stdout.splitlines()
    (peer,) = (line.split()[0] for line in allowed_ips if f"{C1}/32" in line)
    store_mappings(tmp_path / "leases.sqlite", peer)
    config = f'[limits]\nmappings_per_peer = {MAPPINGS}\n[store]\npath = "{tmp_path}/leases.sqlite"\n'
    with serving(lab, config) as igd:
        lab.srv.run("nft", "delete", "table", "inet", "igd_wg0")
        igd.wait_for("igd's part was repaired")
        assert peak(igd.pid) * 3 < memory_max()
