"""With own_table: nobody else may edit the table, it outlives its owner, and the next one takes it over."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from igd.core.mapping import Change
from igd.firewall.backend import FirewallError
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import Site
from tests.firewall.calling import call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import LISTING, SITE, held, listing
from tests.firewall.three_hosts import EXTERNAL, REMOTE, ThreeHosts, new_namespace, run

pytestmark = pytest.mark.root

OWN = replace(SITE, own_table=True)
PUBLIC = str(EXTERNAL)


@pytest.fixture
def backend() -> Iterator[Nftables]:
    """Return a backend with one mapping in a network namespace of its own; the test is in it too."""
    with new_namespace(), contextlib.closing(Nftables(OWN)) as made:
        made.replace_all([EXTERNAL], [entry(8043)], now=0)
        yield made


@pytest.mark.parametrize(
    "command",
    [
        "delete table inet igd_wg0",
        "flush chain inet igd_wg0 prerouting",
        "add element inet igd_wg0 external { 60.60.60.3 }",
        "add rule inet igd_wg0 prerouting drop",
    ],
)
def test_others_may_not_edit_it(backend: Nftables, command: str) -> None:
    before = listing()
    done = subprocess.run(["nft", command], capture_output=True, text=True, check=False)
    assert "Operation not permitted" in done.stderr
    assert listing() == before
    backend.apply([Change(None, entry(8044))], now=0)
    assert len(held()) == 2


def test_a_flush_of_everything_passes_it_over(backend: Nftables) -> None:
    run("nft", "add table inet operators")
    run("nft", "flush", "ruleset")
    assert run("nft", "list", "tables").split() == ["table", "inet", "igd_wg0"]
    backend.replace_all([EXTERNAL], [entry(8044)], now=0)
    assert held().keys() == {("udp", 8044)}


@pytest.mark.parametrize("site", [SITE, OWN], ids=["plain", "own"])
@pytest.mark.parametrize(
    "deed",
    [
        lambda second: second.replace_all([EXTERNAL], [], now=0),
        lambda second: second.apply([Change(None, entry(8044))], now=0),
        Nftables.remove_all,
    ],
    ids=["replace_all", "apply", "remove_all"],
)
def test_a_second_one_is_told_that_there_is_a_first(
    backend: Nftables, site: Site, deed: Callable[[Nftables], None]
) -> None:
    before = held()
    clear = pytest.raises(FirewallError, match="table inet igd_wg0 belongs to another running program")
    with contextlib.closing(Nftables(site)) as second, clear:
        deed(second)
    assert held() == before
    backend.remove_all()
    assert listing() == ""


OWNER = """
import sys
from ipaddress import IPv4Address
from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import Site

mapping = PortMapping(TransportProtocol.UDP, 8043, Endpoint(IPv4Address("10.100.0.2"), 80), "peer")
backend = Nftables(Site("ext0", "wg0", (), own_table=True))
backend.replace_all([IPv4Address(sys.argv[1])], [Entry(mapping, Lease(500))], 0)
print("ready", flush=True)
sys.stdin.read()
"""


def test_it_outlives_its_owner_and_is_taken_over_with_all_that_is_in_it(hosts: ThreeHosts) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, PUBLIC], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert held() == {("udp", 8043): ("10.100.0.2", 80, 530)}
    with listener(hosts.peer, "udp", 80) as peer, contextlib.closing(Nftables(OWN)) as heir:
        assert call(hosts.remote, "udp", (PUBLIC, 8043), peer, (REMOTE, 5000)) == (REMOTE, 5000)
        handles = run("nft", "-a", "list", "map", "inet", "igd_wg0", "mappings")
        heir.replace_all([EXTERNAL], [entry(8043, 80)], now=0)
        assert held() == {("udp", 8043): ("10.100.0.2", 80, 150)}
        assert handles.splitlines()[1] == run("nft", "-a", "list", "map", "inet", "igd_wg0", "mappings").splitlines()[1]
        assert call(hosts.remote, "udp", (PUBLIC, 8043), peer, (REMOTE, 5001)) == (REMOTE, 5001)
        assert subprocess.run(["nft", "delete table inet igd_wg0"], capture_output=True, check=False).returncode == 1


def test_it_is_given_back(backend: Nftables) -> None:
    backend.close()
    assert held()
    run("nft", "delete table inet igd_wg0")
    assert listing() == ""


@pytest.mark.parametrize(("before", "after"), [(OWN, SITE), (SITE, OWN)], ids=["off", "on"])
def test_the_option_can_be_changed(before: Site, after: Site) -> None:
    addresses, entries = [EXTERNAL, EXTERNAL + 2], [entry(8043, 80, "tcp")]
    with new_namespace():
        with contextlib.closing(Nftables(before)) as first:
            first.replace_all(addresses, entries, now=0)
        with contextlib.closing(Nftables(after)) as second:
            second.replace_all(addresses, entries, now=0)
            shown = listing()
            assert ("flags owner" in shown) == (after is OWN)
            assert (
                "".join(line for line in shown.splitlines(keepends=True)[1:] if "owner" not in line).lstrip("\n")
                == (LISTING.split("\n", 1)[1])
            )


def test_what_an_owner_left_behind_goes_with_remove_all_of_a_plain_one(backend: Nftables) -> None:
    backend.close()
    with contextlib.closing(Nftables(SITE)) as other:
        other.remove_all()
    assert listing() == ""
