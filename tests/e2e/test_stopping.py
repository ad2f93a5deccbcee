"""When igd stops, whichever way, the flows through mappings end: also those into networks that came after its start."""

import signal
from contextlib import ExitStack

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, PUBLIC, flows, igd, mappings, start
from tests.lab import Lab, answering, call, put, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Iptables

pytestmark = requires_root

NETWORK, HOST, PORT = "192.168.7.0/24", "192.168.7.20", 9001
WAYS = ("igd stop", "igd stop after kill -9, when the peer is gone")


@pytest.mark.parametrize(("backend", "iptables"), [("nftables", "nft"), ("iptables", "legacy")])
@pytest.mark.parametrize("way", WAYS)
def test_flows_into_a_network_that_came_later_end(way: str, backend: str, iptables: Iptables) -> None:
    needs("conntrack", "iptables-legacy")
    with Lab(iptables=iptables) as lab, ExitStack() as stack:
        process = stack.enter_context(start(lab, f'[firewall]\nbackend = "{backend}"\n'))
        key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C1},{NETWORK}")
        lab.srv.run("ip", "route", "add", NETWORK, "dev", "wg0")
        lab.c1.run("ip", "address", "add", f"{HOST}/32", "dev", "wg0")
        until(lambda: control.add(lab.c1, {"InternalClient": HOST}) == 200)
        assert [mapping["internal_address"] for mapping in mappings(lab)] == [HOST]
        stack.enter_context(answering(lab.c1, PORT))
        put(stack.enter_context(call(lab.net, PUBLIC, PORT)))
        assert len(flows(lab, PORT)) == 1
        if "kill -9" in way:
            process.signal(signal.SIGKILL)
            process.wait()
            lab.srv.run("wg", "set", "wg0", "peer", key, "remove")
        igd(lab, "stop", "wg0")
        assert flows(lab, PORT) == []
