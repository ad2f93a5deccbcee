"""Whatever fails in the midst of a change: who asked is told so, and table, kernel and store are equal again.

At once, or when the timer has tried again; and then the next one is served.
"""

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping
from igd.core.request import Mapped, Refusal, Unmapped
from igd.firewall.nft.nftables import Nftables
from igd.firewall.operator_rules import xtables
from igd.ledger import RETRY_SECONDS
from tests.firewall.capabilities import without_net_admin
from tests.firewall.test_kernel_properties import HELD, SITE, Backend, Running, expected, running
from tests.firewall.three_hosts import EXTERNAL, run
from tests.firewall.whole_gateway import (
    CLOSE,
    CLOSE_6,
    INSIDE,
    OPEN,
    OPEN_6,
    REFUSED,
    RENEW,
    UDP,
    Changing,
    Trouble,
    ask,
    during,
    parts,
    serving,
)
from tests.gateway_harness import C2

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return the test an iptables lock of its own."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


# What lasts for a while, whatever is tried


def no_right_to_it(_gateway: Running) -> AbstractContextManager[None]:
    """EPERM."""
    return without_net_admin()


@contextmanager
def somebody_elses_table(_gateway: Running) -> Iterator[None]:
    """EPERM too, and he leaves it behind with what he had in it."""
    run("nft", "delete", "table", "inet", "igd_wg0")
    mapping = PortMapping(UDP, 1024, Endpoint(C2, INSIDE), "his")
    with contextlib.closing(Nftables(replace(SITE, own_table=True))) as his:
        his.replace_all([EXTERNAL], [Entry(mapping, Lease(500.0))], 0.0)
        yield


@contextmanager
def no_more_descriptors(_gateway: Running) -> Iterator[None]:
    """EMFILE for whatever is opened: clients have taken them all for a moment."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def a_lost_table_and_no_more_descriptors(gateway: Running) -> Iterator[None]:
    """ENOENT, and what would repair it fails as well."""
    run("nft", "delete", "table", "inet", "igd_wg0")
    with no_more_descriptors(gateway):
        yield


@contextmanager
def a_held_lock(gateway: Running) -> Iterator[None]:
    """As by a program of iptables that hangs."""
    with Path(os.environ["XTABLES_LOCKFILE"]).open("w") as lock, pytest.MonkeyPatch.context() as patching:
        patching.setattr(parts(gateway).mappings, "_lock_timeout", 0.05)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cases(backend: Backend, troubles: list[Trouble], requests: list[Changing]) -> Iterator[object]:
    for trouble in troubles:
        for request in requests:
            yield pytest.param(
                backend, trouble, request, id=f"{backend}-{trouble.__name__}-{request}".partition(" (")[0]
            )


# A renewal is nothing to iptables.
TROUBLES = [
    *_cases("nftables", [no_right_to_it, somebody_elses_table], [OPEN, RENEW, CLOSE, OPEN_6, CLOSE_6]),
    *_cases("nftables", [a_lost_table_and_no_more_descriptors], [OPEN, RENEW]),
    *_cases("iptables", [no_right_to_it, no_more_descriptors, a_held_lock], [OPEN, CLOSE, OPEN_6, CLOSE_6]),
]


@pytest.mark.parametrize(("backend", "trouble", "request_"), TROUBLES)
async def test_a_failure_refuses_and_all_are_equal_when_it_is_over(
    backend: Backend, trouble: Trouble, request_: Changing
) -> None:
    with running(backend) as gateway:
        async with serving(gateway):
            harness = gateway.harness
            before = harness.table
            async with during(trouble, gateway):
                for _time in ("the first", "when all is known to be broken"):
                    assert await ask(gateway, request_) == REFUSED
                    assert harness.table == before
                    assert {entry.mapping.key: entry for entry in gateway.store.load()} == before
                    assert harness.ledger.next_wake() == harness.clock.now + RETRY_SECONDS
            await harness.maintenance.wake()
            gateway.check()
            assert not isinstance(await ask(gateway, request_), Refusal)
            gateway.check()
            assert harness.table != before


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
async def test_what_runs_out_while_the_kernel_refuses_ends_when_it_does_no_more(backend: Backend) -> None:
    with running(backend) as gateway:
        async with serving(gateway):
            harness = gateway.harness
            async with during(no_right_to_it, gateway):
                harness.clock.now = gateway.clock.now = harness.clock.now + 301
                await harness.maintenance.wake()
                assert len(harness.table) == 2
                assert harness.ledger.next_wake() == harness.clock.now + RETRY_SECONDS
                gateway.check()
            await harness.maintenance.wake()
            assert harness.table == {}
            gateway.check()


# A program of iptables' that is killed

PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"
KILLED = """#!/bin/sh
head -n 2 | /usr/sbin/iptables-nft-restore "$@" 2> /dev/null
kill -9 $$
"""


async def test_a_killed_program_refuses_until_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way through FORWARD is a part of what has to be there before anybody hears yes."""
    with running("nftables") as gateway:
        async with serving(gateway):
            harness = gateway.harness
            before = harness.table
            program = tmp_path / "iptables-nft-restore"
            program.write_text(KILLED)
            program.chmod(0o755)
            monkeypatch.setattr(xtables, "_PATH", f"{tmp_path}:{PROGRAMS}")
            run("iptables-nft", "-P", "FORWARD", "DROP")
            for request in (OPEN, RENEW, CLOSE):
                await harness.ledger.repair()  # as whoever watches does
                assert await ask(gateway, request) == REFUSED
                assert harness.table == before
                gateway.check()
            assert "igd" not in run("iptables-nft-save", "-t", "filter")
            monkeypatch.setattr(xtables, "_PATH", PROGRAMS)
            await harness.maintenance.wake()
            assert run("iptables-nft-save", "-t", "filter").count("-A FORWARD ") == 1
            assert isinstance(await ask(gateway, CLOSE), Unmapped)
            gateway.check()


