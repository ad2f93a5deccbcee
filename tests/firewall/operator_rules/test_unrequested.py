"""What the operator's INPUT does with a packet that a STUN server sends to a port that never sent any."""

from ipaddress import IPv4Address

import pytest

from igd.firewall.operator_rules.unrequested import obstacle
from igd.firewall.site import Site
from tests.firewall.calling import swallows
from tests.firewall.three_hosts import EXTERNAL, PEERS, REMOTE, ThreeHosts, run

SITE = Site("ext0", "wg0", PEERS)
PORT = 40000
DROPPING = """table inet filter {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        {}
    }}
}}
"""


EARLY = """table inet early {{
    chain first {{
        type filter hook prerouting priority raw;
        {}
    }}
}}
"""


def found() -> str | None:
    where = obstacle(SITE, IPv4Address(REMOTE), EXTERNAL, PORT)
    return where and where.lower()


@pytest.mark.root
@pytest.mark.parametrize(
    "rule",
    [
        "-j DROP",
        "-p udp -j REJECT",
        "-i ext0 -m conntrack --ctstate NEW -j DROP",
        f"-s {REMOTE} -j DROP",
        "-p udp --dport 30000:50000 -j DROP",
        "-m connlimit --connlimit-above 1 -j DROP",  # cannot be judged
        "-p udp -j NFQUEUE",
    ],
)
@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_what_may_drop_it_is_named(hosts: ThreeHosts, program: str, rule: str) -> None:
    run(*f"{program} -A INPUT {rule}".split())
    where = found()
    assert where is not None
    assert where.startswith("-a input")
    if rule == "-j DROP":
        assert swallows(hosts.server, hosts.remote, "udp", (str(EXTERNAL), PORT))


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    "rule",
    [
        "-s 60.60.60.200 -j DROP",
        "-i wg0 -j DROP",
        "-p tcp -j DROP",
        "-p udp --dport 53 -j DROP",
        "-m conntrack --ctstate INVALID -j DROP",
        "-p udp -j LOG",
        "-s 60.60.60.0/24 -j ACCEPT",
    ],
)
@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_what_lets_it_in_is_not(program: str, rule: str) -> None:
    assert found() is None
    run(*f"{program} -A INPUT {rule}".split())
    assert found() is None


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_chains_of_nftables_and_their_policy() -> None:
    run("nft", "-f", "-", text=DROPPING.format(""))
    assert found() == "policy drop of input"
    run("nft", "-f", "-", text=f"delete table inet filter\n{DROPPING.format('udp dport 40000 accept')}")
    assert found() is None
    run("nft", "add", "chain", "inet", "filter", "late", "{ type filter hook input priority 10; policy drop; }")
    assert found() == "policy drop of late"


@pytest.mark.root
@pytest.mark.parametrize("table", ["raw", "mangle"])
@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_rules_before_input_count_as_well(hosts: ThreeHosts, program: str, table: str) -> None:
    run(*f"{program} -t {table} -A PREROUTING -p udp --dport 53 -j DROP".split())
    run(*f"{program} -t {table} -A PREROUTING -i wg0 -j DROP".split())
    assert found() is None
    run(*f"{program} -t {table} -A PREROUTING -i ext0 -p udp -j DROP".split())
    assert found() == "-a prerouting -i ext0 -p udp -j drop"
    assert swallows(hosts.server, hosts.remote, "udp", (str(EXTERNAL), PORT))


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_chains_of_nftables_before_input_count_as_well() -> None:
    run("nft", "-f", "-", text=EARLY.format("udp dport 53 drop"))
    assert found() is None
    run("nft", "add", "rule", "inet", "early", "first", 'iifname "ext0" udp dport 1024-65535 drop')
    assert "drop" in (found() or "")
