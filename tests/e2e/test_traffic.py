"""Packets to a mapped port reach the client's program with their true source, whatever firewall the server has."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.serving import PUBLIC, REMOTE, operators_rules, rules, serving, upnpc
from tests.lab import Answer, Host, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol
from tests.lab.wireguard import Forward, Iptables

pytestmark = requires_root

PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")


@pytest.mark.parametrize(("backend", "iptables"), [("nftables", "nft"), ("iptables", "nft"), ("iptables", "legacy")])
@pytest.mark.parametrize("forward", ["accept-lines", "drop"])
def test_traffic_arrives_and_rules_leave_no_trace(backend: str, iptables: Iptables, forward: Forward) -> None:
    needs("nft", "upnpc", "iptables-legacy-save")
    with Lab(forward=forward, iptables=iptables) as lab:
        before, before_of_operator = rules(lab), operators_rules(lab)
        with serving(lab, f'[firewall]\nbackend = "{backend}"\n'), _listening(lab.c1, 8043):
            _assert_closed(lab, 8043)
            upnpc(lab.c1, "-r", "8043", "tcp", "8043", "udp")
            _assert_open(lab, 8043)
            assert operators_rules(lab) == before_of_operator != rules(lab)
            upnpc(lab.c1, "-d", "8043", "tcp")
            upnpc(lab.c1, "-d", "8043", "udp")
            _assert_closed(lab, 8043)
        assert rules(lab) == before


def test_inside_and_outside_port_may_differ(lab: Lab) -> None:
    needs("nft", "upnpc")
    with serving(lab), _listening(lab.c1, 8080):
        upnpc(lab.c1, "-r", "8080", "9080", "tcp", "8080", "9080", "udp")
        _assert_open(lab, 9080)
        _assert_closed(lab, 8080)


def test_who_tried_too_early_gets_through_once_the_port_is_open(lab: Lab) -> None:
    needs("nft", "upnpc")
    with serving(lab), answering(lab.c1, 8043, "udp"):
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 8043, "udp", source_port=4000)
        upnpc(lab.c1, "-r", "8043", "udp")
        assert ask(lab.net, PUBLIC, 8043, "udp", source_port=4000).source == REMOTE


@contextmanager
def _listening(client: Host, port: int) -> Iterator[None]:
    with answering(client, port, "tcp"), answering(client, port, "udp"):
        yield


def _assert_open(lab: Lab, port: int) -> None:
    for protocol in PROTOCOLS:
        assert ask(lab.net, PUBLIC, port, protocol) == Answer(REMOTE, "who am I?")


def _assert_closed(lab: Lab, port: int) -> None:
    for protocol in PROTOCOLS:
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, port, protocol)
