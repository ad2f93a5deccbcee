"""Changes by others to the tables that we depend on are noticed, and our own are not."""

import select
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address

import pytest

from igd.firewall.nfnetlink import NFPROTO_INET, NFPROTO_IPV4
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import Site
from igd.firewall.watch import UNKNOWN, ForeignChanges, Watch
from tests.firewall.entries import entry
from tests.firewall.three_hosts import PEERS, new_namespace, run
from tests.lab import PATIENCE

pytestmark = pytest.mark.root

NOTHING = ForeignChanges([], [], rules=False)


@pytest.fixture
def backend() -> Iterator[Nftables]:
    with new_namespace(), closing(Nftables(Site("ext0", "wg0", PEERS))) as backend:
        backend.replace_all([IPv4Address("60.60.60.1")], [], 0.0)
        yield backend


@pytest.fixture
def watch(backend: Nftables) -> Iterator[Watch]:
    with closing(Watch([(NFPROTO_INET, "igd_wg0")], {(NFPROTO_IPV4, "filter")}, [1, backend.port, 2])) as watch:
        yield watch


@pytest.mark.parametrize(
    ("command", "heard"),
    [
        ("nft flush ruleset", ForeignChanges(["nft"], [], rules=False)),
        ("nft delete table inet igd_wg0", ForeignChanges(["nft"], [], rules=False)),
        ("nft flush chain inet igd_wg0 prerouting", ForeignChanges(["nft"], [], rules=False)),
        ("nft add element inet igd_wg0 external { 1.1.1.1 }", ForeignChanges(["nft"], [], rules=False)),
        ("iptables-nft -P FORWARD DROP", ForeignChanges([], ["iptables-nft"], rules=True)),
        ("iptables-nft -t nat -A POSTROUTING -j MASQUERADE", ForeignChanges([], [], rules=True)),
        ("nft add table inet filter", ForeignChanges([], [], rules=True)),
        ("nft add table inet igd_wg1", NOTHING),
    ],
)
def test_what_others_do_is_told_apart(watch: Watch, command: str, heard: ForeignChanges) -> None:
    run(*command.split())
    assert select.select([watch], [], [], PATIENCE)[0]
    found = watch.read()
    assert ForeignChanges(sorted(set(found.ours)), sorted(set(found.forward)), found.rules) == heard
    assert watch.read() == NOTHING


def test_what_sets_hold_is_no_rule(watch: Watch) -> None:
    run("nft", "add table ip bans; add set ip bans banned { type ipv4_addr; }")
    assert watch.read() == ForeignChanges([], [], rules=True)
    run("nft", "add element ip bans banned { 9.9.9.9 }")
    assert watch.read() == NOTHING


def test_our_own_changes_are_ours(watch: Watch, backend: Nftables) -> None:
    backend.replace_all([IPv4Address("60.60.60.2")], [], 0.0)
    backend.remove_all()
    backend.replace_all([IPv4Address("60.60.60.1")], [], 0.0)
    assert watch.read() == NOTHING


def test_however_much_we_change_others_are_heard(watch: Watch, backend: Nftables) -> None:
    many = [entry(port) for port in range(1024, 21024)]
    backend.replace_all([IPv4Address("60.60.60.1")], many, 0.0)
    assert watch.read() == NOTHING
    run("nft", "delete", "element", "inet", "igd_wg0", "mappings", "{ udp . 1024 }")
    backend.replace_all([IPv4Address("60.60.60.1")], many, 0.0)
    assert watch.read() == ForeignChanges(["nft"], [], rules=False)


def test_more_than_can_be_heard_is_somebodys(watch: Watch) -> None:
    run("nft", "-f", "-", text="".join(f"add table ip many{number}\n" for number in range(1000)))
    run("nft", "flush", "ruleset")
    heard = watch.read()
    assert UNKNOWN in heard.ours
    assert UNKNOWN in heard.forward
    assert heard.rules
    assert watch.read() == NOTHING
