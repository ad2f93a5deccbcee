"""Mapped traffic passes whatever firewall the server has, and its operator's own rules mean what they meant."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.firewalls import ALLOWED, FIREWALLS, FORGOTTEN, Firewall, loaded
from tests.e2e.serving import PUBLIC, REMOTE, operators_rules, rules, serving, upnpc
from tests.lab import Answer, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

QUICK = 0.7  # seconds until a packet that a firewall swallows counts as lost; one that passes takes milliseconds


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
    """Tell how it goes to whoever tries what the operator's rules are about."""
    tries = {
        "his DNAT": lambda: ask(lab.net, PUBLIC, ALLOWED, timeout=QUICK),
        "his DNAT that he let nobody through to": lambda: ask(lab.net, PUBLIC, FORGOTTEN, timeout=QUICK),
        "a client's TCP": lambda: ask(lab.c1, REMOTE, 9000, timeout=QUICK),
        "a client's UDP": lambda: ask(lab.c1, REMOTE, 9000, "udp", timeout=QUICK),
        "the server's port": lambda: ask(lab.net, PUBLIC, 7000, timeout=QUICK),
    }
    return {name: _outcome(attempt) for name, attempt in tries.items()}


def _outcome(attempt: Callable[[], Answer]) -> str:
    try:
        return f"answered, seen as {attempt().source}"
    except OSError as error:
        return type(error).__name__


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
        assert traffic["his DNAT"].startswith("answered")
        assert traffic["his DNAT that he let nobody through to"].startswith("answered") is not firewall.forgets
        with serving(lab, f'[firewall]\nbackend = "{backend}"\n{firewall.igd}\n'):
            upnpc(lab.c1, "-r", "8043", "tcp", "8043", "udp")
            for protocol in ("tcp", "udp"):
                assert ask(lab.net, PUBLIC, 8043, protocol) == Answer(REMOTE, "who am I?")
            assert _operators_traffic(lab) == traffic
            assert operators_rules(lab) == before_of_operator != rules(lab)
            upnpc(lab.c1, "-d", "8043", "tcp")
            with pytest.raises(OSError, match=r"refused|timed out|No route"):
                ask(lab.net, PUBLIC, 8043, timeout=QUICK)
        assert _operators_traffic(lab) == traffic
        assert rules(lab) == before
