"""The nfnetlink socket: transactions, single requests and dumps."""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterable, Iterator, Sequence

from igd.firewall.backend import FirewallError
from igd.firewall.nfnetlink import (
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Answer,
    Message,
    decode,
    refusal,
)

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10  # errors without a copy of the request
NETLINK_EXT_ACK = 11  # errors with an explanation

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # may exceed net.core.wmem_max and rmem_max; need CAP_NET_ADMIN

_RECEIVE_SIZE = 1 << 16  # a dump comes in datagrams of at most 32 KiB
_RECEIVE_BUFFER = 4 << 20  # an acknowledgement takes up to 1 KiB of it
_ANSWER_TIMEOUT = 10.0  # seconds; the kernel answers before send() returns, so only a lost answer takes this long
_DUMP_ATTEMPTS = 10


class NetlinkError(FirewallError):
    """The kernel refused a message: `errno` says why, `index` which message of the call (None: all of them)."""

    def __init__(self, number: int, text: str, index: int | None = None) -> None:
        name = errno.errorcode.get(number, str(number))
        hint = ": CAP_NET_ADMIN is needed" if number == errno.EPERM else ""
        super().__init__(f"netfilter: {name}: {text or os.strerror(number)}{hint}")
        self.errno = number
        self.index = index


class InterruptedDumpError(NetlinkError):
    """The kernel's table was changed while it was read."""


class BatchError(FirewallError):
    """The kernel refused a transaction and carried out none of it; `errors` has one error for each bad message."""

    def __init__(self, errors: Sequence[NetlinkError]) -> None:
        super().__init__("; ".join(dict.fromkeys(map(str, errors))))
        self.errors = tuple(errors)


