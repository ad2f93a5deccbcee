"""What others do to the tables that we depend on is heard, and what we do ourselves is not."""

import select
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address

import pytest

from igd.firewall.netlink import NFPROTO_INET, NFPROTO_IPV4
from igd.firewall.nft.nftables import Nftables
from igd.firewall.rules import Site
from igd.firewall.watch import UNKNOWN, Heard, Watch
from tests.firewall.reaching import entry
from tests.firewall.three_hosts import PEERS, new_namespace, run

pytestmark = pytest.mark.root

NOTHING = Heard([], anything=False)


@pytest.fixture
def backend() -> Iterator[Nftables]:
    with new_namespace(), closing(Nftables(Site("ext0", "wg0", PEERS))) as backend:
        backend.replace_all([IPv4Address("60.60.60.1")], [], 0.0)
        yield backend


@pytest.fixture
def watch(backend: Nftables) -> Iterator[Watch]:
    tables = {(NFPROTO_INET, "igd_wg0"), (NFPROTO_IPV4, "filter")}
    with closing(Watch(tables, backend.port)) as watch:
        yield watch


@pytest.mark.parametrize(
    ("command", "author"),
    [
        (("nft", "flush", "ruleset"), "nft"),
        (("nft", "delete", "table", "inet", "igd_wg0"), "nft"),
        (("nft", "flush", "chain", "inet", "igd_wg0", "prerouting"), "nft"),
        (("nft", "add", "element", "inet", "igd_wg0", "external", "{ 1.1.1.1 }"), "nft"),
        (("iptables-nft", "-P", "FORWARD", "DROP"), "iptables-nft"),
    ],
)
def test_who_touches_our_tables_is_named(watch: Watch, command: tuple[str, ...], author: str) -> None:
    run(*command)
    assert select.select([watch], [], [], 5)[0]
    assert (set((heard := watch.heard()).authors), heard.anything) == ({author}, True)
    assert watch.heard() == NOTHING


def test_what_others_do_elsewhere_is_their_business(watch: Watch) -> None:
    run("nft", "add", "table", "inet", "filter")
    run("nft", "add", "chain", "inet", "filter", "forward", "{ type filter hook forward priority 0; }")
    run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
    assert watch.heard() == Heard([], anything=True)


def test_our_own_changes_are_ours(watch: Watch, backend: Nftables) -> None:
    backend.replace_all([IPv4Address("60.60.60.2")], [], 0.0)
    backend.remove_all()
    backend.replace_all([IPv4Address("60.60.60.1")], [], 0.0)
    assert watch.heard() == NOTHING


def test_however_much_we_change_others_are_heard(watch: Watch, backend: Nftables) -> None:
    many = [entry(port) for port in range(1024, 21024)]
    backend.replace_all([IPv4Address("60.60.60.1")], many, 0.0)
    assert watch.heard() == NOTHING
    run("nft", "delete", "element", "inet", "igd_wg0", "mappings", "{ udp . 1024 }")
    backend.replace_all([IPv4Address("60.60.60.1")], many, 0.0)
    assert watch.heard() == Heard(["nft"], anything=True)


def test_more_than_can_be_heard_is_somebodys(watch: Watch) -> None:
    run("nft", "-f", "-", text="".join(f"add table ip many{number}\n" for number in range(1000)))
    run("nft", "flush", "ruleset")
    assert UNKNOWN in watch.heard().authors
    assert watch.heard() == NOTHING
