"""A mapping for one remote host: the kernel admits that one alone, and the client sees which one it is."""

import re
from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, PUBLIC, REMOTE, flows, igd, mappings, serving, upnpc
from tests.lab import Lab, answering, ask, call, put
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol

pytestmark = requires_root

NEIGHBOUR = "60.60.60.7"
"""Another address of net's: on the same cable as REMOTE, so that nothing but the address tells them apart."""

PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def served(root: None, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a lab with igd in it, shared: each test uses ports of its own."""
    needs("upnpc", "conntrack")
    with Lab() as lab, serving(lab, f'[firewall]\nbackend = "{request.param}"\n'):
        lab.net.run("ip", "address", "add", f"{NEIGHBOUR}/24", "dev", "srv")
        yield lab


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_alone_gets_in(served: Lab, protocol: Protocol) -> None:
    upnpc(served.c1, "-a", C1, "8100", "9100", protocol, "300", REMOTE)
    with answering(served.c1, 8100, protocol):
        for _time in range(2):  # nor once there is a flow
            assert ask(served.net, PUBLIC, 9100, protocol, source=REMOTE).source == REMOTE
            with pytest.raises(ConnectionRefusedError):
                ask(served.net, PUBLIC, 9100, protocol, source=NEIGHBOUR)


def test_another_remote_host_takes_its_place_and_its_flows_end(served: Lab) -> None:
    """There is one mapping for each external port; the remote host before is no longer admitted."""
    upnpc(served.c1, "-a", C1, "8200", "8200", "udp", "300", REMOTE)
    with answering(served.c1, 8200, "udp"), call(served.net, PUBLIC, 8200, "udp", source=REMOTE) as before:
        assert put(before).source == REMOTE
        upnpc(served.c1, "-a", C1, "8200", "8200", "udp", "300", NEIGHBOUR)
        assert ask(served.net, PUBLIC, 8200, "udp", source=NEIGHBOUR).source == NEIGHBOUR
        with pytest.raises(ConnectionRefusedError):
            put(before)
        upnpc(served.c1, "-a", C1, "8200", "8200", "udp", "300")
        for source in (REMOTE, NEIGHBOUR):
            assert ask(served.net, PUBLIC, 8200, "udp", source=source).source == source


def test_client_and_operator_see_for_whom_it_is(served: Lab) -> None:
    upnpc(served.c1, "-e", "my game", "-a", C1, "8300", "8301", "udp", "120", REMOTE)
    for option in ("-l", "-L"):
        assert re.search(
            rf" UDP  8301->{C1}:8300 +'my game' '{re.escape(REMOTE)}' (120|1[01]\d|[6-9]\d)\n", upnpc(served.c1, option)
        )
    (mapping,) = (mapping for mapping in mappings(served) if mapping["external_port"] == 8301)
    assert mapping["remotes"] == [f"{REMOTE}/32"]
    assert re.search(rf"UDP +8301 +{re.escape(REMOTE)}/32 +{C1}:8300 ", igd(served, "list", "wg0").stdout)


def test_it_is_found_and_deleted_by_its_name(served: Lab) -> None:
    assert control.add(served.c1, {"ExternalPort": 8400, "Protocol": "UDP", "RemoteHost": REMOTE}) == 200
    name = {**control.key(8400, "UDP"), "RemoteHost": REMOTE}
    others = ({**name, "RemoteHost": NEIGHBOUR}, {**name, "RemoteHost": ""})
    assert control.ask(served.c1, "GetSpecificPortMappingEntry", name) == 200
    assert [control.ask(served.c1, "GetSpecificPortMappingEntry", other) for other in others] == [714, 714]
    assert control.ask(served.c1, "DeletePortMapping", others[0]) == 714
    with answering(served.c1, 9001, "udp"):
        assert ask(served.net, PUBLIC, 8400, "udp", source=REMOTE).source == REMOTE
        assert flows(served, 8400)
        upnpc(served.c1, "-d", "8400", "udp", REMOTE)
        assert flows(served, 8400) == []
        with pytest.raises(ConnectionRefusedError):
            ask(served.net, PUBLIC, 8400, "udp", source=REMOTE)
    assert control.ask(served.c1, "GetSpecificPortMappingEntry", name) == 714


def test_a_client_that_does_not_know_for_whom_it_is_can_delete_it_too(served: Lab) -> None:
    """Most can name a port and no more."""
    upnpc(served.c1, "-a", C1, "8500", "8500", "tcp", "300", REMOTE)
    upnpc(served.c1, "-d", "8500", "tcp")
    assert "8500->" not in upnpc(served.c1, "-l")