class Netlink:
    """A blocking NETLINK_NETFILTER socket in the network namespace of the thread that created it.

    Use it from one thread at a time. Errors of the socket itself are raised as NetlinkError too.
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
        self._sequence = itertools.count(1)
        self._enlarge(SO_RCVBUFFORCE, _RECEIVE_BUFFER)

    @property
    def port(self) -> int:
        """The socket's netlink address, which notifications of its changes carry."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def transact(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Carry out `messages` of one subsystem as one transaction, or raise BatchError and change nothing."""
        if not messages:
            return
        first, last = (
            Message(kind, socket.AF_UNSPEC, resource=subsystem) for kind in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)
        )
        # Only the last message requests an acknowledgement: the kernel answers in order, and always reports errors.
        flags = [0] * len(messages) + [NLM_F_ACK, 0]
        begin, *own, _end = self._send([first, *messages, last], flags)
        errors = self._refusals(begin, own)
        if errors:
            raise BatchError(errors)

    def request(self, messages: Sequence[Message]) -> list[NetlinkError]:
        """Carry out `messages` one after another, each on its own; return the refusals."""
        if not messages:
            return []
        return self._refusals(None, self._send(messages, [0] * (len(messages) - 1) + [NLM_F_ACK]))

    def exists(self, message: Message) -> bool:
        """Return whether the kernel has the object that a get request names; False for ENOENT."""
        for error in self.request([message]):
            if error.errno != errno.ENOENT:
                raise error
            return False
        return True

    def get(self, messages: Sequence[Message]) -> list[bytes | None]:
        """Return the payload that answers each get request, which names one object; None if there is none (ENOENT)."""
        if not messages:
            return []
        numbers = self._send(messages, [0] * (len(messages) - 1) + [NLM_F_ACK])
        found: dict[int, bytes | None] = dict.fromkeys(numbers)
        errors = []
        for answer in self._answers(*numbers):
            if answer.kind != NLMSG_ERROR:
                found[answer.sequence] = answer.payload
                continue
            refused, explanation = refusal(answer)
            if refused not in (0, errno.ENOENT):
                errors.append(NetlinkError(refused, explanation))
            if answer.sequence == numbers[-1]:
                break
        if errors:
            raise errors[0]
        return list(found.values())

    def dump(self, message: Message) -> list[bytes]:
        """Return the payloads of a dump; repeat it when a concurrent change interrupts it."""
        for _attempt in range(_DUMP_ATTEMPTS):
            try:
                return list(self.read_dump(message))
            except InterruptedDumpError:
                continue
        raise NetlinkError(errno.EINTR, "the kernel's table changes faster than it can be read")

    def dump_if_exists(self, message: Message) -> list[bytes]:
        """Return the payloads of a dump, or none if what it names does not exist (ENOENT)."""
        try:
            return self.dump(message)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return []

    def read_dump(self, message: Message) -> Iterator[bytes]:
        """Yield the payloads of a dump as they arrive; read all of them before the next request.

        Raise InterruptedDumpError at the end if a concurrent change interrupted it: payloads may then be missing.
        """
        (number,) = self._send([message], [NLM_F_DUMP])
        interrupted = False
        for answer in self._answers(number):
            interrupted = interrupted or bool(answer.flags & NLM_F_DUMP_INTR)
            if answer.kind in (NLMSG_ERROR, NLMSG_DONE):
                refused, explanation = refusal(answer)
                if refused not in (0, errno.EINTR):
                    raise NetlinkError(refused, explanation)
                interrupted = interrupted or refused == errno.EINTR
                break
            yield answer.payload
        if interrupted:
            raise InterruptedDumpError(errno.EINTR, "a change interrupted the dump")

    def _refusals(self, begin: int | None, numbers: Sequence[int]) -> list[NetlinkError]:
        """Read until the last of `numbers` is acknowledged or refused, or the whole batch is refused at its `begin`."""
        index = {number: position for position, number in enumerate(numbers)}
        refusals: list[NetlinkError] = []
        for answer in self._answers(*index, *(() if begin is None else (begin,))):
            if answer.kind != NLMSG_ERROR:  # what a get request asked for
                continue
            refused, explanation = refusal(answer)
            if refused:
                refusals.append(NetlinkError(refused, explanation, index.get(answer.sequence)))
            if answer.sequence in (numbers[-1], begin):
                break
        return refusals

    def _answers(self, *numbers: int) -> Iterator[Answer]:
        """Yield the kernel's answers to these sequence numbers; raise NetlinkError if none comes."""
        expected = frozenset(numbers)
        while True:
            try:
                data, (sender, _groups) = self._socket.recvfrom(_RECEIVE_SIZE)
            except TimeoutError as error:
                raise NetlinkError(errno.ETIMEDOUT, "the kernel did not answer") from error
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._drain()
                raise NetlinkError(error.errno or 0, "") from error
            if sender == 0:  # other processes may write to this socket as well
                yield from (answer for answer in decode(data) if answer.sequence in expected)

    def _drain(self) -> None:
        """Discard the answers that fitted into the buffer: until it is empty the kernel drops all further answers."""
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(_RECEIVE_SIZE)
        self._socket.settimeout(_ANSWER_TIMEOUT)

    def _send(self, messages: Sequence[Message], flags: Iterable[int]) -> list[int]:
        """Send the messages with these flags as one datagram; return their sequence numbers."""
        numbers = [next(self._sequence) & 0xFFFF_FFFF for _message in messages]
        self._send_datagram(b"".join(m.encode(n, f) for m, n, f in zip(messages, numbers, flags, strict=True)))
        return numbers

    def _send_datagram(self, data: bytes) -> None:
        try:
            # A batch is one datagram, which must fit into the send buffer (60,000 mappings: 3 MB).
            if len(data) > self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2:
                self._enlarge(SO_SNDBUFFORCE, 2 * len(data))
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "cannot send to the kernel") from error

    def _enlarge(self, option: int, size: int) -> None:
        # Without CAP_NET_ADMIN the buffer stays small: the request that follows is refused, with a better message.
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, option, size)
