"""nfnetlink: attributes, messages, batches, answers (bytes only), and the socket that carries them.

Sources: netlink(7), linux/netlink.h, linux/netfilter/nfnetlink.h. Netlink headers are in host order; what nf_tables and
ctnetlink put into attributes is in network order.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from igd.firewall.backend import FirewallError

NETLINK_NETFILTER = 12
SOL_NETLINK = 270

NFNL_SUBSYS_NFTABLES = 10  # linux/netfilter/nfnetlink.h
NFPROTO_INET = 1  # linux/netfilter.h
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10
NETLINK_CAP_ACK = 10  # an error need not carry our whole request back
NETLINK_EXT_ACK = 11  # but may carry a sentence about it

SO_SNDBUFFORCE = 32  # beyond what the operator set as everybody's limit; wants CAP_NET_ADMIN
SO_RCVBUFFORCE = 33

NLMSG_ERROR = 2
NLMSG_DONE = 3
NFNL_MSG_BATCH_BEGIN = 16
NFNL_MSG_BATCH_END = 17

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100  # in answers
NLM_F_ACK_TLVS = 0x200  # in answers

NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
_GENERIC = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, kind

_RECEIVE_SIZE = 1 << 16  # a dump comes in pieces of at most 32 KiB
_RECEIVE_BUFFER = 4 << 20  # an acknowledgement takes up to 1 KiB of it
_ANSWER_TIMEOUT = 10.0  # seconds; the kernel answers before the send returns, so only a lost answer takes as long
_DUMP_ATTEMPTS = 10


class NetlinkError(FirewallError):
    """The kernel refused a message: `errno` says why, `index` which of the call's messages (None: all of them)."""

    def __init__(self, number: int, text: str, index: int | None = None) -> None:
        name = errno.errorcode.get(number, str(number))
        hint = ": CAP_NET_ADMIN is needed" if number == errno.EPERM else ""
        super().__init__(f"netfilter: {name}: {text or os.strerror(number)}{hint}")
        self.errno = number
        self.index = index


class BatchError(FirewallError):
    """The kernel refused a transaction, and nothing of it was done; `errors` has what it said of each bad message."""

    def __init__(self, errors: Sequence[NetlinkError]) -> None:
        super().__init__("; ".join(dict.fromkeys(map(str, errors))))
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class Message:
    """One request: `kind` is subsystem << 8 | type, `family` an address family, `payload` attributes."""

    kind: int
    family: int
    payload: bytes = b""
    flags: int = 0
    resource: int = 0

    def encode(self, sequence: int, flags: int = 0) -> bytes:
        """Give the bytes that go to the kernel; `flags` are added to the message's own."""
        length = _HEADER.size + _GENERIC.size + len(self.payload)
        header = _HEADER.pack(length, self.kind, NLM_F_REQUEST | self.flags | flags, sequence, 0)
        return header + _GENERIC.pack(self.family, 0, self.resource) + self.payload + bytes(-length % 4)


class Answer(NamedTuple):
    """One message from the kernel, without its header; an nfnetlink payload still begins with its nfgenmsg.

    `port` is the address of the socket that caused it, or for which it is.
    """

    kind: int
    flags: int
    sequence: int
    payload: bytes
    port: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded to 4 bytes; its length field holds 65,531 bytes of value at most."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Encode a string attribute, with the NUL that nf_tables wants."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Encode an 8 bit attribute."""
    return attribute(kind, struct.pack(">B", value))


def u32(kind: int, value: int) -> bytes:
    """Encode a 32 bit attribute in network order."""
    return attribute(kind, struct.pack(">I", value))


def u64(kind: int, value: int) -> bytes:
    """Encode a 64 bit attribute in network order."""
    return attribute(kind, struct.pack(">Q", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode attributes that each come once; raise ValueError where a length is wrong."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            raise ValueError(f"attribute {kind & NLA_TYPE_MASK} of {length} bytes where {len(data) - offset} are left")
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + -length % 4
    return found


def body(payload: bytes) -> dict[int, bytes]:
    """Decode the attributes behind an nfnetlink message's nfgenmsg."""
    return attributes(payload[_GENERIC.size :])


