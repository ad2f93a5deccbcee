"""PCP version 2: the messages of RFC 6887. Their payloads are in opcodes.py, their options in options.py."""

import enum
import struct
from dataclasses import dataclass

from igd.wire.malformed import InvalidRequest, Malformed
from igd.wire.pcp import opcodes
from igd.wire.pcp.opcodes import LAYOUTS, Announce, Payload
from igd.wire.pcp.options import (
    NO_OPTIONS,
    Address,
    Options,
    UnsupportedOption,
    decode_address,
    decode_options,
    encode_address,
    encode_options,
)

VERSION = 2

SERVER_PORT = 5351
"""The port to which clients send requests (§19.1)."""

CLIENT_PORT = 5350
"""The port to which the server sends announcements (§14.1)."""

MAX_MESSAGE_SIZE = 1100
"""In octets (§7)."""

RESPONSE_BIT = 0x80
"""The R bit, which is set in the octet of the opcode in responses (§7.1, §7.2)."""

SHORT_LIFETIME = 30
LONG_LIFETIME = 1800
"""The lifetimes of short lifetime errors and long lifetime errors, in seconds (§7.4)."""

# version, R and opcode, requested lifetime, client's address (§7.1)
_REQUEST_HEADER = struct.Struct("!BB2xI16s")
# version, R and opcode, result, lifetime, epoch, 96 reserved bits (§7.2)
_RESPONSE_HEADER = struct.Struct("!BBxBII12x")
_HEADER_SIZE = 24
_RESERVED = 12
"""The offset of the reserved bits in the header of a response."""


class Result(enum.IntEnum):
    """The result codes (§7.4)."""

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


SHORT_LIFETIME_ERRORS = frozenset(
    {Result.NETWORK_FAILURE, Result.NO_RESOURCES, Result.USER_EX_QUOTA, Result.CANNOT_PROVIDE_EXTERNAL}
)
"""All other errors are long lifetime errors (§7.4). CANNOT_PROVIDE_EXTERNAL can be either, depending on its reason."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for `lifetime` seconds (§7.1), 0 to delete (§15); `client` is the address that the client claims."""

    lifetime: int
    client: Address
    payload: Payload
    options: Options = NO_OPTIONS


class _ParseError(Malformed):
    """A request that cannot be parsed successfully, and the error result for it."""

    def __init__(self, result: Result, reason: str) -> None:
        super().__init__(reason)
        self.result = result


def decode_request(datagram: bytes, source: Address, epoch: int) -> Request:
    """Decode a datagram that `source` sent to the server's port; raise InvalidRequest with the response to it.

    The order of the checks is that of §8.2.
    """
    if len(datagram) < 2:
        raise InvalidRequest("shorter than a version and an opcode")
    if datagram[1] & RESPONSE_BIT:
        raise InvalidRequest("a response, not a request")
    if datagram[0] == VERSION and len(datagram) < _HEADER_SIZE:
        raise InvalidRequest("shorter than the header of a request")
    try:
        _validate_header(datagram, source)
        request = _parse(datagram)
        _validate_fields(request)
    except _ParseError as error:
        response = encode_error(datagram, error.result, epoch, parsed=False)
        raise InvalidRequest(error.reason, response) from error
    return request


def _validate_header(datagram: bytes, source: Address) -> None:
    version, opcode = datagram[:2]
    if version != VERSION:
        raise _ParseError(Result.UNSUPP_VERSION, f"version {version}")
    layout = LAYOUTS.get(opcode)
    min_size = _HEADER_SIZE + (layout.size if layout else 0)
    if not min_size <= len(datagram) <= MAX_MESSAGE_SIZE or len(datagram) % 4:
        raise _ParseError(Result.MALFORMED_REQUEST, f"opcode {opcode} with {len(datagram)} octets")
    client = datagram[8:_HEADER_SIZE]
    if client != encode_address(source):
        raise _ParseError(Result.ADDRESS_MISMATCH, f"client address {decode_address(client)} in a packet from {source}")
    if layout is None:
        raise _ParseError(Result.UNSUPP_OPCODE, f"opcode {opcode}")


def _parse(datagram: bytes) -> Request:
    _, opcode, lifetime, client = _REQUEST_HEADER.unpack_from(datagram)
    body, layout = datagram[_HEADER_SIZE:], LAYOUTS[opcode]
    try:
        options = decode_options(body[layout.size :], layout.options)
    except UnsupportedOption as error:
        raise _ParseError(Result.UNSUPP_OPTION, error.reason) from error
    except Malformed as error:
        raise _ParseError(Result.MALFORMED_OPTION, error.reason) from error
    return Request(lifetime, decode_address(client), opcodes.decode(opcode, body), options)


def _validate_fields(request: Request) -> None:
    """Reject a request whose fields contradict each other."""
    payload, options = request.payload, request.options
    if isinstance(payload, Announce):
        return
    first_port = options.port_set.first_internal_port if options.port_set else payload.internal_port
    rows = (
        # §11.3
        (payload.protocol == 0 and payload.internal_port != 0, Result.MALFORMED_REQUEST, "all protocols, one port"),
        # §13.1
        (options.third_party == request.client, Result.MALFORMED_REQUEST, "THIRD_PARTY is the client"),
        # §13.2
        (options.prefer_failure and payload.external_port == 0, Result.MALFORMED_OPTION, "PREFER_FAILURE, no port"),
        # §13.3
        (bool(options.filters) and request.lifetime == 0, Result.MALFORMED_OPTION, "FILTER in a deletion"),
        # RFC 7753 §4
        (first_port != payload.internal_port, Result.MALFORMED_OPTION, "PORT_SET from another port"),
    )
    for wrong, result, reason in rows:
        if wrong:
            raise _ParseError(result, reason)


def encode_response(lifetime: int, epoch: int, payload: Payload, options: Options = NO_OPTIONS) -> bytes:
    """Encode a success response, or an unsolicited one: a restart (§14.1), a changed mapping (§14.2).

    `lifetime` is the mapping's, in seconds; `epoch` is the number of seconds since state was lost (§8.5).
    """
    opcode, fields = opcodes.encode(payload)
    header = _RESPONSE_HEADER.pack(VERSION, RESPONSE_BIT | opcode, Result.SUCCESS, lifetime, epoch)
    datagram = header + fields + encode_options(options)
    assert len(datagram) <= MAX_MESSAGE_SIZE, "a response has no other options than its request"
    return datagram


def encode_error(request: bytes, result: Result, epoch: int, *, parsed: bool = True) -> bytes:
    """Encode the error response to a request datagram: a copy of it with the header of a response (§8.2).

    If the request was not `parsed` successfully, the reserved bits repeat the end of the client's address (§7.2).
    """
    copy = request[:MAX_MESSAGE_SIZE].ljust(_HEADER_SIZE, b"\0")
    copy += bytes(-len(copy) % 4)
    lifetime = SHORT_LIFETIME if result in SHORT_LIFETIME_ERRORS else LONG_LIFETIME
    header = _RESPONSE_HEADER.pack(VERSION, RESPONSE_BIT | request[1], result, lifetime, epoch)
    return header + copy[_HEADER_SIZE:] if parsed else header[:_RESERVED] + copy[_RESERVED:]
