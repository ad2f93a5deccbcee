"""What peers cause in the log is bounded for each of them, in one line each, and the rest is counted."""

import asyncio
import io
import logging
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from igd import log_lines
from igd.core.mapping import Endpoint, PortMapping, Remote, TransportProtocol
from igd.core.policies import Policies
from igd.core.request import MapPort, UnmapPorts
from igd.firewall.backend import FirewallError
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.log_lines import LONGEST, LineFilter, cause, of_peer
from igd.process import background
from tests.gateway_harness import C1, C2, Clock, GatewayHarness, entry, map_port, peer

PER_SECOND = 20
log = logging.getLogger("igd.test")
library = logging.getLogger("library")


KEYS = [f"{number:08}{'k' * 35}=" for number in range(3)]


class Log:
    """The log of a daemon, and its clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.filter = LineFilter(PER_SECOND, Policies(names={KEYS[2]: "laptop"}).label, self.clock)
        self.handler.addFilter(self.filter)

    def lines(self) -> list[str]:
        """Return the lines since the last call."""
        text = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return text.splitlines()


@pytest.fixture
def logged() -> Iterator[Log]:
    made = Log()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(made.handler)
    token = cause.set(None)
    yield made
    cause.reset(token)
    root.removeHandler(made.handler)
    root.setLevel(level)


def test_each_peer_has_lines_of_its_own_and_hears_what_was_left_out(logged: Log) -> None:
    for key, tried in ((KEYS[0], 500), (KEYS[1], 20)):
        cause.set(key)
        for number in range(tried):
            log.info("%s asks %s", key[:8], number)
    assert len(logged.lines()) == 40
    logged.filter.report()
    text = "WARNING igd.log_lines: left out 480 log lines of peer 00000000: there were more than"
    assert logged.lines() == [f"{text} log_lines_per_second = 20"]
    logged.filter.report()
    assert logged.lines() == []


def test_what_was_left_out_names_peers_as_other_lines_do(logged: Log) -> None:
    for key in (KEYS[2], log_lines.UNKNOWN_SOURCES):
        cause.set(key)
        for _line in range(100):
            log.info("asks")
    logged.lines()
    logged.filter.report()
    text = "WARNING igd.log_lines: left out 80 log lines of"
    assert [line.partition(":  ")[0].rpartition(":")[0] for line in logged.lines()] == [
        f"{text} peer laptop",
        f"{text} unknown sources",
    ]


def test_another_limit_and_other_names_count_from_their_change_on(
    logged: Log,
) -> None:
    cause.set(KEYS[0])
    for _line in range(100):
        log.info("asks")
    logged.lines()
    log_lines.change_limit(2, Policies(names={KEYS[0]: "phone"}).label)
    assert len(logged.lines()) == 1, "what was left out before is reported before"
    for _line in range(100):
        log.info("asks")
    assert len(logged.lines()) == 2
    logged.filter.report()
    assert logged.lines()[0].endswith("of peer phone: there were more than log_lines_per_second = 2")


def test_a_line_may_name_its_peer(logged: Log) -> None:
    """The mappings of one are closed while another's request is decided, or in a thread without any."""
    cause.set(KEYS[0])
    for number in range(100):
        log.info("closed %s", number, extra=of_peer(KEYS[1]))
    assert len(logged.lines()) == 40
    log.info("mine")
    assert logged.lines() == ["INFO igd.test: mine"]


def test_lines_of_no_peer_are_counted_by_the_statement_that_logs_them(logged: Log) -> None:
    """Whatever a peer finds to repeat."""
    for number in range(100):
        log.warning("leases not saved, retrying: %s", number)
        log.error("another: %s", number)
    assert len(logged.lines()) == 40
    logged.filter.report()
    assert [line.partition(" log lines of ")[0] for line in logged.lines()] == [
        "WARNING igd.log_lines: left out 80"
    ] * 2


