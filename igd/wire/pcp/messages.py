"""PCP version 2: the messages of RFC 6887.

What they carry is in opcodes.py and options.py.
"""

import enum
import struct
from dataclasses import dataclass

from igd.wire.malformed import Malformed, Rejected
from igd.wire.pcp import opcodes, options
from igd.wire.pcp.opcodes import LAYOUTS, Announce, Payload
from igd.wire.pcp.options import NO_OPTIONS, Address, Options, UnsupportedOption, decode_address, encode_address

VERSION = 2

SERVER_PORT = 5351
"""Where requests go (§19.1)."""

CLIENT_PORT = 5350
"""Where announcements to all clients go (§14.1)."""

LONGEST_MESSAGE = 1100
"""Octets (§7)."""

ANSWER = 0x80
"""The R bit, in the octet of the opcode (§7.1, §7.2)."""

SHORT = 30
LONG = 1800
"""Seconds for which a passing and a lasting error are good (§7.4)."""

# version, R and opcode, requested lifetime, client's address (§7.1)
_REQUEST_HEAD = struct.Struct("!BB2xI16s")
# version, R and opcode, result, lifetime, epoch, 96 reserved bits (§7.2)
_RESPONSE_HEAD = struct.Struct("!BBxBII12x")
_HEAD_SIZE = 24
_RESERVED = 12
"""Where the 96 reserved bits of an answer's head begin."""


class Result(enum.IntEnum):
    """How a request ended (§7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


PASSING = frozenset({Result.NETWORK_FAILURE, Result.NO_RESOURCES, Result.USER_EX_QUOTA, Result.CANNOT_PROVIDE_EXTERNAL})
"""The errors of short lifetime (§7.4); of CANNOT_PROVIDE_EXTERNAL it depends on the reason, so that one can be told."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, for `lifetime` seconds (§7.1), 0: delete (§15); `client` is where it believes to be seen."""

    lifetime: int
    client: Address
    payload: Payload
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Response:
    """A success, or what is sent without being asked: a restart (§14.1), a mapping that changed (§14.2).

    `lifetime` is the mapping's, in seconds; `epoch` counts the seconds since state was lost (§8.5).
    """

    lifetime: int
    epoch: int
    payload: Payload
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A failure, good for `lifetime` seconds (§7.4).

    `result` is a Result, or a number that is none yet; `payload` is the request's, None where it cannot be read.
    """

    result: int
    lifetime: int
    epoch: int
    opcode: int
    payload: Payload | None


class _Failure(Malformed):
    """A request that fails before it is understood."""

    def __init__(self, result: Result, reason: str) -> None:
        super().__init__(reason)
        self.result = result


def decode_request(datagram: bytes, source: Address, epoch: int) -> Request:
    """Read what came from `source` to the server's port; raise Rejected, with the answer, in the order of §8.2."""
    if len(datagram) < 2:
        raise Rejected("shorter than a version and an opcode")
    if datagram[1] & ANSWER:
        raise Rejected("an answer, not a request")
    if datagram[0] == VERSION and len(datagram) < _HEAD_SIZE:
        raise Rejected("shorter than the head of a request")
    try:
        _check_shape(datagram, source)
        request = _read(datagram)
        _check_sense(request)
    except _Failure as failure:
        answer = encode_error(datagram, failure.result, epoch, understood=False)
        raise Rejected(failure.reason, answer) from failure
    return request


def _check_shape(datagram: bytes, source: Address) -> None:
    version, opcode = datagram[:2]
    if version != VERSION:
        raise _Failure(Result.UNSUPP_VERSION, f"version {version}")
    layout = LAYOUTS.get(opcode)
    shortest = _HEAD_SIZE + (layout.size if layout else 0)
    if not shortest <= len(datagram) <= LONGEST_MESSAGE or len(datagram) % 4:
        raise _Failure(Result.MALFORMED_REQUEST, f"opcode {opcode} with {len(datagram)} octets")
    if datagram[8:_HEAD_SIZE] != encode_address(source):
        raise _Failure(Result.ADDRESS_MISMATCH, f"{source} believes itself {decode_address(datagram[8:_HEAD_SIZE])}")
    if layout is None:
        raise _Failure(Result.UNSUPP_OPCODE, f"opcode {opcode}")


