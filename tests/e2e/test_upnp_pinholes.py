"""Behind a firewall that drops, UPnP opens ways to a peer's own IPv6 address: one for each remote, by its UniqueID."""

import re
import signal
from collections.abc import Iterator

import pytest

from igd.wire.upnp.devices import WAN_IPV6_FIREWALL_CONTROL
from tests.e2e.control import Arguments
from tests.e2e.pcp_client import C1_IPV6, granted, map_port
from tests.e2e.serving import mappings, serving, start
from tests.e2e.two_peers import invoke
from tests.lab import Answer, Host, Lab, answering, ask, call, put, swallows, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

BOTH = pytest.mark.parametrize("backend", ["nftables", "iptables"])
REMOTE, OTHER = "2001:470:60::2", "2001:470:60::7"
PORT, SOURCE_PORT = 8043, 9000


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("nft", "conntrack", "iptables-legacy-save")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return a lab in which `net` has a second address, and a program on c1 answers."""
    with Lab(forward="drop") as made:
        made.net.run("ip", "address", "add", f"{OTHER}/64", "dev", "srv", "nodad")
        with answering(made.c1, PORT, "udp", ipv6=True):
            yield made


def config(backend: str) -> str:
    return f'[firewall]\nbackend = "{backend}"\n'


def upnp(client: Host, action: str, arguments: Arguments) -> str:
    """Invoke an action over IPv4; return what it answers, or the code of its error."""
    answer = invoke(client, "", WAN_IPV6_FIREWALL_CONTROL, action, arguments)
    found = re.search(rb"<(?:UniqueID|errorCode|PinholePackets)>(\d+)<", answer.rest)
    return found[1].decode() if found else str(answer.status)


def add(client: Host, remote: str = "", remote_port: int = 0, lease: int = 600) -> int:
    """Open a pinhole to c1's port, and return its UniqueID."""
    flow = {"RemoteHost": remote, "RemotePort": remote_port, "InternalClient": C1_IPV6, "InternalPort": PORT}
    return int(upnp(client, "AddPinhole", {**flow, "Protocol": 17, "LeaseTime": lease}))


def delete(client: Host, unique_id: int) -> str:
    return upnp(client, "DeletePinhole", {"UniqueID": unique_id})


def unique_ids(lab: Lab) -> dict[int, list[str]]:
    """Return the remotes of each pinhole, as `igd list --json` prints them."""
    return {each["unique_id"]: each["remotes"] for each in mappings(lab)}


def gets_in(lab: Lab, source: str) -> bool:
    """Return whether c1 answers this address of `net`; otherwise the server drops its packets."""
    if swallows(lab.srv, lab.net, C1_IPV6, PORT, "udp", source=source):
        return False
    return ask(lab.net, C1_IPV6, PORT, "udp", source=source) == Answer(source, "who am I?")


@BOTH
def test_of_two_remotes_one_is_closed_and_the_other_still_gets_in(lab: Lab, backend: str) -> None:
    with serving(lab, config(backend)):
        one, other = add(lab.c1, REMOTE), add(lab.c1, OTHER)
        with call(lab.net, C1_IPV6, PORT, "udp", source=OTHER, source_port=SOURCE_PORT) as going_on:
            assert put(going_on).source == OTHER
            assert gets_in(lab, REMOTE)
            flow = _flow(lab)
            assert delete(lab.c1, one) == "200"
            until(lambda: REMOTE not in _flows(lab))
            assert not gets_in(lab, REMOTE)
            assert put(going_on).source == OTHER
            assert _flow(lab) == flow, "it was not interrupted"
        assert delete(lab.c1, other) == "200"
        until(lambda: OTHER not in _flows(lab))
        assert not gets_in(lab, OTHER)


def _flows(lab: Lab) -> str:
    """Return the flows to c1's IPv6 address."""
    return lab.srv.run("conntrack", "-L", "-f", "ipv6", "-o", "id", "--orig-dst", C1_IPV6).stdout


def _flow(lab: Lab) -> str:
    """Return the id of the flow from SOURCE_PORT."""
    (number,) = re.findall(rf"sport={SOURCE_PORT} .* id=(\d+)", _flows(lab))
    return str(number)


@BOTH
def test_unique_ids_survive_a_kill(lab: Lab, backend: str) -> None:
    with start(lab, config(backend)) as process:
        one, any_source = add(lab.c1, REMOTE), add(lab.c1)
        granted(map_port(lab.c1, PORT, source=C1_IPV6))  # TCP, by PCP
        before = unique_ids(lab)
        assert len(before) == 3
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with serving(lab, config(backend)):
        assert unique_ids(lab) == before
        assert add(lab.c1, REMOTE) == one
        assert add(lab.c1) == any_source
        for action in ("UpdatePinhole", "DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"):
            assert upnp(lab.c2, action, {"UniqueID": one, "LeaseTime": 60}) == "704", "it is another peer's"
        assert delete(lab.c1, any_source) == "200"
        assert gets_in(lab, REMOTE)
        assert not gets_in(lab, OTHER)
        assert delete(lab.c1, any_source) == "704"
        assert upnp(lab.c1, "UpdatePinhole", {"UniqueID": one, "LeaseTime": 60}) == "200"
