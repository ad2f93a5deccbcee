"""Feeds mutants of real messages to every decoder of what a peer or a STUN server sends.

A decoder may return or raise what it documents. Anything else is a finding, and so is a response that cannot be read.
"""

import asyncio
import contextlib
import random
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from igd.core.mapping import Endpoint, Pinhole, PortMapping, TransportProtocol
from igd.core.peers import Address
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    GetMappingAt,
    GetPeerState,
    GetPinholeTimeout,
    GetPinholeTraffic,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    PeerState,
    PinholeTimeout,
    PinholeTraffic,
    Refusal,
    RenewPinhole,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
    UnmapPinhole,
    UnmapPorts,
)
from igd.endpoints.upnp_http import _is_address
from igd.wire import stun
from igd.wire.malformed import InvalidRequest, Malformed
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import requests
from igd.wire.upnp import actions, soap, ssdp, xml
from igd.wire.upnp.description import CONTROL_PATHS
from igd.wire.upnp.devices import Service
from igd.wire.upnp.http_head import HttpError
from igd.wire.upnp.http_request import RequestOctets
from igd.wire.upnp.requests import Parties
from igd.wire.upnp.soap import UPnPError
from tests.fuzz import samples
from tests.fuzz.mutation import mutant
from tests.gateway_harness import LINK
from tests.wire.pcp import client_codec

FINDINGS = Path(__file__).parent / "findings"
"""Messages that found something; the first word of a file's name is the decoder's."""

