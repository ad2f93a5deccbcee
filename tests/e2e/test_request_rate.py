"""The kernel limits what each peer sends to igd; the limits follow the peers, and survive what others do to them."""

import re

import pytest

from tests.e2e import serving
from tests.e2e.serving import igd
from tests.lab import Lab, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Iptables, make_keys

pytestmark = requires_root

TABLE = ("table", "inet", "igd_wg0/rate")


def limits(lab: Lab) -> list[str]:
    """Return the names of the limits, sorted; none without the table."""
    listed = lab.srv.run("nft", "list", *TABLE, check=False).stdout
    assert listed.count("_limits drop") == (2 if listed else 0)
    return sorted(re.findall(r"limit (\S+) \{", listed))


def names(*keys: str) -> list[str]:
    """Return the names of the limits of peers with these public keys, and of unknown sources."""
    return sorted(["unknown_sources", *(f"peer_{key.rstrip('=').replace('+', '-')}" for key in keys)])


@pytest.mark.parametrize(("iptables", "backend"), [("nft", "nftables"), ("legacy", "iptables")])
def test_limits_follow_the_peers_are_repaired_and_end_with_igd(root: None, iptables: Iptables, backend: str) -> None:
    needs("nft")
    with Lab(iptables=iptables) as lab:
        known = lab.srv.run("wg", "show", "wg0", "peers").stdout.split()
        added = make_keys().public
        with serving.serving(lab, f'[firewall]\nbackend = "{backend}"\n') as process:
            assert limits(lab) == names(*known)
            lab.srv.run("wg", "set", "wg0", "peer", added, "allowed-ips", "10.100.0.77/32")
            until(lambda: limits(lab) == names(*known, added))
            lab.srv.run("wg", "set", "wg0", "peer", added, "remove")
            until(lambda: limits(lab) == names(*known))
            for command in (("delete", *TABLE), ("flush", "chain", *TABLE[1:], "input"), ("flush", "ruleset")):
                lab.srv.run("nft", *command)
                process.wait_for("the firewall was changed by .*nft.*: igd's part was repaired")
                until(lambda: limits(lab) == names(*known))
        assert limits(lab) == []


def test_igd_stop_removes_the_limits_of_an_igd_that_was_killed(lab: Lab) -> None:
    needs("nft")
    with serving.start(lab) as process:
        process.signal(9)
        process.wait()
        assert limits(lab)
        igd(lab, "stop", "wg0")
    assert limits(lab) == []