def test_no_warning_about_a_lasting_problem_is_left_out(logged: Log) -> None:
    """It comes once: many at the start, or one in the task of a peer whose lines are used up."""
    warnings = RecurringWarnings(log)
    begun = [f"peers.{number}: no peer has this public_key {'x' * LONGEST}" for number in range(100)]
    cause.set(KEYS[0])
    for _line in range(100):
        log.info("asks")
    logged.lines()
    warnings.log(begun)
    assert logged.lines() == [f"WARNING igd.test: {warning}" for warning in begun]
    warnings.log([])
    assert len(logged.lines()) == 100


def test_a_librarys_line_is_not_the_peers_in_whose_task_it_comes(logged: Log) -> None:
    cause.set(KEYS[0])
    for _line in range(100):
        library.warning("socket.send() raised exception.")
    assert len(logged.lines()) == 20
    log.info("mine")
    assert logged.lines() == ["INFO igd.test: mine"]


def _raise(text: str) -> None:
    raise ValueError(text)


def test_a_traceback_counts_as_the_lines_of_a_second_and_imitates_none(logged: Log) -> None:
    for _line in range(100):
        try:
            _raise("x\nERROR igd: forged\x1b[2J\u2028ERROR igd: forged")
        except ValueError:
            library.exception("Task exception was never retrieved")
    first, *rest = logged.lines()
    assert first == "ERROR library: Task exception was never retrieved"
    assert all(line.startswith("    ") for line in rest)
    assert rest[-2:] == ["    ValueError: x", "    ERROR igd: forged\\x1b[2J\\u2028ERROR igd: forged"]
    logged.clock.now += 1
    library.error("again", exc_info=ValueError("x"))
    assert logged.lines()[0] == "ERROR library: again"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("web\nINFO igd: forged", "web\\nINFO igd: forged"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\u0085c\ud800d", "a\\u2028b\\x85c\\ud800d"),
        ("Überwachung 監視", "Überwachung 監視"),
    ],
)
def test_no_text_is_more_than_a_line(logged: Log, text: str, escaped: str) -> None:
    log.info("asks for %s", text)
    assert logged.lines() == [f"INFO igd.test: asks for {escaped}"]


def test_only_what_peers_cause_is_cut(logged: Log) -> None:
    long = "監" * 1000
    log.warning("to paste: %s", long)
    assert logged.lines() == [f"WARNING igd.test: to paste: {long}"]
    cause.set(KEYS[0])
    log.warning("asks %s", long)
    (line,) = logged.lines()
    assert LONGEST - 3 <= len(line.removeprefix("WARNING igd.test: ").encode()) <= LONGEST
    assert line.endswith("監...")
    cause.set(None)
    logging.getLogger().setLevel(logging.DEBUG)
    log.debug("malformed: %s", long)
    assert len(logged.lines()[0].encode()) < LONGEST + 30


def test_debug_lines_are_not_counted(logged: Log) -> None:
    logging.getLogger().setLevel(logging.DEBUG)
    cause.set(KEYS[0])
    for number in range(1000):
        log.debug("request %s", number)
    assert len(logged.lines()) == 1000


