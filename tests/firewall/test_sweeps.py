"""Flows of closed mappings end in a thread of its own: nobody's change waits for that, and nobody can delay it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint
from igd.core.request import Mapped, Unmapped
from igd.firewall import sweeps
from igd.firewall.backend import FirewallError
from igd.firewall.conntrack import Translation
from igd.firewall.sweeps import Sweeps
from tests.firewall.calling import caller, listener
from tests.firewall.test_conntrack import Made, make, there
from tests.firewall.test_kernel_properties import Backend, Running
from tests.firewall.three_hosts import EXTERNAL, ThreeHosts, joined, run
from tests.firewall.whole_gateway import CLOSE, INSIDE, UDP, ask, during, opening, parts, serving
from tests.gateway_harness import C1, C2
from tests.lab import PATIENCE, until


def translation(port: int, inside: IPv4Address = C1) -> Translation:
    return Translation(UDP, Endpoint(EXTERNAL, port), Endpoint(inside, INSIDE))


class Walks:
    """What is swept, walk by walk; a walk lasts until `go` is set, and fails while `failing`."""

    def __init__(self) -> None:
        self.done: list[set[Translation]] = []
        self.failing = False
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def end(self, translations: Collection[Translation]) -> None:
        """Record a walk."""
        self.begun.release()
        assert self.go.wait(PATIENCE)
        self.done.append(set(translations))
        if self.failing:
            raise FirewallError("no")


@pytest.fixture
def walks() -> Walks:
    return Walks()


@pytest.fixture
def swept(walks: Walks) -> Iterator[Sweeps]:
    with contextlib.closing(Sweeps(walks.end)) as made:
        yield made
        walks.go.set()


def test_all_that_wait_are_swept_in_one_walk(walks: Walks, swept: Sweeps) -> None:
    """One peer's 200 changes cost another's one walk."""
    swept.add([translation(1)])
    assert walks.begun.acquire(timeout=PATIENCE)
    for port in range(1000, 1200):
        swept.add([translation(port)])
    swept.add([translation(1, C2)])
    walks.go.set()
    swept.finish()
    assert walks.done == [{translation(1)}, {*map(translation, range(1000, 1200)), translation(1, C2)}]


def test_a_sweep_is_waited_for_until_it_is_done(walks: Walks, swept: Sweeps) -> None:
    assert swept.of([translation(1)]) is None
    swept.add([translation(1)])
    assert walks.begun.acquire(timeout=PATIENCE)
    swept.add([translation(2)])
    current, following = swept.of([translation(1)]), swept.of([translation(2)])
    assert current
    assert following
    assert swept.of([translation(1), translation(2)]) is following
    assert swept.of([translation(3)]) is None
    assert not current.done()
    walks.go.set()
    current.result(PATIENCE)
    following.result(PATIENCE)
    assert walks.done == [{translation(1)}, {translation(2)}]
    assert swept.of([translation(1), translation(2)]) is None


def test_a_flow_that_is_closed_again_during_a_walk_is_swept_again(walks: Walks, swept: Sweeps) -> None:
    """The walk may have passed it already."""
    for _time in range(2):
        swept.add([translation(1)])
        assert _time or walks.begun.acquire(timeout=PATIENCE)
    walks.go.set()
    swept.finish()
    assert walks.done == [{translation(1)}] * 2


def test_a_failed_sweep_is_logged_once_and_done_later(
    walks: Walks, swept: Sweeps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(sweeps, "RETRY_SECONDS", 0.01)
    walks.failing = True
    walks.go.set()
    swept.add([translation(1)])
    until(lambda: len(walks.done) > 2)
    swept.add([translation(2)])
    walks.failing = False
    until(lambda: swept.of([translation(1), translation(2)]) is None)
    assert walks.done[0] == {translation(1)}
    assert {translation(1), translation(2)} <= set().union(*walks.done[2:])
    text = "flows of closed mappings are not ended, retrying: no"
    assert [record.getMessage() for record in caplog.records] == [text, f"no longer: {text}"]


def test_changes_are_refused_while_sweeps_fail_and_too_many_flows_are_owed(
    walks: Walks, swept: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a kernel that ends no flows costs no memory."""
    monkeypatch.setattr(sweeps, "MAX_OWED", 10)
    monkeypatch.setattr(sweeps, "RETRY_SECONDS", 0.01)
    walks.failing = True
    walks.go.set()
    swept.add(list(map(translation, range(10))))
    swept.finish()
    swept.require_room()
    swept.add([translation(10)])
    until(lambda: len(walks.done[-1]) == 11)
    until(lambda: _is_refused(swept))
    walks.failing = False
    until(lambda: swept.of([translation(10)]) is None)
    swept.require_room()


