"""Mapped traffic passes whatever firewall the server has, and its operator's own rules keep their effect."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.firewalls import ALLOWED, FIREWALLS, FORGOTTEN, Firewall, loaded
from tests.e2e.serving import PUBLIC, REMOTE, operators_rules, rules, serving, start, upnpc
from tests.lab import Answer, Host, Lab, answering, ask, swallows, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol

pytestmark = requires_root

PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")


@contextmanager
def _everybody_listens(lab: Lab) -> Iterator[None]:
    with (
        answering(lab.c1, 8043, "tcp"),
        answering(lab.c1, 8043, "udp"),
        answering(lab.c2, ALLOWED),
        answering(lab.c2, FORGOTTEN),
        answering(lab.net, 9000, "tcp"),
        answering(lab.net, 9000, "udp"),
    ):
        yield


def _operators_traffic(lab: Lab) -> dict[str, str]:
    """Return what becomes of the traffic that the operator's rules are about."""
    return {
        "DNAT": _outcome(lab, lab.net, PUBLIC, ALLOWED),
        "DNAT that FORWARD does not accept": _outcome(lab, lab.net, PUBLIC, FORGOTTEN),
        "a client's TCP": _outcome(lab, lab.c1, REMOTE, 9000),
        "a client's UDP": _outcome(lab, lab.c1, REMOTE, 9000, "udp"),
        "the server's port": _outcome(lab, lab.net, PUBLIC, 7000),
        "a port that is not mapped": _outcome(lab, lab.net, PUBLIC, 8043),
    }


def _outcome(lab: Lab, caller: Host, address: str, port: int, protocol: Protocol = "tcp") -> str:
    if swallows(lab.srv, caller, address, port, protocol):
        return "swallowed"
    try:
        return f"answered, seen as {ask(caller, address, port, protocol).source}"
    except OSError as error:
        return f"rejected: {error.strerror}"


OTHER = "60.60.60.9"
"""Another host on the internet: a second address of net."""


def _is_banned(lab: Lab) -> bool:
    return all(swallows(lab.srv, lab.net, PUBLIC, 8043, protocol) for protocol in PROTOCOLS)


def _others_come_in(lab: Lab) -> bool:
    answers = [ask(lab.net, PUBLIC, 8043, protocol, source=OTHER).source for protocol in PROTOCOLS]
    return answers == [OTHER, OTHER]


@contextmanager
def _ban(lab: Lab, add: str, remove: str) -> Iterator[None]:
    lab.srv.run("sh", "-c", add)
    yield
    lab.srv.run("sh", "-c", remove)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("firewall", FIREWALLS, ids=[firewall.name for firewall in FIREWALLS])
def test_a_ban_holds(firewall: Firewall, backend: str) -> None:
    """A ban that stood before igd's start, and others that come and go while it runs, is killed, and runs again."""
    needs("upnpc", "iptables-legacy-save", *firewall.programs)
    config = f'[firewall]\nbackend = "{backend}"\n{firewall.igd}\n'
    with (
        Lab(forward=firewall.forward, iptables=firewall.iptables) as lab,
        loaded(firewall, lab),
        _everybody_listens(lab),
    ):
        lab.net.run("ip", "address", "add", f"{OTHER}/24", "dev", "srv")
        with _ban(lab, *firewall.bans[0]):
            before = rules(lab)
            with start(lab, config) as doomed:
                upnpc(lab.c1, "-r", "8043", "tcp", "8043", "udp")
                assert _others_come_in(lab)
                assert _is_banned(lab)
                doomed.signal(signal.SIGKILL)
                doomed.wait()
            # The mapping is still in the kernel.
            assert _is_banned(lab)
            with serving(lab, config):
                assert _others_come_in(lab)
                assert _is_banned(lab)
            assert rules(lab) == before
        with serving(lab, config):
            assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
            for add, remove in firewall.bans:
                with _ban(lab, add, remove):
                    until(lambda: _is_banned(lab))
                    assert _others_come_in(lab)
                until(lambda: not any(swallows(lab.srv, lab.net, PUBLIC, 8043, each) for each in PROTOCOLS))


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("firewall", FIREWALLS, ids=[firewall.name for firewall in FIREWALLS])
def test_the_matrix(firewall: Firewall, backend: str) -> None:
    needs("upnpc", "iptables-legacy-save", *firewall.programs)
    with (
        Lab(forward=firewall.forward, iptables=firewall.iptables) as lab,
        loaded(firewall, lab),
        _everybody_listens(lab),
    ):
        before, before_of_operator, traffic = rules(lab), operators_rules(lab), _operators_traffic(lab)
        assert traffic["DNAT"].startswith("answered")
        assert traffic["DNAT that FORWARD does not accept"].startswith("answered") is not firewall.forgets
        assert not traffic["a port that is not mapped"].startswith("answered")
        with serving(lab, f'[firewall]\nbackend = "{backend}"\n{firewall.igd}\n'):
            upnpc(lab.c1, "-r", "8043", "tcp", "8043", "udp")
            for protocol in PROTOCOLS:
                assert ask(lab.net, PUBLIC, 8043, protocol) == Answer(REMOTE, "who am I?")
            mapped = {"a port that is not mapped": f"answered, seen as {REMOTE}"}
            assert _operators_traffic(lab) == {**traffic, **mapped}
            assert operators_rules(lab) == before_of_operator != rules(lab)
            upnpc(lab.c1, "-d", "8043", "tcp")
            assert _operators_traffic(lab) == traffic
        assert _operators_traffic(lab) == traffic
        assert rules(lab) == before
