"""What `wg show` tells, read at the seam: a program of that name that prints what the real one prints."""

import asyncio
import os
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from igd.core.peers import Address, Interface
from igd.host.wireguard import ADDRESSES_SECONDS, FRESH_SECONDS, WireGuard
from tests.gateway_harness import Clock

C1 = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
C2 = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
C3 = "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA="

_WG = r"""#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/asked"
[ -f "$here/$3" ] || { echo "Unable to access interface: No such device" >&2; exit 1; }
cat "$here/$3"
"""


class Wg:
    """The program, what it answers, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        program = directory / "wg"
        program.write_text(_WG, encoding="utf-8")
        program.chmod(0o755)

    def answers(self, field: str, *lines: str) -> None:
        """Let it answer so from now on."""
        (self.directory / field).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def asked(self) -> list[str]:
        """Give what it was asked, in order."""
        path = self.directory / "asked"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def wg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wg:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wg = Wg(tmp_path)
    wg.answers("public-key", "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=")
    wg.answers(
        "allowed-ips", f"{C1}\t10.100.0.2/32 fd00::2/128", f"{C2}\t(none)", f"{C3}\t10.100.0.4/32 192.168.7.0/24"
    )
    wg.answers("latest-handshakes", f"{C1}\t1700000100", f"{C2}\t0", f"{C3}\t1699990000")
    return wg


@pytest.fixture
def clock() -> Clock:
    return Clock(5000.0)


class FakeLinks:
    """An igd.host.wireguard.LinkFacts; `trouble` is raised instead, for as long as it is set."""

    def __init__(self) -> None:
        self.own = [ip_interface("10.100.0.1/16")]
        self.trouble: OSError | None = None

    async def addresses(self, name: str) -> tuple[Interface, ...]:
        """Those of wg0."""
        assert name == "wg0"
        if self.trouble:
            raise self.trouble
        return tuple(self.own)

    async def route(self, address: Address) -> str | None:
        """One for each case."""
        return {"192.168.7.1": "wg0", "192.168.7.2": "lan0"}.get(str(address))


@pytest.fixture
def links() -> FakeLinks:
    return FakeLinks()


@pytest.fixture
def wireguard(wg: Wg, links: FakeLinks, clock: Clock) -> WireGuard:  # noqa: ARG001 - on the PATH
    return WireGuard("wg0", links, clock=clock, wall_clock=Clock(1_700_000_130.0))


async def test_the_peers_and_what_they_own(wireguard: WireGuard) -> None:
    peers = await wireguard.peers()
    assert [(peer.public_key, peer.allowed_ips) for peer in peers.all] == [
        (C1, (ip_network("10.100.0.2/32"), ip_network("fd00::2/128"))),
        (C2, ()),
        (C3, (ip_network("10.100.0.4/32"), ip_network("192.168.7.0/24"))),
    ]
    owner = peers.owner(IPv6Address("fd00::2"))
    assert owner
    assert owner.public_key == C1
    assert peers.owner(IPv4Address("10.100.0.1")) is None, "the interface's own addresses were not heard of"


async def test_an_interface_without_peers(wg: Wg, wireguard: WireGuard) -> None:
    wg.answers("allowed-ips")
    wg.answers("latest-handshakes")
    assert (await wireguard.peers()).all == ()
    assert await wireguard.handshakes() == {}


async def test_handshakes_are_told_on_the_clock_of_the_leases(wireguard: WireGuard) -> None:
    assert await wireguard.handshakes() == {C1: 5000.0 - 30, C3: 5000.0 - 10130}


async def test_the_public_key(wireguard: WireGuard) -> None:
    assert await wireguard.public_key() == "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="


async def test_the_peers_are_read_again_when_they_are_no_longer_fresh(
    wg: Wg, wireguard: WireGuard, clock: Clock
) -> None:
    first = await wireguard.peers()
    wg.answers("allowed-ips", f"{C3}\t10.100.0.2/32")
    clock.now += FRESH_SECONDS
    assert await wireguard.peers() is first
    clock.now += 0.01
    assert [peer.public_key for peer in (await wireguard.peers()).all] == [C3]


async def test_new_addresses_of_the_interface_are_seen_a_little_later(
    wireguard: WireGuard, links: FakeLinks, clock: Clock
) -> None:
    assert (await wireguard.peers()).owner(IPv4Address("10.100.0.2"))
    links.own.append(ip_interface("10.100.0.2/16"))
    clock.now += ADDRESSES_SECONDS
    assert (await wireguard.peers()).owner(IPv4Address("10.100.0.2"))
    clock.now += FRESH_SECONDS + 0.01
    assert (await wireguard.peers()).owner(IPv4Address("10.100.0.2")) is None


async def test_what_was_read_beside_an_error_is_not_lost(
    wg: Wg, wireguard: WireGuard, links: FakeLinks, clock: Clock
) -> None:
    await wireguard.peers()
    wg.answers("allowed-ips", f"{C3}\t10.100.0.2/32")
    links.trouble = OSError("for once")
    clock.now += ADDRESSES_SECONDS + 0.01
    with pytest.raises(OSError, match="for once"):
        await wireguard.peers()
    links.trouble = None
    assert [peer.public_key for peer in (await wireguard.peers()).all] == [C3]


async def test_as_many_peers_as_there_may_be(wg: Wg, wireguard: WireGuard) -> None:
    lines = [f"{C1[:-6]}{number:05d}=\t10.{number >> 8}.{number & 255}.0/24" for number in range(20_000)]
    wg.answers("allowed-ips", *lines)
    assert len((await wireguard.peers()).all) == len(lines), "more than fits into a pipe"


async def test_who_asks_at_once_shares_one_reading(wg: Wg, wireguard: WireGuard) -> None:
    await asyncio.gather(*(wireguard.peers() for _ in range(20)))
    assert wg.asked() == ["show wg0 allowed-ips"]


async def test_only_what_is_needed_is_asked_and_never_the_private_key(wg: Wg, wireguard: WireGuard) -> None:
    await wireguard.peers()
    await wireguard.handshakes()
    await wireguard.public_key()
    assert wg.asked() == ["show wg0 allowed-ips", "show wg0 latest-handshakes", "show wg0 public-key"]


async def test_an_interface_that_is_gone_is_an_error_and_its_return_is_seen(wg: Wg, wireguard: WireGuard) -> None:
    lines = (wg.directory / "allowed-ips").read_text(encoding="utf-8").splitlines()
    for field in ("allowed-ips", "latest-handshakes", "public-key"):
        (wg.directory / field).unlink()
    for ask in (wireguard.peers, wireguard.handshakes, wireguard.public_key):
        with pytest.raises(OSError, match=r"wg show wg0 .*: Unable to access interface: No such device"):
            await ask()
    wg.answers("allowed-ips", *lines)
    assert len((await wireguard.peers()).all) == 3


async def test_what_was_fresh_is_not_told_after_the_interface_is_gone(
    wg: Wg, wireguard: WireGuard, clock: Clock
) -> None:
    await wireguard.peers()
    (wg.directory / "allowed-ips").unlink()
    clock.now += FRESH_SECONDS + 0.01
    with pytest.raises(OSError, match="No such device"):
        await wireguard.peers()


async def test_without_the_program_it_is_an_error(wireguard: WireGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="wg"):
        await wireguard.peers()


@pytest.mark.parametrize(
    ("address", "reached"), [("192.168.7.1", True), ("192.168.7.2", False), ("192.168.7.3", False)]
)
async def test_routes_tell_what_is_reached(wireguard: WireGuard, address: str, *, reached: bool) -> None:
    assert await wireguard.reaches(ip_address(address)) is reached


async def test_a_wg_that_hangs_is_an_error(
    tmp_path: Path, wireguard: WireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igd.host.wireguard.ANSWER_SECONDS", 0.05)
    (tmp_path / "wg").write_text("#!/bin/sh\nexec cat /dev/zero > /dev/null\n", encoding="ascii")
    with pytest.raises(OSError, match="no answer"):
        await wireguard.peers()


async def test_who_stops_asking_leaves_no_program_behind(
    tmp_path: Path, wireguard: WireGuard, caplog: pytest.LogCaptureFixture
) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    (tmp_path / "wg").write_text(f"#!/bin/sh\necho $$ > {pid}\nexec cat /dev/zero > /dev/null\n", "ascii")
    asking = asyncio.create_task(wireguard.peers())
    hanging = int(await asyncio.to_thread(pid.read_text, "ascii"))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert not caplog.records
