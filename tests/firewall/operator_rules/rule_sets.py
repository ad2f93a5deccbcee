"""Rule sets of iptables as operators have them, and random ones."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

IN_THE_KERNEL = settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],  # to make a failure smaller takes minutes: every lost packet is waited for
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""Of tests that send packets through random rule sets."""

WALKTHROUGH = "-A FORWARD -i wg0 -j ACCEPT\n-A FORWARD -o wg0 -j ACCEPT"

UFW = """
:ufw-before-forward - [0:0]
:ufw-after-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-forward - [0:0]
:ufw-before-logging-forward - [0:0]
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW -j DROP] "
{user}
-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable
"""

DOCKER = """
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
{forward}
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
{user}
-A DOCKER-USER -j RETURN
"""

REJECTED = "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"
ANSWERS = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
DROPPED = "-A DOCKER-USER -i ext0 -j DROP"
NEW_DROPPED = "-A DOCKER-USER -i ext0 -m conntrack --ctstate NEW -j DROP"
OURS_RETURN = "-A user -o wg0 -j RETURN\n-A user -i wg0 -j RETURN\n"
GOTO = ":user - [0:0]\n-A FORWARD -g user\n"
USER = ":user - [0:0]\n-A FORWARD -j user\n"


def saved(policy: str, rules: str) -> str:
    """Write a filter table as iptables-save does, between tables that say the opposite."""
    chains, lines = ([line for line in rules.splitlines() if line.startswith(letter)] for letter in (":", "-"))
    head = [":INPUT DROP [0:0]", f":FORWARD {policy} [1:52]", ":OUTPUT ACCEPT [0:0]"]
    other = ["*mangle", ":FORWARD DROP [0:0]", "-A FORWARD -j DROP", "COMMIT"]
    return "\n".join(["# Generated", *other, "*filter", *head, *chains, *lines, "COMMIT", *other, ""])


CONDITIONS = [
    "-i ext0", "-o wg0", "-i wg0", "! -i wg0", "-o ext0", "-i e+", "-p tcp", "-p udp", "! -p udp",
    "-d 10.100.0.0/24", "! -d 10.100.0.2", "-s 10.100.0.0/16", "-s 60.60.60.2", "-d 10.0.0.0/8",
    "-m conntrack --ctstate NEW", "-m conntrack --ctstate ESTABLISHED,RELATED", "-m conntrack --ctstate DNAT",
    "-m conntrack ! --ctstate DNAT", "-m conntrack ! --ctstate NEW", "-m state --state NEW", "-m state ! --state NEW",
    "-m conntrack --ctstate INVALID", "-m connmark --mark 0x10000000/0x10000000", "-m connmark ! --mark 0x1/0x1",
    "-m mark --mark 0", "-p tcp -m tcp --dport 1:65535", "-p udp -m udp --dport 0:8042",
    "-m addrtype --dst-type UNICAST", "-m addrtype ! --dst-type LOCAL", "-p tcp -m multiport --dports 80,8000:9000",
    "-p tcp -m multiport ! --dports 80",
    '-m comment --comment "-j DROP"', "-p udp -m udp --dport 8043", "-p udp -m udp ! --dport 8043",
]  # fmt: skip
TARGETS = ["ACCEPT", "ACCEPT", "RETURN", "DROP", "REJECT", "MARK --set-mark 1"]


def rules_of(chain: str, targets: list[str]) -> st.SearchStrategy[list[str]]:
    """Make rules whose jumps only lead to `targets`, so that no chain leads back to itself."""
    verdict = st.sampled_from([f"-j {target}" for target in targets])
    if "two" in targets:
        verdict |= st.sampled_from(["-g two"])
    conditions = st.lists(st.sampled_from(CONDITIONS), max_size=2, unique_by=lambda text: text.lstrip("! ")[:2])
    rule = st.builds(lambda asked, then: " ".join(["-A", chain, *asked, then]), conditions, verdict)
    return st.lists(rule, max_size=4)