SLOW_SECONDS = 1.0
"""Processor time for one message that is a finding: known messages take 20 to 200 microseconds."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder with the messages that are mutated, and words that mean something in them.

    `decode` decodes a message and responds to it; it raises whatever is a finding.
    """

    decode: Callable[[bytes], object]
    samples: tuple[bytes, ...]
    words: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A message, what it caused, and where, which tells kinds of findings apart."""

    decoder: str
    message: bytes
    what: str
    where: str

    def store(self) -> Path:
        """Write the message to FINDINGS and return its file."""
        path = FINDINGS / f"{self.decoder}-{zlib.crc32(self.message):08x}.bin"
        path.write_bytes(self.message)
        return path


def run(name: str, count: int, seed: str) -> Iterator[Finding]:
    """Feed `count` mutants to a decoder, the same ones for the same seed; return the findings, one of each kind."""
    decoder, rng, known = DECODERS[name], random.Random(f"{name} {seed}"), set()
    for _ in range(count):
        found = examine(name, mutant(rng, decoder.samples, decoder.words))
        if found and found.where not in known:
            known.add(found.where)
            yield found


def examine(name: str, message: bytes) -> Finding | None:
    """Return what is wrong with how a message is handled, or None."""
    begin = time.thread_time()
    try:
        DECODERS[name].decode(message)
    except Exception as error:  # noqa: BLE001 - any exception that gets here is a finding
        raised = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(name, message, traceback.format_exc(), f"{type(error)} {raised.filename} {raised.lineno}")
    seconds = time.thread_time() - begin
    return Finding(name, message, f"{seconds:.1f} s of processor time", "slow") if seconds > SLOW_SECONDS else None


def stored_findings() -> list[Path]:
    """Return the files with messages that found something."""
    return sorted(path for path in FINDINGS.iterdir() if path.suffix == ".bin")


# Replies as the gateway could give them

C1, C1_IPV6 = samples.CLIENT, samples.CLIENT6
ROOT = UUID("11111111-2222-3333-4444-555555555555")
EXTERNAL = IPv4Address("60.60.60.1")
_EPOCH = 77


_PINHOLE = Mapped(Pinhole(TransportProtocol.TCP, Endpoint(C1_IPV6, 80), "peer", "d", unique_id=9), 300)
_FIXED: dict[type[Request], Reply] = {
    RenewPinhole: _PINHOLE,
    UnmapPinhole: Unmapped((_PINHOLE.mapping,)),
    GetPinholeTraffic: PinholeTraffic(7),
    GetPinholeTimeout: PinholeTimeout(120),
    GetPeerState: PeerState(2, 7, pinholes_allowed=True),
    GetMappingAt: Mapped(PortMapping(TransportProtocol.TCP, 8043, Endpoint(C1, 80), "peer", "d"), 300),
    GetExternalAddress: ExternalAddress(EXTERNAL),
    GetLinkStatus: LINK,
}


def _reply(request: Request) -> Reply:
    match request:
        case MapPort(protocol, internal, port):
            return _mapped(protocol, internal, port or 50000, request)
        case UnmapPorts() | UnmapInternal():
            return Unmapped(())
        case GetMapping(protocol, port):
            return _mapped(protocol, Endpoint(C1, 80), port)
        case ListMappings():
            return MappingList(tuple(_mapped(protocol, Endpoint(C1, 80), 8043) for protocol in TransportProtocol))
        case _:
            return _FIXED[type(request)]


def _mapped(protocol: TransportProtocol, internal: Endpoint, port: int, asked: MapPort | None = None) -> Mapped:
    description, lifetime = (asked.description, asked.lifetime) if asked else ("d", 300)
    if internal.address.version == 6:
        return Mapped(Pinhole(protocol, internal, "peer", description), lifetime)
    remotes, count = (asked.remotes, asked.count) if asked else ((), 1)
    return Mapped(PortMapping(protocol, port, internal, "peer", description, remotes), lifetime, count)


# The decoders


def _search(message: bytes) -> None:
    with contextlib.suppress(Malformed):
        search = ssdp.parse(message)
        if search is not None:
            assert search.mx is None or 0 <= search.mx <= ssdp.LONGEST_MX
            assert len(ssdp.matches(search.target, ROOT)) <= len(ssdp.adverts(ROOT))


def _control(message: bytes) -> None:
    """Handle a SOAPAction header and, behind a line end, a body, at each control path and from two sources."""
    header, _, body = message.partition(b"\n")
    try:
        call = soap.decode(header.decode("utf-8", "surrogateescape"), body)
    except Malformed:
        return
    for service in CONTROL_PATHS.values():
        for source in (C1, C1_IPV6):
            response = _answer(service, call, source)
            assert len(xml.parse(response).children) == 1


def _answer(service: Service, call: soap.Call, source: Address) -> bytes:
    try:
        invocation = actions.decode(service, call, Parties(source, ROOT))
        outputs = invocation.answer(_reply(invocation.request) if invocation.request else None)
    except UPnPError as error:
        return soap.encode_error(error)
    response = soap.encode_response(call, outputs)
    assert soap.decode(f"{call.service_type}#{call.action}Response", response).arguments == dict(outputs)
    return response


def _document(message: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert xml.parse(message).name


def _port_control(message: bytes) -> None:
    """Handle a datagram of NAT-PMP or PCP from two sources, and decode the responses."""
    for source in (C1, C1_IPV6):
        for response in _responses(message, source):
            assert len(response) <= pcp.MAX_MESSAGE_SIZE
            assert response[1] & pcp.RESPONSE_BIT
            client_codec.decode(response)


def _responses(message: bytes, source: Address) -> Iterator[bytes]:
    try:
        exchange = requests.decode(message, source, _EPOCH, EXTERNAL, third_party=len(message) % 8 == 0)
    except InvalidRequest as invalid:
        if invalid.response is not None:
            yield invalid.response
        return
    if isinstance(exchange.request, Request):
        yield exchange.encode(_reply(exchange.request), _EPOCH, EXTERNAL)
        yield exchange.encode(Refusal.CONFLICT, _EPOCH, None)
    else:
        yield exchange.encode(None, _EPOCH, EXTERNAL)


def _stun(message: bytes) -> None:
    """Handle a datagram as the response to our request, whatever transaction it names."""
    with contextlib.suppress(Malformed):
        found = stun.decode_response(message, message[8:20])
        assert not isinstance(found, stun.Mapped) or 0 < found.mapped.port < 2**16


def _http(message: bytes) -> None:
    """Find the request at the beginning, or refuse it; aiohttp takes what was found for one whole request."""
    for own in (("10.100.0.1", 2869), ("fd77::1", 2869)):
        try:
            octets = RequestOctets(soap.LARGEST_BODY, own).receive(message)
        except HttpError:
            continue
        if octets is None:
            continue
        assert len(octets) <= len(message) + len("Host: 10.100.0.1:2869\r\nContent-Length: 1\r\n\r\n/")
        for parser in (HttpRequestParser, HttpRequestParserPy):
            found, upgraded, rest = _parser(parser).feed_data(octets)
            assert not upgraded
            assert not rest
            ((request, body),) = found
            assert body.is_eof(), "a response would wait for more of the body"
            _is_address(request.headers["Host"])
            with contextlib.suppress(Malformed):
                soap.named_action(request.headers)


def _parser(parser: type[HttpRequestParserPy]) -> HttpRequestParserPy:
    loop = _loop()
    return parser(BaseProtocol(loop), loop, 2**16, auto_decompress=False)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


DECODERS = {
    "ssdp": Decoder(_search, samples.SEARCHES, samples.HTTP_WORDS),
    "control": Decoder(_control, samples.CALLS, samples.XML_WORDS),
    "xml": Decoder(_document, samples.DOCUMENTS, samples.XML_WORDS),
    "portcontrol": Decoder(_port_control, samples.PORT_CONTROL, samples.PCP_WORDS),
    "stun": Decoder(_stun, samples.STUN, samples.STUN_WORDS),
    "http": Decoder(_http, samples.HEADS, samples.HTTP_WORDS),
}
