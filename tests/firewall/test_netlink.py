"""The bytes of nfnetlink, and the socket against the real kernel."""

import contextlib
import errno
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.firewall.netlink import BatchError, Netlink, NetlinkError
from igd.firewall.nfnetlink import (
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_DONE,
    NLMSG_ERROR,
    Answer,
    Message,
    attribute,
    attributes,
    decode,
    nested,
    refusal,
    text,
    u8,
    u32,
    u64,
)
from tests.firewall.three_hosts import new_namespace, run

NFTABLES = 10
NEWTABLE, GETTABLE, DELTABLE, GETGEN = (NFTABLES << 8 | kind for kind in (0, 1, 2, 16))
CREATE = 0x400
INET = 1


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    """Return a socket in a network namespace of its own; the test is in it too."""
    with new_namespace():
        made = Netlink()
        yield made
        made.close()


def table(name: str) -> Message:
    return Message(NEWTABLE, INET, text(1, name), CREATE)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (u8(1, 6), "0500 0100 06 000000"),
        (u32(2, 0x01020304), "0800 0200 01020304"),
        (u64(4, 150_000), "0c00 0400 00000000000249f0"),
        (text(1, "abc"), "0800 0100 61626300"),
        (text(1, "abcd"), "0900 0100 6162636400 000000"),
        (attribute(9, b""), "0400 0900"),
        (nested(3, u8(1, 6), u8(2, 7)), "1400 0380 0500010006000000 0500020007000000"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the expected headers are those of a little-endian machine")
def test_attributes_are_padded_and_in_network_order(encoded: bytes, expected: str) -> None:
    assert encoded.hex() == expected.replace(" ", "")


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40)))
def test_attributes_read_back(written: dict[int, bytes]) -> None:
    encoded = b"".join(attribute(kind, value) for kind, value in written.items())
    assert attributes(encoded) == written
    assert attributes(attributes(nested(5, encoded))[5]) == written


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40), st.integers(0, 2**32 - 1)), max_size=5))
def test_messages_read_back(written: list[tuple[int, bytes, int]]) -> None:
    datagram = b"".join(Message(kind, INET, payload).encode(number) for kind, payload, number in written)
    assert [(answer.kind, answer.payload[4:], answer.sequence) for answer in decode(datagram)] == written


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder_in_another_way_than_it_says(junk: bytes) -> None:
    for read in (attributes, lambda data: list(decode(data))):
        with contextlib.suppress(ValueError):
            read(junk)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(NLMSG_ERROR, 0, 1, struct.pack("=i", 0) + bytes(16)), (0, "")),
        (Answer(NLMSG_ERROR, NLM_F_CAPPED, 1, struct.pack("=i", -errno.ENOENT) + bytes(16)), (errno.ENOENT, "")),
        (
            Answer(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, 1, struct.pack("=i16x", -22) + text(1, "no")),
            (errno.EINVAL, "no"),
        ),
        (  # uncapped: the request, 17 bytes and padding, lies between the number and the sentence
            Answer(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, struct.pack("=iI16x", -22, 17) + text(1, "no")),
            (errno.EINVAL, "no"),
        ),
        (Answer(NLMSG_DONE, 0, 1, struct.pack("=i", -errno.EINTR)), (errno.EINTR, "")),
        (Answer(NLMSG_DONE, 0, 1, b""), (0, "")),
    ],
)
def test_refusals(answer: Answer, expected: tuple[int, str]) -> None:
    assert refusal(answer) == expected


@pytest.mark.root
def test_a_transaction_is_done_as_a_whole(netlink: Netlink) -> None:
    netlink.transact(NFTABLES, [table("one"), table("two")])
    assert run("nft", "list", "tables").split() == ["table", "inet", "one", "table", "inet", "two"]


@pytest.mark.root
def test_a_refused_transaction_changes_nothing_and_names_every_bad_message(netlink: Netlink) -> None:
    missing = Message(DELTABLE, INET, text(1, "missing"))
    with pytest.raises(BatchError, match="ENOENT") as caught:
        netlink.transact(NFTABLES, [table("one"), missing, table("two"), missing])
    assert [(error.index, error.errno) for error in caught.value.errors] == [(1, errno.ENOENT), (3, errno.ENOENT)]
    assert run("nft", "list", "tables") == ""
    netlink.transact(NFTABLES, [table("one")])  # and no answer was left behind to be taken for this one's


@pytest.mark.root
def test_the_kernels_own_sentence_is_told(netlink: Netlink) -> None:
    with pytest.raises(BatchError, match="policy validation"):
        netlink.transact(NFTABLES, [table("x" * 300)])


@pytest.mark.root
def test_a_refused_subsystem_refuses_the_whole_batch(netlink: Netlink) -> None:
    with pytest.raises(BatchError) as caught:
        netlink.transact(99, [table("one")])
    assert [error.index for error in caught.value.errors] == [None]


@pytest.mark.root
def test_an_answer_that_never_comes_is_an_error(netlink: Netlink) -> None:
    netlink._socket.settimeout(0.01)
    with pytest.raises(NetlinkError, match="did not answer"):
        next(netlink._answers(12345))


@pytest.mark.root
def test_without_the_capability_the_kernel_refuses() -> None:
    """What it says is EPERM, for a transaction and a dump alike, and never silence."""
    program = """
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import Message
netlink, message = Netlink(), Message(10 << 8 | 16, 0)
for ask in (lambda: netlink.transact(10, [message]), lambda: netlink.dump(message)):
    try:
        ask()
    except FirewallError as error:
        print(error)
"""
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    with new_namespace():
        done = subprocess.run([*without, sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == ["netfilter: EPERM: Operation not permitted: CAP_NET_ADMIN is needed"] * 2
