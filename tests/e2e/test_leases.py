"""A lease ends everywhere at the same time; a renewed one goes on; and none is lost by a crash or a stop."""

import signal
import socket
import time

import pytest

from tests.e2e import control, stored
from tests.e2e.serving import (
    C1,
    C2,
    PUBLIC,
    REMOTE,
    assert_only_aged,
    flows,
    held,
    listed,
    mappings,
    ports,
    rules,
    serving,
    start,
    upnpc,
)
from tests.lab import PATIENCE, Answer, Host, Lab, Process, answering, ask, call, put, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

LONG = 600  # seconds of a lease that outlives the test


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft", "conntrack", "iptables-legacy-save")


def test_a_lease_of_two_seconds_is_gone_everywhere_afterwards(lab: Lab) -> None:
    with serving(lab), answering(lab.c1, 8043, "udp"):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "udp", "300")
        with call(lab.net, PUBLIC, 8043, "udp") as remote:
            assert put(remote) == Answer(REMOTE, "who am I?")
            assert flows(lab, 8043)
            assert held(lab) == [("UDP", 8043)]
            began = time.monotonic()
            upnpc(lab.c1, "-a", C1, "8043", "8043", "udp", "2")
            until(lambda: not flows(lab, 8043))
            assert time.monotonic() - began >= 2
            assert held(lab) == []
            assert control.ask(lab.c1, "DeletePortMapping", control.key(8043, "UDP")) == 714
            assert ports(lab) == []
            with pytest.raises(ConnectionRefusedError):
                put(remote)


def test_a_renewal_keeps_the_mapping_and_its_flows(lab: Lab) -> None:
    with serving(lab), answering(lab.c1, 8043, "udp"):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "udp", "300")
        with call(lab.net, PUBLIC, 8043, "udp") as remote:
            put(remote)
            lease = _renewed_in_time(lab.c1)
            upnpc(lab.c1, "-a", C1, "8044", "8044", "udp", str(lease))  # ends after 8043 would have ended
            until(lambda: held(lab) == [("UDP", 8043)])
            assert flows(lab, 8043)
            assert put(remote) == Answer(REMOTE, "who am I?")
        (mapping,) = mappings(lab)
        assert mapping["external_port"] == 8043
        assert mapping["lease"] > LONG - PATIENCE


def _renewed_in_time(client: Host) -> int:
    """Renew the lease of 8043 twice, the second time before the first lease has ended; return that one's seconds."""
    for lease in (2, 8, 32):
        began = time.monotonic()
        upnpc(client, "-a", C1, "8043", "8043", "udp", str(lease))
        upnpc(client, "-a", C1, "8043", "8043", "udp", str(LONG))
        if time.monotonic() - began < lease:
            return lease
    raise AssertionError("upnpc takes too long")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_crash_is_not_felt(lab: Lab, backend: str) -> None:
    config = f'[firewall]\nbackend = "{backend}"\n'
    with start(lab, config) as doomed, answering(lab.c1, 8043), answering(lab.c1, 8043, "udp"):
        upnpc(lab.c1, "-e", "my game", "-a", C1, "8043", "8043", "udp", "200")
        upnpc(lab.c1, "-e", "and its voice", "-a", C1, "8043", "8043", "tcp", "300")
        with call(lab.net, PUBLIC, 8043, "tcp") as remote:
            put(remote)
            before, before_in_kernel = listed(lab), rules(lab)
            _crash(doomed)
            assert _echoes(remote, b"while it is dead\n")
            assert ask(lab.net, PUBLIC, 8043, "udp").source == REMOTE
            with serving(lab, config):
                assert _echoes(remote, b"back again\n")
                assert ask(lab.net, PUBLIC, 8043, "tcp").source == REMOTE
                assert ask(lab.net, PUBLIC, 8043, "udp").source == REMOTE
                assert sorted(rules(lab).splitlines()) == sorted(before_in_kernel.splitlines())
                assert_only_aged(before, listed(lab))


def _crash(process: Process) -> None:
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _echoes(remote: socket.socket, sent: bytes) -> bool:
    """Return whether socat echoes this on a connection on which it has sent the source already."""
    remote.sendall(sent)
    return remote.recv(4096) == sent


def test_what_ended_during_a_crash_stays_ended(lab: Lab) -> None:
    before = rules(lab)
    with start(lab) as doomed, answering(lab.c1, 8043, "udp"), answering(lab.c2, 8044, "udp"):
        upnpc(lab.c2, "-a", C2, "8044", "8044", "udp", "300")
        upnpc(lab.c1, "-a", C1, "8043", "8043", "udp", "300")
        ask(lab.net, PUBLIC, 8043, "udp")
        ask(lab.net, PUBLIC, 8044, "udp")
        _crash(doomed)
        key = lab.c2.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
        lab.srv.run("wg", "set", "wg0", "peer", key, "remove")
        stored.change(lab, "UPDATE lease SET expires = 0 WHERE external_port = 8043")
        assert held(lab) == [("UDP", 8043), ("UDP", 8044)]
        with serving(lab):
            assert held(lab) == []
            assert ports(lab) == []
            assert flows(lab, 8043) == flows(lab, 8044) == []
    assert rules(lab) == before


def test_a_remote_that_went_on_sending_during_a_restart_is_heard_again(lab: Lab) -> None:
    """Its packets made a flow past the mapping while that was not there, and would follow it for ever."""
    with answering(lab.c1, 8043, "udp"), call(lab.net, PUBLIC, 8043, "udp") as remote:
        with serving(lab):
            upnpc(lab.c1, "-a", C1, "8043", "8043", "udp", "300")
            assert put(remote, "before").echo == "before"
        with pytest.raises(ConnectionRefusedError):
            put(remote, "in between")
        with serving(lab):
            assert put(remote, "after").echo == "after"


def test_mappings_come_back_after_a_stop(lab: Lab) -> None:
    before = rules(lab)
    with answering(lab.c1, 8043):
        with serving(lab):
            upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        assert rules(lab) == before
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 8043)
        with serving(lab):
            assert ports(lab) == [("TCP", 8043)]
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE
