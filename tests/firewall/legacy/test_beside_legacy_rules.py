"""nftables beside the operator's own rules of iptables-legacy, which is what "auto" chooses without python-iptables.

With real traffic: the operator's rules do what they did, and mapped flows pass.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall import detect, kernel
from igd.firewall.backend import Backend
from igd.firewall.legacy import table
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.operator_rules.operators_dnat import OperatorsDnat
from igd.firewall.site import Site
from tests.firewall.calling import Transport, call_from_remote, listener
from tests.firewall.legacy.test_iptables_traffic import from_remote, seen
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, REMOTE, ThreeHosts, joined, run

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)
PRESERVING = Site("ext0", "wg0", PEERS, preserve_source_port=True)
SERVER_INSIDE, OTHER_PEER = "10.100.0.1", "10.100.0.3"
BOTH = pytest.mark.parametrize("protocol", ["tcp", "udp"])

OPERATOR = f"""*nat
-A PREROUTING -d {EXTERNAL} -p tcp --dport 80 -j DNAT --to-destination {PEER}:8080
-A PREROUTING -d {EXTERNAL} -p udp --dport 80 -j DNAT --to-destination {PEER}:8080
-A POSTROUTING -o ext0 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i wg0 -o ext0 -j ACCEPT
-A FORWARD -d {PEER} -p tcp --dport 8080 -j ACCEPT
-A FORWARD -d {PEER} -p udp --dport 8080 -j ACCEPT
COMMIT
"""


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let python-iptables not be installed; what an earlier test has loaded of it is out of reach too."""
    monkeypatch.setitem(sys.modules, "iptc", None)
    monkeypatch.delattr(table, "library")


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    with joined(hosts.peer):
        run("ip", "address", "add", f"{OTHER_PEER}/24", "dev", "eth0")
    run("iptables-legacy-restore", "-w", text=OPERATOR)
    return hosts


def mapped(external: int) -> list[Entry]:
    return [
        Entry(PortMapping(protocol, external, Endpoint(PEER, 9043), "peer"), Lease(60.0))
        for protocol in TransportProtocol
    ]


@contextmanager
def running(site: Site = SITE, external: int = 8043) -> Iterator[Backend]:
    """Build what "auto" chooses, with a mapping of each protocol, and take all of it out at the end."""
    choice = detect.choose("auto", detect.probe())
    assert choice.backend == "nftables"
    built = kernel.build(choice.backend, site, LegacyWatch(kernel.LEGACY))
    built.replace_all([EXTERNAL], mapped(external), 0.0)
    yield built
    built.remove_all()
    built.close()


def rules() -> str:
    """Give iptables-legacy's rules without their counters, and the tables of nftables."""
    saved = run("iptables-legacy-save").splitlines()
    return "\n".join([line.partition(" [")[0] for line in saved if line[0] != "#"]) + run("nft", "list", "tables")


@BOTH
def test_mapped_flows_pass_and_the_remote_keeps_its_address(hosts: ThreeHosts, protocol: Transport) -> None:
    before = rules()
    with running():
        source = from_remote(hosts, protocol)
        assert source is not None
        assert source[0] == REMOTE
    assert rules() == before
    assert from_remote(hosts, protocol) is None


@BOTH
@pytest.mark.parametrize("external", [8043, 80])
def test_the_operators_redirections_come_first(hosts: ThreeHosts, protocol: Transport, external: int) -> None:
    """Even for a mapping of the same port: the hook of legacy's nat has priority -100, ours -80."""
    with running(external=external), listener(hosts.peer, protocol, 8080) as operators:
        assert call_from_remote(hosts, protocol, 80, operators) == REMOTE


@BOTH
@pytest.mark.parametrize("site", [SITE, PRESERVING], ids=["usual", "preserving"])
def test_hairpin_and_masquerade_stand_beside_each_other(hosts: ThreeHosts, protocol: Transport, site: Site) -> None:
    with running(site):
        listen, caller = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (OTHER_PEER, 0))
        hairpin = seen(protocol, listen=listen, caller=caller, to=(str(EXTERNAL), 8043))
        assert hairpin is not None
        assert hairpin[0] == SERVER_INSIDE
        run("conntrack", "-F")
        out = (hosts.peer, (OTHER_PEER, 9044))
        sent = seen(protocol, listen=(hosts.remote, ("0.0.0.0", 5000)), caller=out, to=(REMOTE, 5000))
        assert sent == (str(EXTERNAL), 9044), "the operator's MASQUERADE"


def test_a_preserved_source_port_is_chosen_before_the_operators_masquerade(hosts: ThreeHosts) -> None:
    with running(PRESERVING):
        run("conntrack", "-F")
        out = (hosts.peer, (str(PEER), 9043))
        assert seen("udp", listen=(hosts.remote, ("0.0.0.0", 5000)), caller=out, to=(REMOTE, 5000)) == (
            str(EXTERNAL),
            8043,
        )


@pytest.mark.usefixtures("hosts")
def test_ports_of_the_operators_redirections_are_known() -> None:
    known = OperatorsDnat(SITE)
    known.refresh([EXTERNAL])
    for protocol in TransportProtocol:
        assert [port for port in range(1, 65536) if known.holds(protocol, port)] == [80]
