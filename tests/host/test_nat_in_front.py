"""Does a packet that nobody asked for get through? And what is said where that cannot be told."""

import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest

from igd.host.nat_in_front import NatTest, Verdict
from igd.host.stun import Answer, StunClient, udp_socket
from igd.host.stun_server import StunServer
from igd.wire.stun import IPv4Endpoint
from tests.host.stun_server import (
    LOOPBACK,
    PATIENT,
    PUBLIC,
    QUICK,
    SOURCE,
    Datagram,
    fake_server,
    ignore,
    refusing,
    seen,
    silence,
)
from tests.wire import stun_server_codec as codec

OTHER = "127.0.0.2"
SEEN = IPv4Endpoint(IPv4Address(PUBLIC), 4000)

Reply = Callable[[bytes, tuple[str, int]], Iterable[bytes | Datagram]]


def free(_sender: IPv4Address, _address: IPv4Address, _port: int) -> None:
    """No rule is in the way."""


def to_the_port_that_is_asked_for(request: bytes, sender: tuple[str, int]) -> list[Datagram]:
    """Answer as a server of RFC 5780 behind no NAT at all."""
    port = int.from_bytes(codec.attributes(request)[codec.RESPONSE_PORT], "big")
    return [(seen()(request, sender)[0], (sender[0], port))]


@asynccontextmanager
async def judged(
    to_response_port: Reply,
    from_other: Reply = silence,
    *,
    obstacle: Callable[[IPv4Address, IPv4Address, int], str | None] = free,
    ports: Iterable[int] = (0,),
    local: IPv4Endpoint | None = None,
    mapped: IPv4Endpoint = SEEN,
    speaks_rfc_5780: bool = True,
) -> AsyncIterator[Verdict]:
    """Judge what a server does with the two kinds of question."""
    async with fake_server(silence, OTHER) as other:

        def answer(request: bytes, sender: tuple[str, int]) -> Iterable[bytes | Datagram]:
            if codec.RESPONSE_PORT in codec.attributes(request):
                return to_response_port(request, sender)
            assert codec.attributes(request)[codec.CHANGE_REQUEST] == bytes([0, 0, 0, 6])
            for each in from_other(request, sender):
                assert isinstance(each, bytes)
                other.send(each, sender)
            return ()

        async with fake_server(answer) as server:
            asked = StunServer(*server.address)
            client = StunClient((asked,), lambda _: False, ignore, PATIENT)
            second = IPv4Endpoint(IPv4Address(OTHER), other.port) if speaks_rfc_5780 else None
            known = Answer(
                asked, IPv4Endpoint(SOURCE, server.port), local or IPv4Endpoint(SOURCE, 4000), mapped, second
            )
            yield await NatTest(client, lambda: ports, obstacle, QUICK).judge(LOOPBACK, known)


async def test_what_arrives_unrequested_proves_that_ports_are_forwarded() -> None:
    async with judged(to_the_port_that_is_asked_for) as verdict:
        assert verdict.forwards is True
        assert re.search(rf"an unrequested packet to UDP port \d+ of {PUBLIC} arrived", verdict.text)


async def test_even_an_error_that_arrives_is_a_proof() -> None:
    def answer(request: bytes, sender: tuple[str, int]) -> list[Datagram]:
        ((_, receiver),) = to_the_port_that_is_asked_for(request, sender)
        return [(refusing(500, "Server Error")(request, sender)[0], receiver)]

    async with judged(answer) as verdict:
        assert verdict.forwards is True


async def test_silence_means_that_the_nat_forwards_nothing() -> None:
    async with judged(silence) as verdict:
        assert verdict.forwards is False
        assert verdict.text.endswith("forward the ports that peers may map, UDP and TCP, to 127.0.0.1 at the router")