def decode(data: bytes) -> Iterator[Answer]:
    """Take one datagram from the kernel apart; raise ValueError where a length is wrong."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise ValueError(f"message of {length} bytes where {len(data) - offset} are left")
        yield Answer(kind, flags, sequence, data[offset + _HEADER.size : offset + length], port)
        offset += length + -length % 4


def refusal(answer: Answer) -> tuple[int, str]:
    """Read an NLMSG_ERROR or NLMSG_DONE: the errno (0: done as asked) and the sentence about it, if there is one."""
    number = -struct.unpack_from("=i", answer.payload)[0] if len(answer.payload) >= 4 else 0
    if answer.kind != NLMSG_ERROR or not answer.flags & NLM_F_ACK_TLVS:
        return number, ""
    request_length = _HEADER.unpack_from(answer.payload, 4)[0]
    echoed = _HEADER.size if answer.flags & NLM_F_CAPPED else request_length + -request_length % 4
    sentence = attributes(answer.payload[4 + echoed :]).get(NLMSGERR_ATTR_MSG, b"")
    return number, sentence.rstrip(b"\0").decode(errors="replace")


class Netlink:
    """A blocking NETLINK_NETFILTER socket in the network namespace of the thread that made it.

    Use from one thread at a time. Trouble with the socket itself is a FirewallError too.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "no netfilter in this kernel") from error
        self._socket.settimeout(_ANSWER_TIMEOUT)
        self._socket.bind((0, 0))
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._sequence = 0
        self._grow(SO_RCVBUFFORCE, _RECEIVE_BUFFER)

    @property
    def port(self) -> int:
        """The socket's address: what it causes is told with it."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def transact(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Carry out `messages` of one subsystem as one transaction, or raise BatchError and do nothing."""
        if not messages:
            return
        edge = [
            Message(kind, socket.AF_UNSPEC, resource=subsystem) for kind in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)
        ]
        begin, *own, _end = numbers = self._numbers(len(messages) + 2)
        # Only the last message asks to be acknowledged: the kernel answers in order, and errors come without asking.
        flags = [0] * len(messages) + [NLM_F_ACK, 0]
        request = [edge[0], *messages, edge[1]]
        self._send(b"".join(m.encode(n, f) for m, n, f in zip(request, numbers, flags, strict=True)))
        errors = self._refusals(begin, own)
        if errors:
            raise BatchError(errors)

    def request(self, messages: Sequence[Message]) -> list[NetlinkError]:
        """Carry out `messages` one after another and give the refusals; each message stands for itself."""
        if not messages:
            return []
        numbers = self._numbers(len(messages))
        flags = [0] * (len(messages) - 1) + [NLM_F_ACK]
        self._send(b"".join(m.encode(n, f) for m, n, f in zip(messages, numbers, flags, strict=True)))
        return self._refusals(None, numbers)

    def dump(self, message: Message) -> list[bytes]:
        """Give the payloads of a dump; start anew when the kernel says that a change in between cut it short."""
        for _attempt in range(_DUMP_ATTEMPTS):
            payloads = self._dump_once(message)
            if payloads is not None:
                return payloads
        raise NetlinkError(errno.EINTR, "the kernel's table changes faster than it can be read")

    def _dump_once(self, message: Message) -> list[bytes] | None:
        (number,) = self._numbers(1)
        self._send(message.encode(number, NLM_F_DUMP))
        payloads: list[bytes] = []
        interrupted = False
        for answer in self._answers(number):
            interrupted = interrupted or bool(answer.flags & NLM_F_DUMP_INTR)
            if answer.kind in (NLMSG_ERROR, NLMSG_DONE):
                refused, sentence = refusal(answer)
                if refused not in (0, errno.EINTR):
                    raise NetlinkError(refused, sentence)
                interrupted = interrupted or refused == errno.EINTR
                break
            payloads.append(answer.payload)
        return None if interrupted else payloads

    def _refusals(self, begin: int | None, numbers: Sequence[int]) -> list[NetlinkError]:
        """Read until the last of `numbers` is answered, or the whole batch is refused in the name of its `begin`."""
        index = {number: position for position, number in enumerate(numbers)}
        refusals: list[NetlinkError] = []
        for answer in self._answers(*index, *(() if begin is None else (begin,))):
            refused, sentence = refusal(answer)
            if refused:
                refusals.append(NetlinkError(refused, sentence, index.get(answer.sequence)))
            if answer.sequence in (numbers[-1], begin):
                break
        return refusals

    def _answers(self, *numbers: int) -> Iterator[Answer]:
        """Give what the kernel answers to exactly these sequence numbers; raise NetlinkError when it stops."""
        expected = frozenset(numbers)
        while True:
            try:
                data, (sender, _groups) = self._socket.recvfrom(_RECEIVE_SIZE)
            except TimeoutError as error:
                raise NetlinkError(errno.ETIMEDOUT, "the kernel did not answer") from error
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._read_empty()
                raise NetlinkError(error.errno or 0, "") from error
            if sender == 0:  # another process may write to this socket as well
                yield from (answer for answer in decode(data) if answer.sequence in expected)

    def _read_empty(self) -> None:
        """Drop the answers that still found room: until then the kernel answers nothing, and does not say so again."""
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(_RECEIVE_SIZE)
        self._socket.settimeout(_ANSWER_TIMEOUT)

    def _send(self, data: bytes) -> None:
        try:
            # The kernel takes a batch as one piece, and refuses what exceeds the send buffer (60,000 mappings: 3 MB).
            if len(data) > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2:
                self._grow(SO_SNDBUFFORCE, 2 * len(data))
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "cannot send to the kernel") from error

    def _grow(self, option: int, size: int) -> None:
        # Without CAP_NET_ADMIN the buffer stays small: the kernel refuses whatever we ask then, and says it better.
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, option, size)

    def _numbers(self, count: int) -> list[int]:
        """Take `count` sequence numbers that were not in use lately."""
        first = self._sequence + 1
        self._sequence += count
        return [number & 0xFFFF_FFFF for number in range(first, first + count)]
