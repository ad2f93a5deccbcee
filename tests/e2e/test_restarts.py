"""A restart: mappings and flows stay in the kernel from one igd to the next, and go if there is no next one."""

import signal
from collections.abc import Iterator

import pytest

from tests.e2e import stored
from tests.e2e.live_flow import Through, live
from tests.e2e.pcp_client import C1_IPV6
from tests.e2e.serving import C1, IGD, PUBLIC, REMOTE, assert_only_aged, flows, igd, listed, ports, rules, start, upnpc
from tests.firewall.test_kernel_properties import HELD, Backend
from tests.lab import Answer, Lab, Process, answering, ask, call, put
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

TCP, UDP, PINHOLE = Through("tcp", 8043), Through("udp", 8044), Through("tcp", 8045, C1_IPV6, C1_IPV6)
ALL = (TCP, UDP, PINHOLE)
FREE = 8050
"""A mapped port without a flow."""

IN_KERNEL = "/run/igd/wg0/in-kernel"


@pytest.fixture(scope="module")
def shared(root: None) -> Iterator[Lab]:
    needs("upnpc", "nft", "conntrack", "iptables-legacy-save")
    with Lab(forward="drop", iptables="legacy") as lab:
        yield lab


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """A lab without leases, whose FORWARD drops; at the end it has the same rules, and no flow of a mapping."""
    before = rules(shared)
    yield shared
    assert rules(shared) == before
    assert_no_flows(shared)
    shared.srv.run("sh", "-c", "rm -r /var/lib/igd/* /etc/igd/*")


def config(backend: str, more: str = "") -> str:
    return f'{more}\n[firewall]\nbackend = "{backend}"\n'


def map_all(lab: Lab) -> None:
    """Map what ALL and FREE need."""
    for protocol, port in (("tcp", TCP.port), ("udp", UDP.port), ("tcp", FREE)):
        upnpc(lab.c1, "-a", C1, str(port), str(port), protocol, "604800")
    upnpc(lab.c1, "-A", "", "0", C1_IPV6, str(PINHOLE.port), "tcp", "3600")


def leave(process: Process) -> None:
    """End an igd as a restart does."""
    process.signal(signal.SIGUSR1)
    assert process.wait() == 0, process.lines


def in_any_order(lab: Lab) -> list[str]:
    """Return the server's rules: with the iptables backend, the order of mappings means nothing."""
    return sorted(rules(lab).splitlines())


def assert_reached(lab: Lab) -> None:
    with answering(lab.c1, FREE):
        assert ask(lab.net, PUBLIC, FREE) == Answer(REMOTE, "who am I?")


def assert_no_flows(lab: Lab) -> None:
    """Assert that there is neither a flow of a mapping, nor a record that something may be left."""
    assert [flow for through in ALL for flow in flows(lab, through.port)] == []
    assert lab.srv.run("test", "-e", IN_KERNEL, check=False).returncode == 1


def restart(lab: Lab, process: Process, config: str) -> Process:
    """Restart an igd with another configuration."""
    leave(process)
    return start(lab, config)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_flows_and_mappings_stay_and_go_with_the_next_stop(lab: Lab, backend: Backend) -> None:
    process = start(lab, config(backend))
    map_all(lab)
    with live(lab, ALL):
        found, installed = listed(lab), in_any_order(lab)
        leave(process)
        assert in_any_order(lab) == installed
        assert_reached(lab)
        process = start(lab)
        assert_only_aged(found, listed(lab))
        assert in_any_order(lab) == installed
        with lab.srv.entered():
            assert len(HELD[backend]()) == len(found.mappings)
        assert_reached(lab)
    assert "INFO igd.process.in_kernel: mappings and flows that the igd before left are taken over" in process.lines
    assert process.stop() == 0


def test_by_hand_without_systemd(lab: Lab) -> None:
    """`igd stop --keep && igd run --detach`, as docs/operating.md has it; `igd stop` still removes everything."""
    with start(lab, config("auto")):
        map_all(lab)
        with live(lab, ALL):
            kept = igd(lab, "stop", "wg0", "--keep")
            assert "mappings and flows stay until the next `igd run wg0`, or `igd stop wg0`" in kept.stdout
            lab.srv.run(*IGD, "run", "wg0", "--detach")
        igd(lab, "stop", "wg0", "--keep")
        assert_reached(lab)
        igd(lab, "stop", "wg0")