def test_the_filter_stays_with_the_handlers_of_the_background(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    made = logging.StreamHandler(io.StringIO())
    try:
        root.handlers[:] = [made]
        log_lines.limit(PER_SECOND, Policies().label)
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(background, "SYSLOG", tmp_path / "none")
            background._log_to_syslog_or_file(tmp_path / "igd.log")
        cause.set(KEYS[0])
        for number in range(1000):
            log.error("line %s", number)
        log_lines.report_left_out()
        root.handlers[0].close()
    finally:
        cause.set(None)
        root.handlers[:] = before
        root.setLevel(level)
    *lines, last = (tmp_path / "igd.log").read_text().splitlines()
    assert PER_SECOND <= len(lines) < 1000
    assert f"left out {1000 - len(lines)} log lines of peer 00000000" in last


# What the gateway logs


async def test_a_peers_requests_are_its_own_lines(logged: Log) -> None:
    harness = await GatewayHarness().start()
    harness.peers.all = (peer(KEYS[0], f"{C1}/32"), peer(KEYS[1], f"{C2}/32"))
    for _request in range(300):  # refusals: a port below 1024
        await harness.ask(map_port(1023))
    for number in range(5):
        await harness.ask(map_port(2000 + number))
        await harness.ask(map_port(3000 + number, C2), C2)
    lines = logged.lines()
    assert len([line for line in lines if "FORBIDDEN" in line]) == 20
    assert len([line for line in lines if "GRANTED" in line]) == 10
    assert len(lines) == 30


async def test_requests_at_the_same_time_are_told_apart(logged: Log) -> None:
    harness = await GatewayHarness().start()
    harness.peers.all = (peer(KEYS[0], f"{C1}/32"), peer(KEYS[1], f"{C2}/32"))
    await asyncio.gather(
        *(harness.ask(map_port(1023)) for _request in range(300)),
        *(harness.ask(map_port(1022, C2), C2) for _request in range(10)),
    )
    assert len([line for line in logged.lines() if f"{C2} (" in line]) == 10


async def test_a_failing_kernel_costs_no_more_lines(logged: Log) -> None:
    harness = await GatewayHarness().start()
    for _request in range(100):
        harness.backend.fail_next = FirewallError("no\nmore" + "x" * 1000)
        await harness.ask(map_port(2000))
    lines = logged.lines()
    assert len(lines) <= 2 * PER_SECOND
    assert all(len(line.encode()) < LONGEST + 30 for line in lines)


async def test_what_maintenance_closes_is_the_owners_line_and_short(logged: Log) -> None:
    harness = await GatewayHarness().start(*(entry(port) for port in range(2000, 2050)))
    harness.clock.now = 5000.0
    await harness.maintenance.wake()
    (line,) = logged.lines()
    mappings = ", ".join(f"TCP {port} -> {C1}:8080" for port in range(2000, 2004))
    assert line == f"INFO igd.maintenance: closed, lease expired: {mappings} and 46 more (c1)"


async def test_what_is_not_resumed_is_short(logged: Log) -> None:
    await GatewayHarness().start(*(entry(port, 900.0) for port in range(2000, 2300)))
    (line,) = logged.lines()
    assert line.endswith(f"TCP 2003 -> {C1}:8080 (c1) and 296 more")


TAG = "\\U000e0001"
REMOTES = tuple(Remote(IPv4Network(f"198.51.100.{number}/32")) for number in range(16))


@pytest.mark.parametrize(
    ("described", "text"),
    [
        (map_port(description="a" * 500), f"map TCP 8043 -> {C1}:8043 for 300 s ('{'a' * 36}...)"),
        (map_port(description="a\nb"), f"map TCP 8043 -> {C1}:8043 for 300 s ('a\\nb')"),
        (map_port(description="\U000e0001" * 50), f"map TCP 8043 -> {C1}:8043 for 300 s ('{TAG * 3}{TAG[:6]}...)"),
        (UnmapPorts(TransportProtocol.TCP, range(1, 65536)), "unmap TCP 1-65535"),
        (
            PortMapping(TransportProtocol.TCP, 8043, Endpoint(C1, 80), "c1", remotes=REMOTES),
            f"TCP 8043 -> {C1}:80 from 198.51.100.0/32, 198.51.100.1/32 and 14 more",
        ),
        (
            MapPort(TransportProtocol.TCP, Endpoint(IPv4Address(C1), 80), 8043, 0, remotes=REMOTES[:2]),
            f"map TCP 8043 -> {C1}:80 from 198.51.100.0/32, 198.51.100.1/32 for good ('')",
        ),
    ],
)
def test_long_texts_are_shortened(described: object, text: str) -> None:
    assert str(described) == text
