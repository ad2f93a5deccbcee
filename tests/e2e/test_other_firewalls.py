"""Another program loads, flushes or rewrites the server's firewall while igd runs."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.serving import C1, PUBLIC, REMOTE, held, serving, upnpc
from tests.lab import Lab, answering, ask, until
from tests.lab.fixtures import requires_root

pytestmark = requires_root


@pytest.fixture(scope="module")
def dropping(root: None) -> Iterator[Lab]:
    """A server whose FORWARD drops."""
    with Lab(forward="drop") as lab:
        yield lab


def tables(lab: Lab) -> set[str]:
    listing = json.loads(lab.srv.run("nft", "-j", "list", "tables").stdout)
    return {item["table"]["name"] for item in listing["nftables"] if "table" in item}


def jumps(lab: Lab) -> list[str]:
    saved = lab.srv.run("iptables-nft-save", "-t", "filter").stdout.splitlines()
    return [line for line in saved if line.startswith("-A FORWARD") and "igd_wg0" in line]


def test_a_flushed_ruleset_gets_our_table_back_with_its_mappings(lab: Lab) -> None:
    with serving(lab) as process, answering(lab.c1, 8043):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        lab.srv.run("nft", "flush", "ruleset")
        until(lambda: "igd_wg0" in tables(lab) and held(lab) == [("TCP", 8043)])
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        process.wait_for("changed by nft")


def test_a_reloaded_forward_gets_our_jump_back_once(dropping: Lab) -> None:
    reloaded = dropping.srv.run("iptables-nft-save", "-t", "filter").stdout
    with serving(dropping) as process, answering(dropping.c1, 8043):
        upnpc(dropping.c1, "-a", C1, "8043", "8043", "tcp", "300")
        assert len(jumps(dropping)) == 1
        dropping.srv.run("iptables-nft-restore", input=reloaded)
        process.wait_for("was changed by")
        assert len(jumps(dropping)) == 1
        assert ask(dropping.net, PUBLIC, 8043).source == REMOTE
    assert jumps(dropping) == []
    logged = [line for line in process.lines if "was changed by" in line]
    assert len(logged) == 1, "not of our own edits, at the start or later"