def _read(datagram: bytes) -> Request:
    _, opcode, lifetime, client = _REQUEST_HEAD.unpack_from(datagram)
    payload, rest = _payload_and_rest(opcode, datagram)
    try:
        decoded = options.decode(rest, LAYOUTS[opcode].options)
    except UnsupportedOption as error:
        raise _Failure(Result.UNSUPP_OPTION, error.reason) from error
    except Malformed as error:
        raise _Failure(Result.MALFORMED_OPTION, error.reason) from error
    return Request(lifetime, decode_address(client), payload, decoded)


def _payload_and_rest(opcode: int, datagram: bytes) -> tuple[Payload, bytes]:
    body = datagram[_HEAD_SIZE:]
    return opcodes.decode(opcode, body), body[LAYOUTS[opcode].size :]


def _check_sense(request: Request) -> None:
    """Refuse requests whose parts contradict each other."""
    payload, options = request.payload, request.options
    if isinstance(payload, Announce):
        return
    rows = (
        # §11.3
        (payload.protocol == 0 and payload.internal_port != 0, Result.MALFORMED_REQUEST, "all protocols, one port"),
        # §13.1
        (options.third_party == request.client, Result.MALFORMED_REQUEST, "the third party is the client"),
        # §13.2
        (options.prefer_failure and payload.external_port == 0, Result.MALFORMED_OPTION, "no port or none at all"),
        # §13.3
        (bool(options.filters) and request.lifetime == 0, Result.MALFORMED_OPTION, "a filter for what is deleted"),
        # RFC 7753 §4
        (
            options.port_set is not None and options.port_set.first_internal_port != payload.internal_port,
            Result.MALFORMED_OPTION,
            "two first internal ports",
        ),
    )
    for wrong, result, reason in rows:
        if wrong:
            raise _Failure(result, reason)


def encode_request(request: Request) -> bytes:
    """Give the datagram that asks for `request`."""
    opcode, fields = opcodes.encode(request.payload)
    head = _REQUEST_HEAD.pack(VERSION, opcode, request.lifetime, encode_address(request.client))
    return head + fields + options.encode(request.options)


def encode_response(response: Response) -> bytes:
    """Give the datagram of a success, or of what nobody asked for (§14)."""
    opcode, fields = opcodes.encode(response.payload)
    head = _RESPONSE_HEAD.pack(VERSION, ANSWER | opcode, Result.SUCCESS, response.lifetime, response.epoch)
    datagram = head + fields + options.encode(response.options)
    assert len(datagram) <= LONGEST_MESSAGE, "an answer has no options but those of the request"
    return datagram


def encode_error(
    request: bytes, result: Result, epoch: int, *, lifetime: int | None = None, understood: bool = True
) -> bytes:
    """Give the answer to a request, as it came, that fails: a copy of it with another head (§8.2).

    `lifetime` is in seconds, None: as §7.4 has it. Of a request that was not `understood`, the reserved bits show
    the end of the client's address (§7.2).
    """
    copy = request[:LONGEST_MESSAGE].ljust(_HEAD_SIZE, b"\0")
    copy += bytes(-len(copy) % 4)
    if lifetime is None:
        lifetime = SHORT if result in PASSING else LONG
    head = _RESPONSE_HEAD.pack(VERSION, ANSWER | request[1], result, lifetime, epoch)
    return head[:_RESERVED] + copy[_RESERVED:] if not understood else head + copy[_HEAD_SIZE:]


def decode_response(datagram: bytes) -> Response | ErrorResponse:
    """Read what came to a client; raise Malformed where it is no answer of version 2 (§8.3)."""
    if not _HEAD_SIZE <= len(datagram) <= LONGEST_MESSAGE or len(datagram) % 4:
        raise Malformed(f"an answer of {len(datagram)} octets")
    version, octet, result, lifetime, epoch = _RESPONSE_HEAD.unpack_from(datagram)
    if version != VERSION:
        raise Malformed(f"version {version}")
    if not octet & ANSWER:
        raise Malformed("a request, not an answer")
    opcode = octet & ~ANSWER
    layout = LAYOUTS.get(opcode)
    payload, rest = None, b""
    if layout is not None and len(datagram) >= _HEAD_SIZE + layout.size:
        payload, rest = _payload_and_rest(opcode, datagram)
    if result != Result.SUCCESS:
        return ErrorResponse(result, lifetime, epoch, opcode, payload)
    if layout is None or payload is None:
        raise Malformed(f"opcode {opcode} with {len(datagram)} octets")
    return Response(lifetime, epoch, payload, options.decode(rest, layout.options, lenient=True))
