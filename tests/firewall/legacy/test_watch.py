"""Foreign changes of iptables-legacy's tables are detected; ours, and packets, are not reported. In the real kernel."""

import ctypes
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.legacy.chain import Version
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.site import Site
from tests.firewall.capabilities import without_net_admin
from tests.firewall.three_hosts import EXTERNAL, PEERS, new_namespace, run

pytestmark = pytest.mark.root

TABLES: list[tuple[Version, str]] = [(4, "nat"), (4, "filter"), (6, "nat"), (6, "filter")]
NAMES = [Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names")]
PROGRAMS = {4: "iptables-legacy", 6: "ip6tables-legacy"}
PORTS = range(8001, 8004)

Watched = tuple[Version, str]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with new_namespace():
        run("ip", "link", "set", "lo", "up")
        yield


@pytest.fixture
def watch() -> LegacyWatch:
    """A watch over tables that already have rules."""
    for version, name in TABLES:
        load(version, name)
    return LegacyWatch(TABLES)


def change(version: Version, table: str, *arguments: str, text: str | None = None, program: str = "") -> None:
    run(f"{PROGRAMS[version]}{program}", "-w", "5", *(("-t", table) if not program else ()), *arguments, text=text)


def chain_of(table: str) -> str:
    return "PREROUTING" if table == "nat" else "FORWARD"


def load(version: Version, table: str, ports: range = PORTS) -> None:
    rules = "".join(f"-A {chain_of(table)} -p udp --dport {port} -j RETURN\n" for port in ports)
    change(version, table, text=f"*{table}\n{rules}COMMIT\n", program="-restore")


def flush(version: Version, table: str) -> None:
    change(version, table, "-F")


def delete(version: Version, table: str) -> None:
    change(version, table, "-D", chain_of(table), "3")


def insert(version: Version, table: str) -> None:
    change(version, table, "-I", chain_of(table), "-p", "tcp", "--dport", "1", "-j", "RETURN")


def replace_one(version: Version, table: str) -> None:
    """Replace a rule: the number of rules and the size stay."""
    change(version, table, "-R", chain_of(table), "3", "-p", "udp", "--dport", "9", "-j", "RETURN")


def reorder(version: Version, table: str) -> None:
    delete(version, table)
    change(version, table, "-I", chain_of(table), "-p", "udp", "--dport", "8003", "-j", "RETURN")


def restore_older(version: Version, table: str) -> None:
    """Restore an older save: the number of rules and the size stay."""
    load(version, table, range(7001, 7004))


def new_chain(version: Version, table: str) -> None:
    change(version, table, "-N", "new")


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize(
    "edit",
    [flush, delete, insert, replace_one, reorder, restore_older, new_chain],
    ids=lambda f: f.__name__,
)
def test_a_foreign_change_is_reported_once(
    watch: LegacyWatch, edit: Callable[[Version, str], None], table: Watched
) -> None:
    assert not watch.changed()
    edit(*table)
    assert watch.changed() == {table[1]}
    assert not watch.changed()


def test_a_policy_is_noticed(watch: LegacyWatch) -> None:
    change(6, "filter", "-P", "FORWARD", "DROP")
    assert watch.changed()


@pytest.mark.parametrize("edit", [replace_one, restore_older], ids=lambda f: f.__name__)
def test_number_and_size_alone_would_not_do(edit: Callable[[Version, str], None]) -> None:
    """The rules themselves must be read."""
    load(4, "nat")
    before = number_and_size()
    edit(4, "nat")
    assert number_and_size() == before


def number_and_size() -> bytes:
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(b"nat", 84)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        assert libc.getsockopt(asked.fileno(), 0, 64, buffer, ctypes.byref(ctypes.c_uint32(84))) == 0
    return buffer.raw[-48:]


def test_packets_and_listing_are_not_changes(watch: LegacyWatch) -> None:
    """The limit match counts inside its rule; nat sees packets only where a rule needs connection tracking."""
    for version, name in TABLES:
        limit = ("-m", "conntrack", "--ctstate", "NEW", "-m", "limit", "--limit", "1000/second")
        change(version, name, "-A", "OUTPUT", *limit, "-j", "RETURN")
    assert watch.changed()
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            for port in range(8001, 8011):
                sender.sendto(b"hello", (address, port))
    for version, name in TABLES:
        counted = run(f"{PROGRAMS[version]}-save", "-c", "-t", name)
        limits = [line for line in counted.splitlines() if "--limit" in line]
        assert limits
        assert not any(line.startswith("[0:0]") for line in limits), (version, name, counted)
    assert not watch.changed()
    for version, name in TABLES:
        change(version, name, "-Z")
    assert not watch.changed()


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_new_table_is_a_change_and_the_watch_creates_none(table: Watched) -> None:
    watch = LegacyWatch(TABLES)
    assert not watch.changed()
    assert [path.read_text() for path in NAMES] == ["", ""]
    change(*table, "-S")
    assert watch.changed()
    assert not watch.changed()
    assert sum(len(path.read_text().split()) for path in NAMES) == 1


def test_other_tables_do_not_matter(watch: LegacyWatch) -> None:
    change(4, "mangle", "-A", "PREROUTING", "-j", "RETURN")
    assert not watch.changed()


def entry(port: int) -> Entry:
    return Entry(
        PortMapping(TransportProtocol.TCP, port, Endpoint(IPv4Address("10.100.0.2"), port), "peer"), Lease(60.0)
    )


@pytest.fixture
def backend(watch: LegacyWatch) -> Iterator[Iptables]:
    backend = Iptables(Site("eth0", "wg0", PEERS), own_change=watch.own_change)
    yield backend
    backend.close()


def test_own_changes_are_not_reported(watch: LegacyWatch, backend: Iptables) -> None:
    backend.replace_all([EXTERNAL], [entry(1)], 0.0)
    backend.apply([Change(None, entry(2))], 0.0)
    backend.remove_all()
    assert not watch.changed()


def test_a_foreign_change_before_an_own_change_is_reported(watch: LegacyWatch, backend: Iptables) -> None:
    backend.replace_all([EXTERNAL], [entry(1)], 0.0)
    change(4, "nat", "-F", "PREROUTING")
    backend.apply([Change(None, entry(2))], 0.0)
    assert watch.changed()
    assert not watch.changed()


def test_a_foreign_change_after_a_failed_own_change_is_reported(watch: LegacyWatch, backend: Iptables) -> None:
    backend.replace_all([EXTERNAL], [entry(1)], 0.0)
    with pytest.raises(FirewallError):
        backend.apply([Change(entry(2), None)], 0.0)
    assert not watch.changed()
    change(4, "nat", "-F")
    assert watch.changed()


def test_a_table_that_changes_its_size_while_it_is_read(watch: LegacyWatch) -> None:
    """The kernel returns EAGAIN where the requested size is no longer that of the table."""
    script = "for n in $(seq 100); do iptables-legacy -w -t nat -A PREROUTING -p udp --dport $n -j RETURN; done"
    with subprocess.Popen(["sh", "-c", script]) as operator:
        while operator.poll() is None:
            watch.changed()
    watch.changed()
    assert not watch.changed()


def test_without_cap_net_admin_reading_is_an_error(watch: LegacyWatch) -> None:
    with without_net_admin(), pytest.raises(FirewallError, match="filter of IPv4 cannot be read: Operation not permit"):
        watch.changed()
    assert not watch.changed()
