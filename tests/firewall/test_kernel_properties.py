"""Whatever peers, the clock, others and kill -9 do: the real kernel holds what the table holds, after every step."""

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    AnyMapping,
    Endpoint,
    Pinhole,
    Remote,
    TransportProtocol,
)
from igd.core.moment import Moment
from igd.core.request import MapPort, Refusal, UnmapInternal, UnmapPinhole, UnmapPorts
from igd.firewall import kernel
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.nft.internal_addresses import RELEASE_SECONDS
from igd.firewall.site import Site
from igd.store.leases import LeaseStore
from tests.firewall.three_hosts import EXTERNAL, PEERS, new_namespace, run
from tests.gateway_harness import C1, C2, Clock, GatewayHarness, peer
from tests.store.opened import KEY, OTHER_KEY

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)
C1_6 = IPv6Address("2001:470:100::2")
OWNERS = (peer(KEY, f"{C1}/32", f"{C1_6}/128"), peer(OTHER_KEY, f"{C2}/32"))
EVERYBODY, ONLY_C2 = OWNERS, OWNERS[1:]
Backend = Literal["nftables", "iptables"]

Led = tuple[str, int, str]
"""Protocol, port and what it leads to; of a pinhole, the address alone."""


def held_by_nftables() -> set[Led]:
    listed = json.loads(run("nft", "-j", "list", "table", "inet", "igd_wg0"))
    found = [item[kind] for item in listed["nftables"] for kind in ("map", "set") if kind in item]
    sets = {each["name"]: each.get("elem", []) for each in found}
    led = {_led(_value(key)["concat"], to["concat"]) for key, to in sets["mappings"]}
    for name in (name for name in sets if name.startswith("remotes_")):
        led |= {_led(_without_remote(name, _value(key)["concat"]), to["concat"]) for key, to in sets[name]}
    assert {each[:2] for each in led} >= {tuple(_value(key)["concat"]) for key in sets["restricted_ports"]}
    return led | {_pinhole(*_value(key)["concat"]) for name in PINHOLES for key in sets[name]}


PINHOLES = "pinholes", "restricted_pinholes"


def _without_remote(name: str, key: list[Any]) -> list[Any]:
    return key if name.startswith("remotes_0") else key[1:]