async def test_a_carriers_nat_is_nothing_that_the_operator_can_change() -> None:
    local = IPv4Endpoint(IPv4Address("100.64.7.7"), 4000)

    async with judged(silence, local=local) as verdict:  # no such address here: the sockets cannot be opened
        assert (verdict.forwards, "Cannot assign requested address" in verdict.text) == (None, True)
        assert "100.64.7.7 is an address of a provider's own NAT (RFC 6598)" in verdict.text


async def test_silence_means_nothing_where_our_own_rules_may_drop_the_packet() -> None:
    asked: list[tuple[IPv4Address, IPv4Address, int]] = []

    def obstacle(sender: IPv4Address, address: IPv4Address, port: int) -> str:
        asked.append((sender, address, port))
        return "policy DROP of INPUT"

    async with judged(silence, obstacle=obstacle) as verdict:
        assert verdict.forwards is None
        assert verdict.text.endswith("this server's own firewall may drop the test packet (policy DROP of INPUT)")
    ((sender, address, _),) = asked
    assert (sender, address) == (SOURCE, SOURCE)
    async with judged(to_the_port_that_is_asked_for, obstacle=obstacle) as verdict:
        assert verdict.forwards is True, "what has arrived was not dropped"


@pytest.mark.parametrize("ignores", [refusing(420, "Unknown Attribute"), seen()])
async def test_without_response_port_the_other_address_answers(ignores: Reply) -> None:
    """A NAT that drops even that answer forwards nothing. One that lets it in may still forward no other port."""
    async with judged(ignores, silence) as verdict:
        assert verdict.forwards is False
    async with judged(ignores, seen()) as verdict:
        assert (verdict.forwards, verdict.text.endswith("RFC 5780 (RESPONSE-PORT)")) == (None, True)
    senders: list[str] = []
    async with judged(ignores, silence, obstacle=lambda sender, *_: senders.append(str(sender))):
        assert senders == [OTHER]


async def test_an_answer_of_a_stranger_is_no_proof() -> None:
    """It has the right transaction id, but somebody else sent it: the test's port is open to all."""
    async with fake_server(silence, "127.0.0.3") as stranger:

        def answer(request: bytes, sender: tuple[str, int]) -> list[bytes]:
            ((datagram, receiver),) = to_the_port_that_is_asked_for(request, sender)
            stranger.send(datagram, receiver)
            return []

        async with judged(answer) as verdict:
            assert verdict.forwards is False


async def test_a_server_of_rfc_8489_alone_cannot_tell() -> None:
    async with judged(silence, speaks_rfc_5780=False) as verdict:
        assert (verdict.forwards, verdict.text.endswith("does not speak RFC 5780")) == (None, True)
    async with judged(silence, speaks_rfc_5780=False, mapped=replace_port(SEEN)) as verdict:
        assert "it changes source ports" in verdict.text
    local = IPv4Endpoint(IPv4Address("100.64.7.7"), 4000)
    async with judged(silence, speaks_rfc_5780=False, local=local) as verdict:
        assert "100.64.7.7 is an address of a provider's own NAT" in verdict.text


def replace_port(endpoint: IPv4Endpoint) -> IPv4Endpoint:
    return endpoint._replace(port=endpoint.port + 1)


async def test_without_a_nat_nothing_is_asked() -> None:
    local = IPv4Endpoint(SEEN.address, 4000)
    async with judged(silence, local=local) as verdict:
        assert verdict == Verdict(forwards=True, text="there is no NAT in front of this server")


async def test_the_port_that_is_tried_is_one_that_nobody_uses() -> None:
    with udp_socket(LOOPBACK, SOURCE) as used, udp_socket(LOOPBACK, SOURCE) as unused:
        taken, expected = used.getsockname()[1], unused.getsockname()[1]
        unused.close()
        async with judged(to_the_port_that_is_asked_for, ports=(taken, expected)) as verdict:
            assert f"UDP port {expected} of" in verdict.text
        async with judged(to_the_port_that_is_asked_for, ports=(taken,)) as verdict:
            assert (verdict.forwards, verdict.text.endswith("no port that peers may map is free")) == (None, True)