def _is_refused(swept: Sweeps) -> bool:
    try:
        swept.require_room()
    except FirewallError as error:
        assert "11 earlier mappings" in str(error)  # noqa: PT017 - it comes between two walks
        return True
    return False


def test_a_crowd_whose_mappings_are_closed_at_once_keeps_nobody_from_changes(
    walks: Walks, swept: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "MAX_OWED", 10)
    swept.add([translation(1)])
    assert walks.begun.acquire(timeout=PATIENCE)
    swept.add(list(map(translation, range(1000))))
    swept.require_room()


def test_walks_take_half_of_the_time_at_most(walks: Walks, swept: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk begins as long after the last one as that one lasted."""
    clock = [100.0]
    pauses: list[float] = []
    monkeypatch.setattr("igd.firewall.sweeps.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(swept._closing, "wait", pauses.append)
    for _time in range(2):
        swept.add([translation(1)])
        if not _time:
            assert walks.begun.acquire(timeout=PATIENCE)
            clock[0] += 0.3
            walks.go.set()
        swept.finish()
    assert pauses == [0.0, pytest.approx(0.3)]


# With the real kernel, and packets


@contextmanager
def held(gateway: Running) -> Iterator[Callable[[], None]]:
    """Let no sweep begin before the returned function is called, as if others' connections filled the kernel."""
    swept, go = parts(gateway)._sweeps, threading.Event()
    end = swept._end

    def waiting(translations: Collection[Translation]) -> None:
        assert go.wait(PATIENCE)
        end(translations)

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(swept, "_end", waiting)
        try:
            yield go.set
        finally:
            go.set()


both_backends = pytest.mark.parametrize("backend", ["nftables", "iptables"])


@pytest.fixture
def gateway(hosts: ThreeHosts, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Return a gateway between a remote and c1 and c2, who share a host."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    with joined(hosts.peer):
        run("ip", "address", "add", f"{C2}/24", "dev", "eth0")
    return Running(backend, tmp_path / "leases.sqlite")


@pytest.mark.root
@both_backends
async def test_a_closed_port_is_another_peers_at_once_and_no_old_flow_is(hosts: ThreeHosts, gateway: Running) -> None:
    """Old flows go on to their old peer until they are swept; they never reach the new one."""
    with contextlib.ExitStack() as stack:
        c1, c2 = (stack.enter_context(listener(hosts.peer, "udp", INSIDE, str(address))) for address in (C1, C2))
        old, new = (stack.enter_context(caller(hosts.remote, "udp", 1024)) for _remote in range(2))
        async with serving(gateway):
            old.send(b"before")
            assert c1.recv(64) == b"before"
            with held(gateway) as release:
                assert isinstance(await ask(gateway, CLOSE), Unmapped)
                assert isinstance(await ask(gateway, opening(1024, C2)), Mapped)
                new.send(b"from a new remote")
                assert c2.recv(64) == b"from a new remote"
                old.send(b"from the old one")
                assert c1.recv(64) == b"from the old one"
                release()
                until(lambda: translation(1024) not in {flow for flow, _mark in there()})
                old.send(b"again")
                assert c2.recv(64) == b"again"
                new.send(b"as before")
                assert c2.recv(64) == b"as before"


@pytest.mark.root
@both_backends
async def test_who_opens_his_port_again_waits_for_the_sweep_and_nobody_else_does(
    hosts: ThreeHosts, gateway: Running
) -> None:
    """So that no new flow is taken for an old one."""
    with contextlib.ExitStack() as stack:
        c1 = stack.enter_context(listener(hosts.peer, "udp", INSIDE, str(C1)))
        remote = stack.enter_context(caller(hosts.remote, "udp", 1024))
        async with serving(gateway):
            remote.send(b"before")
            assert c1.recv(64) == b"before"
            with held(gateway) as release:
                assert isinstance(await ask(gateway, CLOSE), Unmapped)
                reopening = asyncio.create_task(ask(gateway, opening(1024)))
                for port in range(3000, 3003):  # each is a change with a sweep of its own
                    assert isinstance(await ask(gateway, opening(port, C2)), Mapped)
                assert not reopening.done()
                assert translation(1024) in {flow for flow, _mark in there()}
                release()
                assert isinstance(await reopening, Mapped)
                assert translation(1024) not in {flow for flow, _mark in there()}
            remote.send(b"after")
            assert c1.recv(64) == b"after"
            await asyncio.to_thread(parts(gateway)._sweeps.finish)
            assert translation(1024) in {flow for flow, _mark in there()}


@pytest.mark.root
@both_backends
async def test_a_renewal_waits_for_no_sweep(gateway: Running) -> None:
    async with serving(gateway):
        with held(gateway):
            assert isinstance(await ask(gateway, opening(3000)), Mapped)
            assert isinstance(await ask(gateway, opening(3000, lifetime=4000)), Mapped)


@pytest.mark.root
@both_backends
async def test_a_remote_that_was_already_sending_reaches_a_new_mapping_soon(
    hosts: ThreeHosts, gateway: Running
) -> None:
    with contextlib.ExitStack() as stack:
        c1 = stack.enter_context(listener(hosts.peer, "udp", INSIDE, str(C1)))
        remote = stack.enter_context(caller(hosts.remote, "udp", 3000))
        async with serving(gateway):
            remote.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                remote.recv(64)
            assert isinstance(await ask(gateway, opening(3000)), Mapped)
            outside = Endpoint(EXTERNAL, 3000)
            until(lambda: Translation(UDP, outside, outside) not in {flow for flow, _mark in there()})
            remote.send(b"hello")
            assert c1.recv(64) == b"hello"


@pytest.mark.root
@both_backends
async def test_what_is_stopped_in_the_midst_of_sweeps_leaves_no_flow(gateway: Running) -> None:
    """Not even one whose mark the operator has overwritten, which the last flush does not find."""
    async with serving(gateway):
        make([Made(1024, Endpoint(C1, INSIDE)), Made(1024, Endpoint(C1, INSIDE), mark=0)])
        with held(gateway) as release:
            assert isinstance(await ask(gateway, CLOSE), Unmapped)
            asyncio.get_running_loop().call_soon(release)
            await gateway.harness.ledger.in_worker(gateway.backend.remove_all)
    assert there() == set()


@contextmanager
def no_conntrack(gateway: Running) -> Iterator[None]:
    """Let the kernel refuse every sweep."""
    with pytest.MonkeyPatch.context() as patching:

        def refuse(_translations: Collection[Translation]) -> None:
            raise FirewallError("no")

        patching.setattr(parts(gateway)._sweeps, "_end", refuse)
        yield


@pytest.mark.root
@both_backends
async def test_flows_that_the_kernel_does_not_end_are_ended_when_it_does(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "RETRY_SECONDS", 0.01)
    async with serving(gateway):
        make([Made(1024, Endpoint(C1, INSIDE))])
        async with during(no_conntrack, gateway):
            assert isinstance(await ask(gateway, CLOSE), Unmapped)
            gateway.check()
            parts(gateway)._sweeps.finish()
            assert len(there()) == 1
        until(lambda: there() == set())
        gateway.check()
