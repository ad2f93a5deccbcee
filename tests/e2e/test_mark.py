"""An operator who uses the default mark bit configures another one, and everything that depends on it follows."""

import pytest

from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, flows, operators_rules, rules, serving, upnpc
from tests.lab import Lab, answering, ask, swallows
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

OURS, DEFAULT = 0x400, 0x1000_0000


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_another_bit_lets_in_what_is_mapped_and_nothing_that_bears_the_default_one(backend: str) -> None:
    """With hairpin between two peers, and through a FORWARD that drops: each of them goes by the mark."""
    needs("upnpc", "conntrack", "nft", "iptables-legacy-save")
    config = f'[firewall]\nbackend = "{backend}"\nmark = {OURS:#x}\n'
    with Lab(forward="drop") as lab, answering(lab.c1, 8043), answering(lab.c2, 8044), answering(lab.c2, 80):
        for rule in (f"-j MARK --set-mark {DEFAULT:#x}", "-j CONNMARK --save-mark"):
            lab.srv.run("iptables-nft", *f"-t mangle -A PREROUTING -i ens0 -p tcp --dport 80 {rule}".split())
        lab.srv.run("iptables-nft", *f"-t nat -A PREROUTING -i ens0 -p tcp --dport 80 -j DNAT --to {C2}".split())
        before, before_of_operator = rules(lab), operators_rules(lab)
        with serving(lab, config):
            upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
            upnpc(lab.c2, "-a", C2, "8044", "8044", "tcp", "300")
            for port in (8043, 8044):
                assert ask(lab.net, PUBLIC, port).source == REMOTE
                for peer in (lab.c1, lab.c2):
                    assert ask(peer, PUBLIC, port).source == GATEWAY
            assert swallows(lab.srv, lab.net, PUBLIC, 80)  # the operator marks it, but does not accept it
            assert _marks(lab, 8043) == _marks(lab, 8044) == {OURS}
            assert operators_rules(lab) == before_of_operator
        assert rules(lab) == before


def _marks(lab: Lab, port: int) -> set[int]:
    """Return the marks of the flows to this port of the public address."""
    return {int(flow.partition(" mark=")[2].split()[0]) for flow in flows(lab, port)}
