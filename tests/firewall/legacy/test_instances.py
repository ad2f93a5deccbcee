"""Two instances in one table of iptables-legacy: each repairs its own rules without disturbing the other."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall import kernel
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.site import Site
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, new_namespace, run

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)


class Instance:
    """One backend with one mapping, and its watch."""

    def __init__(self, site: Site, port: int) -> None:
        self.watch = LegacyWatch(kernel.LEGACY)
        self.backend = Iptables(site, own_change=self.watch.own_change)
        mapping = PortMapping(TransportProtocol.UDP, port, Endpoint(PEER, 8080), "peer")
        self._entry = Entry(mapping, Lease(500.0))

    def repair(self) -> None:
        """Do what the daemon does after a foreign change."""
        self.backend.replace_all([EXTERNAL], [self._entry], 0.0)


@pytest.fixture(params=[False, True], ids=["jumps last", "jumps first"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Instance, Instance]]:
    """The instances of wg0 and wg1, of which wg1 started first; with the option, jumps come first in POSTROUTING."""
    site = replace(SITE, preserve_source_port=request.param)
    with new_namespace():
        one, other = Instance(site, 2000), Instance(replace(site, wireguard="wg1"), 2001)
        with contextlib.closing(one.backend), contextlib.closing(other.backend):
            for each in (other, one):
                each.repair()
            yield one, other


def hooks() -> list[str]:
    saved = run("iptables-legacy-save", "-t", "nat").splitlines()
    return [line for line in saved if line.startswith(("-A PREROUTING", "-A POSTROUTING"))]


def settle(both: tuple[Instance, Instance]) -> int:
    """Let each repair after changes of the other, until neither does; return how often that was."""
    repairs = 0
    while changed := [each for each in both if each.watch.changed()]:
        for each in changed:
            each.repair()
        repairs += len(changed)
        assert repairs < 8, "they fight"
    return repairs


def test_they_come_to_rest(both: tuple[Instance, Instance]) -> None:
    settle(both)
    before = hooks()
    for each in both:
        each.repair()
        assert settle(both) == 0
    assert hooks() == before


def test_they_come_to_rest_behind_what_the_operator_appends(both: tuple[Instance, Instance]) -> None:
    settle(both)
    run(*"iptables-legacy -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to 10.9.9.9".split())
    settle(both)
    order = [line.rpartition(" ")[2] for line in hooks() if "PREROUTING" in line]
    assert order == ["10.9.9.9", "igd_wg0", "igd_wg1"]


def test_the_end_of_one_leaves_the_rules_of_the_other(both: tuple[Instance, Instance]) -> None:
    one, other = both
    settle(both)
    one.backend.remove_all()
    saved = run("iptables-legacy-save", "-t", "nat")
    assert "wg0" not in saved
    other.repair()
    assert "--dport 2001 " in run("iptables-legacy-save", "-t", "nat")
    assert not one.watch.changed(), "nothing was to be put right"