def test_flows_stay_with_another_configuration(lab: Lab) -> None:
    """As far as it allows them: a mapping that it does not resume ends with its flows."""
    address = "60.60.60.7"
    lab.srv.run("ip", "address", "add", f"{address}/24", "dev", "ens0")
    process = start(lab, config("nftables"))
    map_all(lab)
    with live(lab, [UDP, PINHOLE]):
        with live(lab, [TCP]):
            for changed in (config("iptables"), config("nftables") + "hairpin = false\n"):
                process = restart(lab, process, changed)
                assert_reached(lab)
            process = restart(lab, process, config("nftables", f'external_address = "{address}"'))
            with answering(lab.c1, FREE):
                assert ask(lab.net, address, FREE) == Answer(REMOTE, "who am I?")
                with pytest.raises(ConnectionRefusedError):
                    ask(lab.net, PUBLIC, FREE)
        with answering(lab.c1, TCP.port), call(lab.net, address, TCP.port) as remote:
            put(remote)
            allow = 'allow = ["8044-9000 10.100.0.0/16 8044-9000", "8044-9000 ::/0 8044-9000"]'
            process = restart(lab, process, config("iptables", allow))
            assert sorted(ports(lab)) == [("TCP", PINHOLE.port), ("TCP", FREE), ("UDP", UDP.port)]
            assert [flow for flow in flows(lab, TCP.port) if address in flow] == []
    assert process.stop() == 0
    lab.srv.run("ip", "address", "del", f"{address}/24", "dev", "ens0")


def test_another_mark_ends_the_flows_and_keeps_the_mappings(lab: Lab) -> None:
    """The new igd could not end them later. Nor could `igd stop`, if a killed one had the earlier mark."""
    with answering(lab.c1, TCP.port):
        process = start(lab, config("nftables"))
        map_all(lab)
        with call(lab.net, PUBLIC, TCP.port) as remote:
            put(remote)
            found = listed(lab)
            process = restart(lab, process, config("nftables") + "mark = 0x20000000\n")
            assert flows(lab, TCP.port) == []
            why = "firewall.mark was 0x10000000 and is 0x20000000"
            assert [line for line in process.lines if line.startswith("WARNING") and line.endswith(why)]
        assert_only_aged(found, listed(lab))
        with call(lab.net, PUBLIC, TCP.port) as remote:
            put(remote)
            lab.srv.write("/etc/igd/wg0.toml", config("nftables") + "mark = 0x40000000\n")
            process.signal(signal.SIGKILL)
            process.wait()
            igd(lab, "stop", "wg0")


NEWER = ("PRAGMA user_version = 99", "PRAGMA application_id = 99")
"""What makes the lease file one of a newer igd."""
REMOVED = "what the igd before left in the firewall was removed, and its flows were ended: "


def leave_a_flow(lab: Lab) -> None:
    """Stop an igd for a restart, with a flow."""
    process = start(lab, config("auto"))
    map_all(lab)
    with answering(lab.c1, TCP.port), call(lab.net, PUBLIC, TCP.port) as remote:
        put(remote)
    leave(process)
    assert len(flows(lab, TCP.port)) == 1


def test_a_start_that_fails_removes_what_the_one_before_left(lab: Lab) -> None:
    """A mistake in the configuration, and a lease file of a newer version, as after a downgrade."""
    before = rules(lab)
    leave_a_flow(lab)
    lab.srv.write("/etc/igd/wg0.toml", "bakend = 1\n")
    failed = igd(lab, "run", "wg0", check=False)
    assert (failed.returncode, f"{REMOVED}this one failed" in failed.stderr) == (2, True), failed
    assert rules(lab) == before
    assert_no_flows(lab)

    leave_a_flow(lab)
    for pragma in NEWER:
        stored.change(lab, pragma)
    failed = igd(lab, "run", "wg0", check=False)
    assert (failed.returncode, f"{REMOVED}this one failed" in failed.stderr) == (1, True), failed


def test_a_start_that_is_refused_removes_nothing(lab: Lab) -> None:
    """Another igd serves the interface."""
    with start(lab, config("auto")) as process:
        map_all(lab)
        lab.srv.write("/etc/igd/other.toml", "bakend = 1\n")
        assert igd(lab, "run", "wg0", check=False).returncode == 1
        assert igd(lab, "run", "wg0", "--config", "/etc/igd/other.toml", check=False).returncode == 2
        assert_reached(lab)
        assert process.stop() == 0


def test_without_the_interface_nothing_stays() -> None:
    with Lab() as lab:
        leave_a_flow(lab)
        lab.srv.run("ip", "link", "set", "wg0", "down")
        with lab.srv.start(*IGD, "run", "wg0") as waiting:
            waiting.wait_for("waiting for wg0 to be up")
            assert len(flows(lab, TCP.port)) == 1
            lab.srv.run("ip", "link", "del", "wg0")
            waiting.wait_for(f"{REMOVED}wg0 is gone")
            waiting.wait_for("waiting for wg0 to exist")
            assert_no_flows(lab)
            assert "igd" not in rules(lab)
