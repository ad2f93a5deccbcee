"""The lines that keep a rule from overwriting igd's bit of the connection mark."""

import pytest

from igd.firewall.probing.rule_text import RuleText
from igd.operator.doctor.marks import remasked

BIT = 0x1000_0000
IPTABLES = "iptables-nft", "mangle", "PREROUTING", 3, 9
NFT = "nft", "inet m", "p", 0, 9


@pytest.mark.parametrize(
    ("place", "text", "line"),
    [
        (
            IPTABLES,
            "-A PREROUTING -i ens0 -j CONNMARK --set-xmark 0x1/0xffffffff",
            "iptables-nft -t mangle -R PREROUTING 3 -i ens0 -j CONNMARK --set-xmark 0x1/0xefffffff",
        ),
        (
            IPTABLES,
            "-A PREROUTING -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
            "iptables-nft -t mangle -R PREROUTING 3 -j CONNMARK --save-mark --nfmask 0xefffffff --ctmask 0xefffffff",
        ),
        (
            NFT,
            "tcp dport 22 counter packets 3 bytes 180 ct mark set 0x10000007",
            "nft 'replace rule inet m p handle 9 tcp dport 22 counter ct mark set ct mark & 0x10000000 | 0x00000007'",
        ),
        (NFT, "ct mark set meta mark", ""),  # nft 1.0.6 cannot combine two marks
    ],
)
def test_the_rule_is_the_same_but_for_the_bit(place: tuple[str, str, str, int, int], text: str, line: str) -> None:
    assert remasked(RuleText(*place, text), BIT) == line
