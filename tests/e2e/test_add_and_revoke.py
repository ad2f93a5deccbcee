"""`igd add` and `igd revoke`: the operator opens and closes ports for a peer, and its clients hear of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from igd.commands.command import FAILED
from igd.operator import admin_client, admin_paths
from tests.e2e import control
from tests.e2e.pcp_client import granted, listening, map_port
from tests.e2e.serving import C1, C2, PUBLIC, REMOTE, held, igd, mappings, ports, serving, upnpc
from tests.lab import Lab, Process, answering, ask
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import call, put
from tests.wire.pcp.client_codec import Response

pytestmark = requires_root

C1_IPV6 = "2001:470:100::2"


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    needs("upnpc", "nft", "conntrack")
    with Lab() as lab, answering(lab.c1, 8043):
        yield lab


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Process]:
    key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
    static = f'[peers.laptop]\npublic_key = "{key}"\nstatic = ["tcp 80 {C1} 8099"]\nmax_mappings = 5\n'
    with serving(lab, 'rules = ["deny 7000 0.0.0.0/0 0-65535", "allow 1-65535 0.0.0.0/0 0-65535", '
                 '"allow 1-65535 ::/0 0-65535"]\n' + static) as process:  # fmt: skip
        yield process


@pytest.fixture
def served(lab: Lab, running: Process) -> Iterator[Process]:
    """An igd that has a static mapping of the laptop, and no other mapping."""
    yield running
    admin = Path(f"/proc/{lab.srv.pid}/root/run/igd/wg0")
    nothing = {"protocol": None, "ports": None, "to": None, "peer": None}
    admin_client.post(admin, admin_paths.REVOKE, {**nothing, "ports": "1-65535"})
    with contextlib.suppress(admin_paths.RefusedError):  # there is none
        admin_client.post(admin, admin_paths.REVOKE, {**nothing, "to": C1_IPV6})
    assert [each["external_port"] for each in admin_client.get(admin, admin_paths.MAPPINGS)] == [80]


def refused(result: "CompletedProcess[str]") -> str:
    assert (result.returncode, result.stdout) == (FAILED, "")
    assert "Traceback" not in result.stderr
    return result.stderr


def test_what_the_operator_adds_is_a_mapping_like_any_other(lab: Lab, served: Process) -> None:
    added = igd(lab, "add", "wg0", "tcp", "9000", C1, "8043", "--seconds", "600", "--description", "a web server")
    assert added.stdout == f"added: TCP 9000 -> {C1}:8043 (laptop) for 600 s\n"
    served.wait_for(rf"the operator for {C1} \(laptop\) requests map TCP 9000 .*: GRANTED")
    assert ask(lab.net, PUBLIC, 9000).source == REMOTE
    (mapping,) = (each for each in mappings(lab) if each["external_port"] == 9000)
    assert (mapping["name"], mapping["description"]) == ("laptop", "a web server")
    assert "9000" in upnpc(lab.c1, "-l")
    chosen = igd(lab, "add", "wg0", "tcp", "any", C1, "8060").stdout
    assert chosen.startswith("added: TCP ")
    upnpc(lab.c1, "-d", "9000", "tcp")
    assert len(ports(lab)) == 2


def test_a_pinhole_is_added_and_revoked(lab: Lab, served: Process) -> None:
    assert igd(lab, "add", "wg0", "tcp", "8050", C1_IPV6).stdout.startswith(
        f"added: TCP [{C1_IPV6}]:8050 (laptop) for "
    )
    refused(igd(lab, "revoke", "wg0", "tcp", "8050", check=False))  # which may be the port of many pinholes
    assert (
        igd(lab, "revoke", "wg0", "tcp", "8050", "--to", C1_IPV6).stdout == f"revoked: TCP [{C1_IPV6}]:8050 (laptop)\n"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (f"tcp 7000 {C1}", "FORBIDDEN: the operator's rules"),
        (f"tcp 80 {C2}", "CONFLICT: the external port is taken"),
        ("tcp 9000 10.100.0.77", "no peer has 10.100.0.77 in its AllowedIPs"),
        ("tcp 9000 10.100.0.1", "no peer has 10.100.0.1 in its AllowedIPs"),
        ("tcp 9000 127.0.0.1", "no peer has 127.0.0.1"),
    ],
)
def test_the_rules_hold_for_the_operator_too(lab: Lab, served: Process, words: str, reason: str) -> None:
    before = held(lab)
    assert reason in refused(igd(lab, "add", "wg0", *words.split(), check=False))
    assert held(lab) == before


def test_revoking_ends_the_connections_and_the_port_is_closed(lab: Lab, served: Process) -> None:
    control.add(lab.c1, {"ExternalPort": 8043, "InternalPort": 8043})
    control.add(lab.c2, {"ExternalPort": 8044, "InternalPort": 8044, "InternalClient": C2})
    with call(lab.net, PUBLIC, 8043) as connection:
        put(connection)
        assert igd(lab, "revoke", "wg0", "tcp", "8043").stdout == f"revoked: TCP 8043 -> {C1}:8043 (laptop)\n"
        connection.sendall(b"still there?\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    with pytest.raises(ConnectionRefusedError):
        ask(lab.net, PUBLIC, 8043)
    assert ports(lab) == [("TCP", 80), ("TCP", 8044)]
    assert "there is no such mapping" in refused(igd(lab, "revoke", "wg0", "tcp", "8043", check=False))
    assert control.add(lab.c1, {"ExternalPort": 8043, "InternalPort": 8043}) == 200, "it may ask again"


def test_all_of_a_peer_and_what_is_static_stays_with_the_way_to_close_it(lab: Lab, served: Process) -> None:
    for port in (8043, 8045):
        control.add(lab.c1, {"ExternalPort": port, "InternalPort": port})
    igd(lab, "add", "wg0", "tcp", "8050", C1_IPV6)
    control.add(lab.c2, {"ExternalPort": 8044, "InternalPort": 8044, "InternalClient": C2})
    result = igd(lab, "revoke", "wg0", "--peer", "laptop", check=False)
    assert result.returncode == FAILED
    assert len(result.stdout.splitlines()) == 3
    remedy = "the configuration has it: delete its `static` line, and then `igd reload`"
    assert result.stderr == f"igd: TCP 80 -> {C1}:8099 (laptop): {remedy}\n"
    assert ports(lab) == [("TCP", 80), ("TCP", 8044)]


def test_a_pcp_client_hears_that_its_mapping_was_revoked(lab: Lab, served: Process) -> None:
    with listening(lab.c1) as listener:
        mapping = granted(map_port(lab.c1, 8060))
        igd(lab, "revoke", "wg0", "tcp", str(mapping.external_port))
        closed = listener.receive(
            lambda message: isinstance(message, Response) and message.payload == mapping and message.lifetime == 0
        )
        assert isinstance(closed, Response)
        again = granted(map_port(lab.c1, 8060))
        assert again.external_port == mapping.external_port, "the port is held for its peer"
