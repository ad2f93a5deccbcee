"""fail2ban bans an address that talks through a mapping: the ban holds, and unbanning restores the traffic."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.firewalls import FIREWALLS, Firewall, loaded
from tests.e2e.serving import PUBLIC, REMOTE, rules, serving, upnpc
from tests.lab import PATIENCE, CommandFailed, Lab, Process, answering, ask, call, put, swallows, swallows_more, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol

pytestmark = requires_root

PORT = 8043
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")
ATTACKER = "80.80.80.254"  # another address of net; not one of the network at the other side of c1
SOCKET = "/run/fail2ban.sock"
ATTACKS = "/run/attacks.log"

_FAIL2BAN = f"""[Definition]
loglevel = INFO
logtarget = STDOUT
syslogsocket = auto
socket = {SOCKET}
pidfile = /run/fail2ban.pid
dbfile = None
"""
_FILTER = "[Definition]\nfailregex = ^attack from <HOST>$\ndatepattern = {NONE}\n"
_JAIL = f"""[DEFAULT]
[attacks]
enabled = true
backend = polling
filter = attacks
logpath = {ATTACKS}
maxretry = 1
ignoreself = false
bantime = 1h
action = %s
"""
_ACTIONS = {
    "iptables": "iptables-allports[chain=FORWARD, protocol=all, blocktype=DROP, iptables={iptables} -w]",
    "nftables": 'nftables-allports[chain_hook=forward, chain=f2b-fwd, protocol="tcp,udp", blocktype=drop]',
}


class Fail2ban:
    """A running fail2ban-server whose only jail bans who is in the log of attacks."""

    def __init__(self, lab: Lab, process: Process) -> None:
        self._lab, self._process = lab, process

    def ban(self, address: str) -> None:
        """Log an attack from this address, and return when it is banned.

        fail2ban can miss a line that comes while it looks at the file for the first time, so the attack is repeated.
        """
        self._attack(address)
        try:
            self._await_ban(address, PATIENCE / 4)
        except CommandFailed:
            self._attack(address)
            self._await_ban(address, PATIENCE)
        until(lambda: address in rules(self._lab))  # it is logged before it is carried out

    def _attack(self, address: str) -> None:
        self._lab.srv.run("sh", "-c", f"echo 'attack from {address}' >> {ATTACKS}")

    def _await_ban(self, address: str, timeout: float) -> None:
        self._process.wait_for(rf"NOTICE +\[attacks\] Ban {address}", timeout)

    def unban(self, address: str) -> None:
        """Lift the ban on this address."""
        self._lab.srv.run("fail2ban-client", "-s", SOCKET, "set", "attacks", "unbanip", address)


@contextmanager
def fail2ban(lab: Lab, action: str) -> Iterator[Fail2ban]:
    """Run fail2ban on the server with this action."""
    directory = "/etc/fail2ban"
    lab.srv.run("find", directory, "-name", "*.local", "-delete")
    lab.srv.run("sh", "-c", f"rm -f {directory}/jail.d/*; : > {directory}/jail.conf; : > {ATTACKS}")
    lab.srv.write(f"{directory}/fail2ban.conf", _FAIL2BAN)
    lab.srv.write(f"{directory}/jail.local", _JAIL % action)
    lab.srv.write(f"{directory}/filter.d/attacks.conf", _FILTER)
    with lab.srv.start("fail2ban-server", "-f", "-c", directory, "-s", SOCKET, "start") as process:
        process.wait_for(r"Jail 'attacks' started")
        yield Fail2ban(lab, process)
        assert process.stop() == 0, process.lines


_CASES = [
    (firewall, action)
    for firewall in FIREWALLS
    for action in _ACTIONS
    if firewall.name in {"accept", "nft-drop", "legacy-drop", "native-drop", "ufw", "firewalld"}
]


@pytest.mark.parametrize(
    ("firewall", "action"), _CASES, ids=[f"{firewall.name}-{action}" for firewall, action in _CASES]
)
def test_a_ban_holds_while_it_lasts(firewall: Firewall, action: str) -> None:
    needs("upnpc", "fail2ban-server", *firewall.programs)
    iptables = f"iptables-{firewall.iptables}"
    with (
        Lab(forward=firewall.forward, iptables=firewall.iptables) as lab,
        loaded(firewall, lab),
        answering(lab.c1, PORT, "tcp"),
        answering(lab.c1, PORT, "udp"),
        fail2ban(lab, _ACTIONS[action].format(iptables=iptables)) as bans,
    ):
        bans.ban(ATTACKER)
        before = rules(lab)
        with serving(lab, f"[firewall]\n{firewall.igd}\n"):
            upnpc(lab.c1, "-r", str(PORT), "tcp", str(PORT), "udp")
            _assert_banned(lab)
            bans.unban(ATTACKER)
            with call(lab.net, PUBLIC, PORT, "tcp", source=ATTACKER) as tcp, _udp(lab) as udp:
                assert put(udp).source == ATTACKER
                bans.ban(ATTACKER)
                _assert_banned(lab)
                assert swallows_more(lab.srv, tcp)
                assert swallows_more(lab.srv, udp)
                bans.unban(ATTACKER)
                _await_echo(tcp)
            assert ask(lab.net, PUBLIC, PORT, "udp", source=ATTACKER).source == ATTACKER
        bans.ban(ATTACKER)
        assert rules(lab) == before


def _await_echo(tcp: socket.socket) -> None:
    """Send a line and return when it comes back, after what was sent in vain and now is sent again."""
    tcp.sendall(b"again\n")
    received = b""
    while b"again\n" not in received:
        piece = tcp.recv(65536)
        assert piece, "closed"
        received += piece


def _udp(lab: Lab) -> socket.socket:
    return call(lab.net, PUBLIC, PORT, "udp", source=ATTACKER)


def _assert_banned(lab: Lab) -> None:
    """Assert that new flows of the attacker end at the server, and that others do not."""
    for protocol in PROTOCOLS:
        assert swallows(lab.srv, lab.net, PUBLIC, PORT, protocol, source=ATTACKER)
        assert ask(lab.net, PUBLIC, PORT, protocol).source == REMOTE
