"""Servers are asked in their order; only an answer of the asked server to the asked question counts."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from igd.host import stun
from igd.host.stun import NoAnswer, StunClient, Timing, udp_socket
from igd.host.stun_server import StunServer
from tests.host.stun_server import (
    LOOPBACK,
    PATIENT,
    PUBLIC,
    QUICK,
    SOURCE,
    Datagram,
    FakeServer,
    fake_server,
    ignore,
    refusing,
    seen,
    silence,
)


def client(
    *servers: FakeServer | StunServer, timing: Timing = PATIENT, count: Callable[[], None] = ignore
) -> StunClient:
    named = (each if isinstance(each, StunServer) else StunServer(*each.address) for each in servers)
    return StunClient(tuple(named), lambda _: False, count, timing)


async def address(of: StunClient) -> str:
    return str((await of.ask(LOOPBACK, SOURCE)).mapped.address)


def test_the_times_are_those_of_rfc_8489() -> None:
    assert list(Timing().waits()) == [0.5, 1, 2, 4, 8, 16, 8]  # §6.2.1: sent 7 times, given up after 39.5 s


async def test_the_answer_names_both_ends() -> None:
    async with fake_server(seen(PUBLIC, 4000)) as server:
        answer = await client(server).ask(LOOPBACK, SOURCE)
    assert (str(answer.mapped), str(answer.asked)) == (f"{PUBLIC}:4000", f"127.0.0.1:{server.port}")
    assert (str(answer.local.address), answer.local.port) == server.requests[0][1]


async def test_a_request_is_repeated_and_stays_the_same() -> None:
    async with fake_server(silence) as server:
        with pytest.raises(NoAnswer, match=f"^127.0.0.1:{server.port}: no answer$"):
            await address(client(server, timing=QUICK))
    assert len(server.requests) == QUICK.requests
    assert len(set(server.requests)) == 1, "the same bytes from the same port"


async def test_a_lost_request_costs_one_repetition() -> None:
    def second(request: bytes, sender: tuple[str, int]) -> list[bytes]:
        return seen()(request, sender) if len(server.requests) > 1 else []

    async with fake_server(second) as server:
        assert await address(client(server, timing=QUICK)) == PUBLIC


async def test_a_silent_server_is_followed_by_the_next() -> None:
    async with fake_server(silence) as first, fake_server(seen()) as second:
        assert await address(client(first, second, timing=Timing(rto=60, stagger=0.01))) == PUBLIC
    assert len(first.requests) == 1


async def test_a_good_first_answer_spares_the_second_server() -> None:
    async with fake_server(seen()) as first, fake_server(seen("60.60.60.8")) as second:
        assert await address(client(first, second)) == PUBLIC
    assert not second.requests


async def test_a_slow_first_server_still_counts() -> None:
    def late(_request: bytes, _sender: tuple[str, int]) -> list[bytes]:
        request, sender = first.requests[0]
        first.send(seen()(request, sender)[0], sender)
        return []

    async with fake_server(silence) as first, fake_server(late) as second:
        assert await address(client(first, second, timing=Timing(rto=60, stagger=0.01))) == PUBLIC


async def test_a_closed_port_is_noticed_at_once() -> None:
    async with fake_server(seen()) as second:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            dead = StunServer(*closed.getsockname())
        assert await address(client(dead, second)) == PUBLIC  # no stagger, no repetition
        with pytest.raises(NoAnswer, match="Connection refused"):
            await address(client(dead))


async def test_an_error_is_noticed_at_once_and_another_server_that_it_names_is_not_asked() -> None:
    async with fake_server(refusing(300, "Try Alternate")) as first:
        with pytest.raises(NoAnswer, match=r"error 300 'Try Alternate'"):
            await address(client(first))


@pytest.mark.parametrize("inside", ["10.0.0.7", "100.64.0.7", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
async def test_an_address_that_is_not_public_is_no_answer(inside: str) -> None:
    async with fake_server(seen(inside)) as first, fake_server(seen()) as second:
        assert await address(client(first, second)) == PUBLIC
        with pytest.raises(NoAnswer, match=f"sees {inside}, which is not a public address"):
            await address(client(first))


async def test_only_the_asked_server_is_believed() -> None:
    """An answer with the right transaction id from another address, and one with a wrong id, change nothing."""

    def answer(request: bytes, sender: tuple[str, int]) -> list[bytes]:
        forger.sendto(seen("60.60.60.8")(request, sender)[0], sender)
        wrong = request[:8] + bytes(12)
        return [b"0", b"junk", *seen("60.60.60.7")(wrong, sender), *seen()(request, sender)]

    counted: list[int] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        forger.bind(("127.0.0.2", 0))
        async with fake_server(answer) as server:
            assert await address(client(server, count=lambda: counted.append(1))) == PUBLIC
    assert len(counted) == 3


async def test_a_flood_does_not_stop_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram that has arrived already is received without a turn of the loop."""
    flood = iter(range(10_000))

    async def at_once(_sock: socket.socket, _size: int) -> Datagram:
        if next(flood, None) is None:
            await asyncio.sleep(0)
        return b"junk", server.address

    async with fake_server(silence) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_recvfrom", at_once)
        task = asyncio.create_task(address(client(server)))
        await server.received.wait()
        task.cancel()
    assert next(flood, None) is not None, "the server received the request while the flood went on"