# What somebody else took away just before. What fails is repaired at once, and the whole table with it; what does not
# fail is true of what was asked, and the rest is for whoever watches.

NFT_TABLE = "nft delete table inet igd_wg0"
NFT_MAP = "nft flush chain inet igd_wg0 prerouting; nft delete map inet igd_wg0 mappings"
NFT_ELEMENT = "nft delete element inet igd_wg0 mappings { udp . 1024 }"
CHAIN, CHAIN_6 = (
    f"{program} -t nat -F; {program} -t nat -X igd_wg0" for program in ("iptables-legacy", "ip6tables-legacy")
)
RULE, RULE_6 = ("iptables-legacy -t nat -D igd_wg0 2", "ip6tables-legacy -t nat -D igd_wg0 1")

TAKEN_AWAY: list[tuple[Backend, str, Changing, bool]] = [
    ("nftables", NFT_TABLE, OPEN, False),
    ("nftables", NFT_TABLE, RENEW, False),
    ("nftables", NFT_TABLE, CLOSE, False),  # the address that it led to is to be guarded for a while longer
    ("nftables", NFT_MAP, OPEN, False),
    ("nftables", NFT_MAP, RENEW, False),
    ("nftables", NFT_MAP, CLOSE, True),
    ("nftables", NFT_ELEMENT, OPEN, True),
    ("nftables", NFT_ELEMENT, RENEW, True),
    ("nftables", NFT_ELEMENT, CLOSE, True),
    ("iptables", CHAIN, OPEN, False),
    ("iptables", CHAIN, CLOSE, False),
    ("iptables", RULE, OPEN, True),
    ("iptables", RULE, CLOSE, False),
    ("iptables", CHAIN_6, OPEN_6, False),
    ("iptables", CHAIN_6, CLOSE_6, False),
    ("iptables", RULE_6, OPEN_6, True),
    ("iptables", RULE_6, CLOSE_6, False),
]


@pytest.mark.parametrize(("backend", "commands", "request_", "granted"), TAKEN_AWAY)
async def test_what_somebody_took_away_is_there_again(
    backend: Backend,
    commands: str,
    request_: Changing,
    granted: bool,
) -> None:
    with running(backend) as gateway:
        async with serving(gateway):
            before = gateway.harness.table
            for command in commands.split("; "):
                run(*command.split())
            reply = await ask(gateway, request_)
            assert (reply != REFUSED) is granted
            if granted:
                assert not isinstance(reply, Mapped) or expected(reply.mapping) in HELD[backend]()
                await gateway.harness.ledger.repair()  # as whoever watches does
            else:
                assert gateway.harness.table == before
                gateway.check()
                assert not isinstance(await ask(gateway, request_), Refusal)
            gateway.check()
            assert gateway.harness.table != before
