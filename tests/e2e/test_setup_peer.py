"""`igd setup wg0 --peer NAME`: a client that gets these lines is found, maps, and is reached."""

import re
from collections.abc import Iterator

import pytest

from tests.e2e.serving import C1, PUBLIC, REMOTE, igd, serving
from tests.lab import Answer, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

CONF = "/etc/wireguard/wg0.conf"


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    needs("upnpc", "natpmpc")
    with Lab(wg=False) as lab:
        conf = lab.srv.run("cat", CONF).stdout
        lab.srv.write(CONF, conf.replace("[Peer]", "# laptop\n[Peer]", 1))
        lab.wg_up(lab.srv)
        with serving(lab):
            yield lab


def configured(lab: Lab, part: int) -> None:
    """Give c1's file the lines of this part in place of its own, and bring its interface up."""
    printed = igd(lab, "setup", "wg0", "--peer", "laptop").stdout
    (text,) = re.findall(rf"(?ms)^# {part}\. .*?(?=^# {part + 1}\. |^# Without)", printed)
    interface, peer = (section.split("[")[0] for section in re.split(r"(?m)^\[(?:Interface|Peer)\]$", text)[1:])
    conf = lab.c1.run("cat", CONF).stdout
    conf = re.sub(r"(?m)^(Address|AllowedIPs|Table) = .*\n", "", conf)
    conf = conf.replace("\n[Peer]\n", f"{interface}\n[Peer]\n{peer}")
    lab.c1.write(CONF, conf)
    lab.wg_up(lab.c1)


@pytest.fixture(params=[1, 2, 3], ids=["full", "gateway", "split"])
def part(served: Lab, request: pytest.FixtureRequest) -> Iterator[int]:
    """Configure the client, and assert that it is as before once its interface is down."""
    before, routes = served.c1.run("cat", CONF).stdout, _routes(served)
    configured(served, request.param)
    yield request.param
    served.wg_down(served.c1)
    served.c1.write(CONF, before)
    assert _routes(served) == routes


def _routes(lab: Lab) -> str:
    return lab.c1.run("sh", "-c", "ip route; ip rule; ip -6 route show default").stdout


def test_the_client_finds_the_gateway_maps_and_is_reached(served: Lab, part: int) -> None:
    mapped = served.c1.run("upnpc", *f"-n {C1} 8043 8043 tcp 300".split()).stdout
    assert f"external {PUBLIC}:8043 TCP is redirected to internal {C1}:8043" in mapped
    with answering(served.c1, 8043):
        assert ask(served.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
    link, address = (
        served.c1.run("ip", *words).stdout for words in (("link", "show", "wg0"), ("address", "show", "wg0"))
    )
    assert "MULTICAST" in link
    assert f"{C1}/24" in address
    outside = "dev eth0" in served.c1.run("ip", "route", "get", REMOTE).stdout
    assert outside == (part == 3)
    if part == 2:
        asked = served.c1.run("natpmpc", "-a", "8044", "8044", "udp", "60").stdout
        assert "Mapped public port 8044" in asked


def test_an_unknown_peer_is_an_error(served: Lab) -> None:
    failed = igd(served, "setup", "wg0", "--peer", "tablet", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    named, _, peers = failed.stderr.strip().partition("; there are: ")
    assert named == "igd: tablet names no peer"
    assert "laptop (10.100.0.2, 2001:470:100::2)" in peers.split("; ")
