"""What a mapping or a pinhole of c1 is for: who is on the internet reaches the program behind it."""

import pytest

from tests.e2e.serving import PUBLIC, REMOTE
from tests.lab import Answer, Lab, answering, ask, swallows
from tests.lab.talk import Protocol

C1_IPV6 = "2001:470:100::2"
REMOTE_IPV6 = "2001:470:60::2"  # net, as the server and its clients see it

WHO = "who am I?"


def assert_reached(lab: Lab, external_port: int, internal_port: int, protocol: Protocol = "tcp") -> None:
    """Assert that a program at c1's internal port is reached at the server's public address."""
    with answering(lab.c1, internal_port, protocol):
        assert ask(lab.net, PUBLIC, external_port, protocol) == Answer(REMOTE, WHO)


def assert_closed(lab: Lab, external_port: int) -> None:
    """Assert that nothing answers at this TCP port of the server's public address."""
    with pytest.raises(ConnectionRefusedError):
        ask(lab.net, PUBLIC, external_port)


def assert_reached_by_ipv6(lab: Lab, port: int, protocol: Protocol = "tcp") -> None:
    """Assert that a program at this port of c1's IPv6 address is reached."""
    with answering(lab.c1, port, protocol, ipv6=True):
        assert ask(lab.net, C1_IPV6, port, protocol) == Answer(REMOTE_IPV6, WHO)


def assert_dropped(lab: Lab, port: int, protocol: Protocol = "tcp") -> None:
    """Assert that the server's firewall drops what comes to this port of c1's IPv6 address."""
    assert swallows(lab.srv, lab.net, C1_IPV6, port, protocol)
