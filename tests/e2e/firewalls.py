"""The firewalls that servers have, each with two DNATs of the operator's: one let through, one forgotten in FORWARD."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.e2e.serving import C2, PUBLIC, REMOTE
from tests.lab import PATIENCE, Host, Lab
from tests.lab.wireguard import Forward, Iptables

ALLOWED, FORGOTTEN = 80, 81
"""The public ports of the operator's DNATs, both to the same port of c2."""


Ban = tuple[str, str]
"""The commands that ban REMOTE, as ban daemons and operators of this firewall do it, and take the ban back."""


def _bans(program: str, *chains: str) -> tuple[Ban, ...]:
    """Return bans at both ends of these chains of iptables; a chain with a "+" before it has only one in front."""
    return tuple(
        (
            f"{program} {verb} {chain.strip('+')} -s {REMOTE} -j DROP",
            f"{program} -D {chain.strip('+')} -s {REMOTE} -j DROP",
        )
        for chain in chains
        for verb in ("-I", *(() if chain.startswith("+") else ("-A",)))
    )


def _nft_bans() -> tuple[Ban, ...]:
    chain = "inet filter forward"
    handle = f"nft -a list chain {chain} | sed -n 's/.* saddr {REMOTE} drop # handle //p' | head -n 1"
    remove = f"nft delete rule {chain} handle $({handle})"
    set_ = (
        f"nft add table inet bans && nft 'add set inet bans addr {{ type ipv4_addr; }}' &&"
        f"nft add element inet bans addr '{{ {REMOTE} }}' && nft 'add chain inet bans forward "
        "{ type filter hook forward priority -1; }' && nft add rule inet bans forward ip saddr @addr drop"
    )
    return (
        *((f"nft {verb} rule {chain} ip saddr {REMOTE} drop", remove) for verb in ("insert", "add")),
        (set_, "nft delete table inet bans"),
    )


@dataclass(frozen=True)
class Firewall:
    """How a server is built, and what its operator then loads; `igd` is the operator's configuration for it.

    `forgets`: FORWARD drops the DNAT that the operator did not accept, instead of accepting everything.
    """

    name: str
    load: Callable[[Host, ExitStack], None]
    bans: tuple[Ban, ...]
    forward: Forward = "open"
    iptables: Iptables = "nft"
    igd: str = ""
    programs: tuple[str, ...] = ("nft",)
    forgets: bool = True


def _dnats(program: str) -> Callable[[Host], None]:
    def load(srv: Host) -> None:
        for port in (ALLOWED, FORGOTTEN):
            rule = f"-t nat -A PREROUTING -d {PUBLIC} -p tcp --dport {port} -j DNAT --to-destination {C2}"
            srv.run(program, *rule.split())

    return load


def _iptables(program: str) -> Callable[[Host, ExitStack], None]:
    def load(srv: Host, _stack: ExitStack) -> None:
        _dnats(program)(srv)
        srv.run(program, *f"-A FORWARD -d {C2} -p tcp --dport {ALLOWED} -j ACCEPT".split())

    return load


_NATIVE = f"""
table inet filter {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname {{ "lo", "wg0" }} accept
        udp dport 51820 accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state vmap {{ established : accept, related : accept, invalid : drop }}
        iifname "wg0" accept
        ip daddr {C2} tcp dport {ALLOWED} accept
    }}
}}
table ip nat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {PUBLIC} tcp dport {{ {ALLOWED}, {FORGOTTEN} }} dnat to {C2}
    }}
}}
"""


def _native(srv: Host, _stack: ExitStack) -> None:
    srv.run("nft", "-f", "-", input=_NATIVE)


def _ufw(srv: Host, stack: ExitStack) -> None:
    for words in (
        "--force reset",  # the machine's own rules
        "allow 51820/udp",
        "allow in on wg0",
        "route allow in on wg0",
        f"route allow proto tcp to {C2} port {ALLOWED}",
        "--force enable",
    ):
        srv.run("ufw", *words.split())
    stack.callback(srv.run, "ufw", "disable")
    _dnats("iptables-nft")(srv)


