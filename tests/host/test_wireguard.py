"""WireGuard parses the output of `wg show`; a script stands in for `wg`."""

import asyncio
import os
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path

import pytest

from igd.host.wireguard import FRESH_SECONDS, WireGuard
from tests.gateway_harness import Clock

C1 = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
C2 = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
C3 = "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA="

_WG = r"""#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/calls"
[ -f "$here/$3" ] || { echo "Unable to access interface: No such device" >&2; exit 1; }
cat "$here/$3"
"""


class Wg:
    """The script, its output, and its calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        program = directory / "wg"
        program.write_text(_WG, encoding="utf-8")
        program.chmod(0o755)

    def prints(self, field: str, *lines: str) -> None:
        """Set the output for this field."""
        (self.directory / field).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def calls(self) -> list[str]:
        """Return the arguments of each call."""
        path = self.directory / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def wg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wg:
    monkeypatch.setattr("igd.host.wireguard.WG_SECONDS", 60.0)  # only a hang takes so long
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wg = Wg(tmp_path)
    wg.prints("public-key", "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=")
    wg.prints("allowed-ips", f"{C1}\t10.100.0.2/32 fd00::2/128", f"{C2}\t(none)", f"{C3}\t10.100.0.4/32 192.168.7.0/24")
    wg.prints("latest-handshakes", f"{C1}\t1700000100", f"{C2}\t0", f"{C3}\t1699990000")
    return wg


@pytest.fixture
def clock() -> Clock:
    return Clock(50_000.0)


@pytest.fixture
def wall_clock() -> Clock:
    return Clock(1_700_000_130.0)


@pytest.fixture
def wireguard(wg: Wg, clock: Clock, wall_clock: Clock) -> WireGuard:
    wireguard = WireGuard("wg0", clock=clock, wall_clock=wall_clock)
    wireguard.addresses = (ip_interface("10.100.0.1/16"),)
    return wireguard


async def test_the_peers_and_their_networks(wireguard: WireGuard) -> None:
    peers = await wireguard.peers()
    assert [(peer.public_key, peer.allowed_ips) for peer in peers.all] == [
        (C1, (ip_network("10.100.0.2/32"), ip_network("fd00::2/128"))),
        (C2, ()),
        (C3, (ip_network("10.100.0.4/32"), ip_network("192.168.7.0/24"))),
    ]
    owner = peers.owner(IPv6Address("fd00::2"))
    assert owner
    assert owner.public_key == C1
    assert peers.owner(IPv4Address("10.100.0.1")) is None, "the interface's own address belongs to no peer"


async def test_an_interface_without_peers(wg: Wg, wireguard: WireGuard) -> None:
    wg.prints("allowed-ips")
    wg.prints("latest-handshakes")
    assert (await wireguard.peers()).all == ()
    assert await wireguard.handshakes() == {}


async def test_handshakes_are_on_the_clock_of_the_leases(wireguard: WireGuard) -> None:
    assert await wireguard.handshakes() == {C1: 50_000.0 - 30, C3: 50_000.0 - 10130}


YEAR = 365 * 86400.0


@pytest.mark.parametrize("step", [YEAR, -YEAR])
async def test_handshakes_do_not_move_when_the_wall_clock_is_set(
    wg: Wg, wireguard: WireGuard, clock: Clock, wall_clock: Clock, step: float
) -> None:
    before = await wireguard.handshakes()
    clock.now += 100
    wall_clock.now += 100 + step
    assert await wireguard.handshakes() == before
    clock.now += 60
    wall_clock.now += 60
    wg.prints("latest-handshakes", f"{C1}\t{wall_clock.now - 40:.0f}", f"{C3}\t1699990000")
    assert await wireguard.handshakes() == {C1: clock.now - 40, C3: before[C3]}


async def test_a_handshake_before_the_wall_clock_was_set_lies_between_two_readings(
    wg: Wg, wireguard: WireGuard, clock: Clock, wall_clock: Clock
) -> None:
    await wireguard.handshakes()
    first = clock.now
    for step in (YEAR, -YEAR):
        clock.now += 600
        wall_clock.now += 600
        wg.prints("latest-handshakes", f"{C1}\t{wall_clock.now - 10:.0f}")
        wall_clock.now += step
        found = (await wireguard.handshakes())[C1]
        assert first <= found <= clock.now
        first = clock.now


async def test_no_handshake_is_older_than_the_boot(
    wg: Wg, wireguard: WireGuard, clock: Clock, wall_clock: Clock
) -> None:
    """The first reading of a run may follow a step of the wall clock."""
    wall_clock.now += YEAR
    assert await wireguard.handshakes() == {C1: 0.0, C3: 0.0}


async def test_a_handshake_after_the_interface_was_made_anew_is_another(
    wg: Wg, wireguard: WireGuard, clock: Clock, wall_clock: Clock
) -> None:
    await wireguard.handshakes()
    wg.prints("latest-handshakes")
    assert await wireguard.handshakes() == {}
    clock.now += 60
    wall_clock.now += 60
    wg.prints("latest-handshakes", f"{C1}\t{wall_clock.now - 5:.0f}")
    assert await wireguard.handshakes() == {C1: clock.now - 5}


async def test_the_public_key(wireguard: WireGuard) -> None:
    assert await wireguard.public_key() == "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="


async def test_the_peers_are_read_again_after_a_second(wg: Wg, wireguard: WireGuard, clock: Clock) -> None:
    first = await wireguard.peers()
    wg.prints("allowed-ips", f"{C3}\t10.100.0.2/32")
    clock.now += FRESH_SECONDS
    assert await wireguard.peers() is first
    clock.now += 0.01
    assert [peer.public_key for peer in (await wireguard.peers()).all] == [C3]


async def test_whoever_needs_the_peers_as_of_now_has_them_read(wg: Wg, wireguard: WireGuard, clock: Clock) -> None:
    first = await wireguard.peers()
    clock.now += 0.01
    assert await wireguard.peers(0) is first, "nothing has changed"
    wg.prints("allowed-ips", f"{C3}\t10.100.0.2/32")
    clock.now += 0.01
    assert await wireguard.peers() is first
    assert [peer.public_key for peer in (await wireguard.peers(0)).all] == [C3]
    assert [peer.public_key for peer in (await wireguard.peers()).all] == [C3]


async def test_the_same_peers_in_another_order_are_no_change(wg: Wg, wireguard: WireGuard, clock: Clock) -> None:
    first = await wireguard.peers()
    wg.prints("allowed-ips", *reversed((wg.directory / "allowed-ips").read_text(encoding="utf-8").splitlines()))
    clock.now += 0.01
    assert await wireguard.peers(0) is first
    assert len(wg.calls()) == 2


async def test_new_addresses_of_the_interface_count_at_once(wireguard: WireGuard) -> None:
    assert (await wireguard.peers()).owner(IPv4Address("10.100.0.2"))
    wireguard.addresses = (*wireguard.addresses, ip_interface("10.100.0.2/16"))
    assert (await wireguard.peers()).owner(IPv4Address("10.100.0.2")) is None


async def test_many_peers(wg: Wg, wireguard: WireGuard) -> None:
    lines = [f"{C1[:-6]}{number:05d}=\t10.{number >> 8}.{number & 255}.0/24" for number in range(20_000)]
    wg.prints("allowed-ips", *lines)
    assert len((await wireguard.peers()).all) == len(lines), "the output exceeds the capacity of a pipe"


@pytest.mark.parametrize("max_age", [0, FRESH_SECONDS])
async def test_concurrent_callers_share_one_reading(wg: Wg, wireguard: WireGuard, max_age: float) -> None:
    await asyncio.gather(*(wireguard.peers(max_age) for _ in range(20)))
    assert wg.calls() == ["show wg0 allowed-ips"]


async def test_callers_during_a_reading_share_the_next_one(wg: Wg, wireguard: WireGuard, clock: Clock) -> None:
    """What a reading that began before them finds may be outdated."""
    reading = asyncio.create_task(wireguard.peers(0))
    await asyncio.sleep(0)  # it has begun
    clock.now += 0.01
    await asyncio.gather(reading, *(wireguard.peers(0) for _ in range(20)))
    assert wg.calls() == ["show wg0 allowed-ips"] * 2


async def test_only_the_necessary_fields_are_read_and_never_the_private_key(wg: Wg, wireguard: WireGuard) -> None:
    await wireguard.peers()
    await wireguard.handshakes()
    await wireguard.public_key()
    assert wg.calls() == ["show wg0 allowed-ips", "show wg0 latest-handshakes", "show wg0 public-key"]


async def test_a_removed_interface_is_an_error_until_it_returns(wg: Wg, wireguard: WireGuard) -> None:
    lines = (wg.directory / "allowed-ips").read_text(encoding="utf-8").splitlines()
    for field in ("allowed-ips", "latest-handshakes", "public-key"):
        (wg.directory / field).unlink()
    for read in (wireguard.peers, wireguard.handshakes, wireguard.public_key):
        with pytest.raises(OSError, match=r"wg show wg0 .*: Unable to access interface: No such device"):
            await read()
    wg.prints("allowed-ips", *lines)
    assert len((await wireguard.peers()).all) == 3


async def test_old_peers_are_not_returned_after_the_interface_was_removed(
    wg: Wg, wireguard: WireGuard, clock: Clock
) -> None:
    await wireguard.peers()
    (wg.directory / "allowed-ips").unlink()
    clock.now += FRESH_SECONDS + 0.01
    with pytest.raises(OSError, match="No such device"):
        await wireguard.peers()


async def test_a_missing_program_is_an_error(wireguard: WireGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="wg is not in PATH; apt install wireguard-tools has it"):
        await wireguard.peers()


async def test_a_hanging_wg_is_an_error(tmp_path: Path, wireguard: WireGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd.host.wireguard.WG_SECONDS", 0.05)
    (tmp_path / "wg").write_text("#!/bin/sh\nexec cat /dev/zero > /dev/null\n", encoding="ascii")
    with pytest.raises(OSError, match="no answer"):
        await wireguard.peers()


async def test_a_cancelled_call_leaves_no_process_behind(
    tmp_path: Path, wireguard: WireGuard, caplog: pytest.LogCaptureFixture
) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    (tmp_path / "wg").write_text(f"#!/bin/sh\necho $$ > {pid}\nexec cat /dev/zero > /dev/null\n", "ascii")
    reading = asyncio.create_task(wireguard.peers())
    hanging = int(await asyncio.to_thread(pid.read_text, "ascii"))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert not caplog.records