def _value(element: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = element["elem"]["val"]
    return value


def _led(key: list[Any], to: list[Any]) -> Led:
    return key[0], key[1], f"{to[0]}:{to[1]}"


def _pinhole(address: str, protocol: str, port: int) -> Led:
    return protocol, port, address


def held_by_iptables() -> set[Led]:
    def rules(family: str, pattern: str) -> list[tuple[str, ...]]:
        return re.findall(rf"(?m)^-A igd_wg0 {pattern}", run(f"{family}-legacy-save", "-t", "nat"))

    ours = r".*-p (\w+) .*--dport (\d+) .*-j DNAT --to-destination (\S+)"
    pinholes = r".*-d (\S+)/128 .*-p (\w+) .*--dport (\d+) .*-j CONNMARK"
    return {(protocol, int(port), to) for protocol, port, to in rules("iptables", ours)} | {
        _pinhole(address, protocol, int(port)) for address, protocol, port in rules("ip6tables", pinholes)
    }


def counted() -> set[Led]:
    """Return what nft says is counted; what is asked for here are no pinholes for single hosts."""
    listed = json.loads(run("nft", "-j", "list", "table", "inet", "igd_wg0/traffic"))
    sets = {each["name"]: each.get("elem", []) for item in listed["nftables"] if (each := item.get("set"))}
    keys = {name: [_value(element)["concat"] for element in elements] for name, elements in sets.items()}
    assert not any(keys[name] for name in keys.keys() - {"port_mappings", "pinholes"})
    return {(protocol, port, "") for protocol, port in keys["port_mappings"]} | {
        _pinhole(*key) for key in keys["pinholes"]
    }


def listed_by_nftables() -> list[str]:
    """Everything in our table, without what time changes, and without sets of remotes that are no longer in use."""
    listing = run("nft", "list", "table", "inet", "igd_wg0")
    released = rf"\S+ timeout {RELEASE_SECONDS:.0f}s expires \S+"  # addresses whose last mapping has just ended
    listing = re.sub(rf"elements = \{{ {released}(,\s+{released})* \}}\n|{released},\s+|,\s+{released}", "", listing)
    listing = re.sub(r" timeout \S+ expires \S+| timeout \S+", "", listing)
    listing = re.sub(r"(?s)elements = \{ (.*?) \}", lambda found: "\n".join(re.split(r",\s+", found[1])), listing)
    for name in re.findall(r"(?:map|set) (\w*remotes_\w+) \{\n\t\ttype .*\n\t\tflags timeout\n\t\}", listing):
        listing = re.sub(rf"(?s)(?:map|set) {name} \{{.*?\}}", "", listing)
        listing = re.sub(rf".* @{name}( .*)?\n", "", listing)
    return sorted(line.strip() for line in listing.splitlines() if line.strip())


def listed_by_iptables() -> list[str]:
    """All rules of both families' nat tables, without their counters."""
    saved = [run(f"{family}-legacy-save", "-t", "nat") for family in ("iptables", "ip6tables")]
    return sorted(line for text in saved for line in text.splitlines() if line.startswith("-A"))


LISTED: dict[Backend, Callable[[], list[str]]] = {"nftables": listed_by_nftables, "iptables": listed_by_iptables}
HELD: dict[Backend, Callable[[], set[Led]]] = {"nftables": held_by_nftables, "iptables": held_by_iptables}


def expected(mapping: AnyMapping) -> Led:
    where = str(mapping.internal.address) if isinstance(mapping, Pinhole) else str(mapping.internal)
    return mapping.protocol.name.lower(), mapping.external_port, where


class Running:
    """A gateway on the real kernel and a real store; `kill` leaves both as a killed process would."""

    def __init__(self, backend: Backend, path: Path) -> None:
        self.choice: Backend = backend
        self._path = path
        self.clock = Clock()
        self._build()

    def _build(self) -> None:
        self.store = LeaseStore(self._path, lambda: Moment("boot", self.clock(), self.clock()))
        self.backend = kernel.build(self.choice, SITE, LegacyWatch(kernel.LEGACY))
        self.harness = GatewayHarness(backend=self.backend, store=self.store)  # type: ignore[arg-type]
        self.harness.clock.now = self.clock.now
        self.harness.peers.all = EVERYBODY

    async def start(self) -> None:
        """Load what is stored."""
        await self.harness.maintenance.start(self.store.load(), EXTERNAL, [EXTERNAL])

    async def kill(self) -> None:
        """Be a new process: whatever sockets there were are closed, and nothing is taken back."""
        self.backend.close()
        self.store.close()
        self._build()
        await self.start()

    async def check_all(self) -> None:
        """Compare table, kernel and store, and all of the kernel with one that has never known anything else."""
        self.check()
        fresh = await self.harness.ledger.in_worker(self._afresh)
        assert LISTED[self.choice]() == fresh

    def _afresh(self) -> list[str]:
        with new_namespace(), closing(kernel.build(self.choice, SITE, LegacyWatch(kernel.LEGACY))) as backend:
            backend.replace_all([EXTERNAL], list(self.harness.ledger.table), self.clock.now)
            return LISTED[self.choice]()

    def check(self) -> None:
        """Compare table, kernel and store."""
        table = [entry.mapping for entry in self.harness.ledger.table]
        assert HELD[self.choice]() == {expected(mapping) for mapping in table}
        assert counted() == {
            (*expected(mapping)[:2], str(mapping.internal.address) if isinstance(mapping, Pinhole) else "")
            for mapping in table
        }
        assert {entry.mapping for entry in self.store.load()} == set(table)


@contextmanager
def running(backend: Backend) -> Iterator[Running]:
    with new_namespace(), tempfile.TemporaryDirectory() as directory:
        yield Running(backend, Path(directory) / "leases.sqlite")


@dataclass(frozen=True)
class ClosedPinhole:
    """A request by UPnP that closes one of the open pinholes, counted from the oldest."""

    number: int


PORTS6 = st.integers(2000, 2001)
remotes4 = st.sampled_from(
    [
        (),
        (),
        (Remote(IPv4Network("198.51.100.7")),),
        (Remote(IPv4Network("198.51.0.0/16"), 53), Remote(IPv4Network("198.51.100.0/24"))),
    ]
)
WIDE, NARROW = Remote(IPv6Network("2001:db8::/32")), Remote(IPv6Network("2001:db8::/48"), 80)
remotes6 = st.sampled_from([(), (WIDE,), (NARROW,), (WIDE, NARROW)])
claims = st.sampled_from([BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT])
lifetimes = st.sampled_from([60, 300, 4000])
protocols = st.sampled_from(TransportProtocol)
opening = st.one_of(
    st.builds(
        lambda protocol, port, inside, source, lifetime, remotes: (
            source,
            MapPort(protocol, Endpoint(source, inside), port, lifetime, 'a "web" $server\\', remotes=remotes),
        ),
        protocols,
        st.integers(2000, 2003),
        st.integers(3000, 3001),
        st.sampled_from([C1, C2]),
        lifetimes,
        remotes4,
    ),
    st.builds(
        lambda protocol, port, lifetime, remotes, claim: (
            C1_6,
            MapPort(protocol, Endpoint(C1_6, port), None, lifetime, "", any_port=True, remotes=remotes, claim=claim),
        ),
        protocols,
        st.integers(2000, 2001),
        lifetimes,
        remotes6,
        claims,
    ),
)
closing_requests = st.one_of(
    st.tuples(
        st.sampled_from([C1, C2]),
        st.builds(UnmapPorts, protocols, st.builds(range, st.integers(2000, 2002), st.integers(2003, 2004))),
    ),
    st.tuples(st.just(C1), st.builds(lambda port: UnmapInternal(None, C1_6, port, BY_INTERNAL_ENDPOINT), PORTS6)),
    st.builds(ClosedPinhole, st.integers(0, 3)),
)
COUNTS = [
    "nft delete table inet igd_wg0/traffic",
    "nft flush set inet igd_wg0/traffic port_mappings",
    "nft add element inet igd_wg0/traffic port_mappings { tcp . 2000, udp . 9 }",
]
FOREIGN: dict[Backend, list[str]] = {
    "nftables": [
        *COUNTS,
        "nft flush ruleset",
        "nft delete table inet igd_wg0",
        "nft flush chain inet igd_wg0 prerouting",
        "nft flush map inet igd_wg0 mappings",
        "nft flush set inet igd_wg0 pinholes",
        "nft flush chain inet igd_wg0 from_remotes",
        "nft flush set inet igd_wg0 restricted_ports",
        "nft add element inet igd_wg0 mappings { tcp . 2000 : 10.9.9.9 . 9 }",
        "nft add element inet igd_wg0 external { 9.9.9.9 }",
    ],
    "iptables": [
        *COUNTS,
        "iptables-legacy -t nat -F",
        "iptables-legacy -t nat -F igd_wg0",
        "iptables-legacy -t nat -I igd_wg0 -p tcp --dport 2000 -j DNAT --to 10.9.9.9:9",
        "iptables-legacy -t nat -D igd_wg0 1",
        "ip6tables-legacy -t nat -F",
    ],
}
KILL = "kill -9"


@dataclass(frozen=True)
class Unnoticed:
    """A change by somebody else, and what a peer asks before anybody has noticed it."""

    command: str
    asked: tuple[IPv4Address | IPv6Address, MapPort | UnmapPorts | UnmapInternal] | ClosedPinhole


def steps(backend: Backend) -> st.SearchStrategy[list[object]]:
    step = st.one_of(
        opening,
        opening,
        closing_requests,
        st.floats(1.0, 400.0),
        st.sampled_from([EVERYBODY, ONLY_C2]),
        st.sampled_from(FOREIGN[backend]),
        st.builds(Unnoticed, st.sampled_from(FOREIGN[backend]), st.one_of(opening, closing_requests)),
        st.just(KILL),
    )
    return st.lists(step, min_size=4, max_size=14)


async def _take(step: object, gateway: Running) -> None:
    harness = gateway.harness
    match step:
        case (IPv4Address() | IPv6Address() as source, MapPort() | UnmapPorts() | UnmapInternal() as request):
            admitted = await harness.admit(source)
            if not isinstance(admitted, Refusal):
                await harness.gateway.ask(admitted, source, request)
        case ClosedPinhole(number):
            open_ones = [one.mapping for one in harness.ledger.table if isinstance(one.mapping, Pinhole)]
            for pinhole in open_ones[number : number + 1]:
                await harness.ask(UnmapPinhole(pinhole.unique_id))
        case Unnoticed(command, asked):
            _by_somebody_else(command)
            await _take(asked, gateway)
            await harness.ledger.repair()
        case float():
            gateway.clock.now = harness.clock.now = gateway.clock.now + step
            await harness.maintenance.wake()
        case tuple():
            harness.peers.all = step
            await harness.maintenance.recheck_peers()
        case "kill -9":
            await gateway.kill()
        case str():
            _by_somebody_else(step)
            await harness.ledger.repair()  # as whoever watches does


def _by_somebody_else(command: str) -> None:
    with contextlib.suppress(AssertionError):  # what he wants to change is not there, or what he wants to add is
        run(*command.split())


async def _play(script: list[object], gateway: Running) -> None:
    await gateway.start()
    await gateway.check_all()
    for step in script:
        await _take(step, gateway)
        await gateway.check_all()
    await gateway.harness.ledger.close()
    gateway.store.close()


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_table_kernel_and_store_are_equal_after_every_step(backend: Backend) -> None:
    @settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(steps(backend))
    def play(script: list[object]) -> None:
        with running(backend) as gateway:
            asyncio.run(_play(script, gateway))

    play()