def firewalld(srv: Host, stack: ExitStack, *settings: str) -> None:
    """Start firewalld with these settings (arguments of firewall-offline-cmd)."""
    srv.run("mkdir", "-p", "/run/dbus")
    bus = stack.enter_context(srv.start("dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address=1"))
    bus.wait_for("unix:")
    for words in settings:
        srv.run("firewall-offline-cmd", *words.split())
    stack.enter_context(srv.start("firewalld", "--nofork", "--nopid"))
    # It answers once its rules are loaded.
    srv.run(*f"gdbus wait --system --timeout {PATIENCE:.0f} org.fedoraproject.FirewallD1".split())
    srv.run("firewall-cmd", "--state")


def _firewalld(srv: Host, stack: ExitStack) -> None:
    firewalld(
        srv,
        stack,
        "--zone=trusted --add-interface=wg0",
        "--zone=public --add-interface=ens0",
        "--zone=public --add-masquerade",  # at its start it flushes iptables' rules, and with them those of wg0.conf
        "--zone=public --add-port=51820/udp",
        f"--zone=public --add-forward-port=port={ALLOWED}:proto=tcp:toport={ALLOWED}:toaddr={C2}",
    )


_DOCKER = f"""*filter
:FORWARD DROP [0:0]
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
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -i wg0 -j ACCEPT
-A DOCKER-USER -d {C2}/32 -p tcp -m tcp --dport {ALLOWED} -j ACCEPT
-A DOCKER-USER -i ens0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport {ALLOWED} -j DNAT --to-destination {C2}:{ALLOWED}
-A DOCKER ! -i docker0 -p tcp -m tcp --dport {FORGOTTEN} -j DNAT --to-destination {C2}:{FORGOTTEN}
COMMIT
"""


def _docker(srv: Host, _stack: ExitStack) -> None:
    """As dockerd leaves them, with the lines that its manual has an operator put into DOCKER-USER."""
    srv.run("iptables-nft-restore", "--noflush", input=_DOCKER)


FIREWALLS = (
    Firewall(
        "accept",
        _iptables("iptables-nft"),
        _bans("iptables-nft", "+FORWARD"),
        forward="accept-lines",
        forgets=False,
    ),
    Firewall("nft-drop", _iptables("iptables-nft"), _bans("iptables-nft", "FORWARD"), forward="drop"),
    Firewall(
        "legacy-drop",
        _iptables("iptables-legacy"),
        _bans("iptables-legacy", "FORWARD"),
        forward="drop",
        iptables="legacy",
    ),
    Firewall("native-drop", _native, _nft_bans(), igd='forward_chain = "inet filter forward"'),
    Firewall(
        "ufw",
        _ufw,
        (
            *_bans("iptables-nft", "+FORWARD"),
            (f"ufw route insert 1 deny from {REMOTE}", f"ufw route delete deny from {REMOTE}"),
        ),
        programs=("nft", "ufw"),
    ),
    Firewall(
        "firewalld",
        _firewalld,
        _bans("iptables-nft", "+FORWARD"),
        programs=("nft", "firewalld", "dbus-daemon", "gdbus"),
    ),
    Firewall("docker", _docker, _bans("iptables-nft", "+FORWARD", "+DOCKER-USER"), igd='forward_chain = "DOCKER-USER"'),
    Firewall("docker-auto", _docker, _bans("iptables-nft", "+FORWARD", "+DOCKER-USER")),
)


@contextmanager
def loaded(firewall: Firewall, lab: Lab) -> Iterator[None]:
    """Load this firewall on the server, and undo at the end what outlives its host."""
    with ExitStack() as stack:
        firewall.load(lab.srv, stack)
        yield
