"""upnpc asks whether its pinhole works: not before the internet has come through it, and still after a kill -9."""

import re
import signal

import pytest

from tests.e2e.pcp_client import C1_IPV6
from tests.e2e.serving import serving, start, upnpc
from tests.lab import Answer, Host, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

REACHED = Answer("2001:470:60::2", "who am I?")


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft")


def answered(client: Host, pattern: str, *words: str) -> int:
    """Return the number that upnpc prints."""
    printed = upnpc(client, *words)
    found = re.search(rf"{pattern} = (\d+)", printed)
    assert found, printed
    return int(found[1])


def test_a_pinhole_works_once_the_internet_has_come_through_it() -> None:
    """Both backends have the same table: tests/firewall/test_traffic.py."""
    with Lab(forward="drop") as lab, answering(lab.c1, 8043, ipv6=True):
        with start(lab) as killed:
            number = str(answered(lab.c1, "Pinhole ID", "-A", "", "0", C1_IPV6, "8043", "tcp", "300"))
            assert answered(lab.c1, "PinholePackets", "-K", number) == 0
            assert "failed with code 709" in upnpc(lab.c1, "-C", number)
            assert ask(lab.net, C1_IPV6, 8043) == REACHED
            assert "IsWorking = Yes" in upnpc(lab.c1, "-C", number)
            before = answered(lab.c1, "PinholePackets", "-K", number)
            assert before >= 3, "SYN, ACK, data"
            killed.signal(signal.SIGKILL)
            killed.wait()
        with serving(lab):
            assert answered(lab.c1, "PinholePackets", "-K", number) >= before
            assert ask(lab.net, C1_IPV6, 8043) == REACHED
            assert answered(lab.c1, "PinholePackets", "-K", number) >= before + 3
            lab.srv.run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=17")
            assert answered(lab.c1, "Timeout", "-G", "", "0", C1_IPV6, "8043", "udp") == 17