async def test_ports_of_mappings_are_not_used() -> None:
    """The socket would take the packets of the mapping."""
    offered: list[int] = []

    def is_mapped(port: int) -> bool:
        offered.append(port)
        return len(offered) < 3

    async with fake_server(seen()) as server:
        answer = await StunClient((StunServer(*server.address),), is_mapped, ignore, PATIENT).ask(LOOPBACK, SOURCE)
    assert answer.local.port == offered[2]
    with pytest.raises(NoAnswer, match="every port that the kernel offers is mapped"):
        await StunClient((StunServer(*server.address),), lambda _: True, ignore, PATIENT).ask(LOOPBACK, SOURCE)


async def test_the_interface_must_exist() -> None:
    async with fake_server(seen()) as server:
        with pytest.raises(NoAnswer, match="No such device"):
            await client(server).ask("nowhere0", SOURCE)
        with pytest.raises(NoAnswer, match="Cannot assign requested address"):
            await client(server).ask(LOOPBACK, IPv4Address("192.0.2.1"))


@contextmanager
def hosts(monkeypatch: pytest.MonkeyPatch, *addresses: str, answered: threading.Event | None = None) -> Iterator[None]:
    """Let the resolver return these addresses for each name, once `answered` is set."""

    def getaddrinfo(_host: str, _port: None, *_: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if answered is not None:
            answered.wait()
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (each, 0)) for each in addresses]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
    if answered is not None:
        answered.set()


async def test_all_addresses_of_a_name_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_server(silence) as dead, fake_server(seen(), "127.0.0.3", dead.port) as alive:
        with hosts(monkeypatch, "127.0.0.1", "127.0.0.3"):
            name = StunServer("stun.example.net", dead.port)
            answer = await client(name, timing=Timing(rto=60, stagger=0.01)).ask(LOOPBACK, SOURCE)
    assert (answer.server, str(answer.asked)) == (name, f"127.0.0.3:{alive.port}")
    assert dead.requests


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    with hosts(monkeypatch), pytest.raises(NoAnswer) as failed:
        await address(client(StunServer("stun.example.net", 3478)))
    assert str(failed.value) == "stun.example.net:3478: the name cannot be resolved: Name or service not known"


async def test_a_name_that_python_cannot_encode() -> None:
    with pytest.raises(NoAnswer, match="cannot be resolved"):
        await address(client(StunServer("a." * 100 + "x" * 64, 3478)))


async def test_an_address_that_comes_too_late_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[object] = []
    loop, answered = asyncio.get_running_loop(), threading.Event()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    with hosts(monkeypatch, "127.0.0.1", answered=answered):
        with pytest.raises(NoAnswer):
            await address(client(StunServer("stun.example.net", 3478), timing=QUICK))
        (resolving,) = (thread for thread in threading.enumerate() if thread.name == "resolve stun.example.net")
        answered.set()
        await asyncio.to_thread(resolving.join)
        await asyncio.sleep(0)
    assert not failures


def test_a_resolver_that_hangs_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the question, nor the end of the event loop, which joins its own threads."""
    with hosts(monkeypatch, answered=threading.Event()), pytest.raises(NoAnswer, match=r"not resolved in 0\.1 s"):
        asyncio.run(address(client(StunServer("stun.example.net", 3478), timing=QUICK)))


async def test_no_socket_and_no_task_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []

    def open_socket(interface: str, source: IPv4Address) -> socket.socket:
        opened.append(udp_socket(interface, source))
        return opened[-1]

    monkeypatch.setattr(stun, "udp_socket", open_socket)
    before = asyncio.all_tasks()
    async with fake_server(silence) as first, fake_server(seen()) as second:
        await address(client(first, second, timing=Timing(rto=60, stagger=0.01)))
    assert [sock.fileno() for sock in opened] == [-1, -1]
    assert asyncio.all_tasks() == before
