"""Has packets arrive on an interface as if they came from its link, on the kernel's own way for what it receives.

They are written to a TUN device of our own, from which the traffic control of the kernel redirects them: to the ingress
of the other interface, where they pass its traffic control, the netfilter hooks and routing like any other packet. The
interface itself is not changed. The device has no carrier, so that no network manager and no IPv6 address concerns it.
It ends with its descriptor, and so does the redirection, however this process ends.
"""

import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TUN = Path("/dev/net/tun")

# linux/if_tun.h
TUNSETIFF, TUNSETCARRIER = 0x400454CA, 0x400454E2
IFF_TUN, IFF_TAP, IFF_NO_PI = 0x0001, 0x0002, 0x1000

SIOCSIFFLAGS, SIOCGIFHWADDR, IFF_UP = 0x8914, 0x8927, 0x1  # linux/sockios.h, linux/if.h
ARPHRD_ETHER = 1  # linux/if_arp.h
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_IFREQ = struct.Struct("16sH6s16x")  # struct ifreq: name, and flags, or the link's type and address

_STRANGER = bytes.fromhex("02 00 5e 00 53 01")  # a locally administered address

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_TC_SECONDS = 10.0
_TC = (
    "qdisc add dev {device} clsact",
    "filter add dev {device} ingress protocol all u32 match u32 0 0 action mirred ingress redirect dev {interface}",
)


class Arrivals:
    """Has IP packets arrive on `interface`; a context manager, which raises OSError if the kernel refuses it."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._header: dict[int, bytes] = {4: b"", 6: b""}
        self._device = -1

    def __enter__(self) -> Self:
        self._device = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._open()
        except BaseException:
            os.close(self._device)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._device)

    def send(self, packet: bytes) -> None:
        """Have this IP packet arrive; most often it has gone its way when this returns. OSError."""
        os.write(self._device, self._header[packet[0] >> 4] + packet)

    def _open(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            # To an interface with Ethernet headers, packets without one would look like frames of somebody else's.
            kind, _ = _hardware(any_socket, os.fsencode(self._interface))
            flags = IFF_NO_PI | (IFF_TAP if kind == ARPHRD_ETHER else IFF_TUN)
            answer: bytes = fcntl.ioctl(self._device, TUNSETIFF, _IFREQ.pack(b"igd-probe%d", flags, b""))
            name = answer[:16].rstrip(b"\0")
            fcntl.ioctl(self._device, TUNSETCARRIER, struct.pack("i", 0))
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, _IFREQ.pack(name, IFF_UP, b""))
            if kind == ARPHRD_ETHER:
                _, to = _hardware(any_socket, name)
                ends = to + _STRANGER
                self._header = {version: ends + struct.pack(">H", each) for version, each in _ETHERTYPES.items()}
        for command in _TC:
            _tc([word.format(device=name.decode(), interface=self._interface) for word in command.split()])


def _hardware(any_socket: socket.socket, interface: bytes) -> tuple[int, bytes]:
    """Return the type of the interface's link (ARPHRD_*), and its address there."""
    answer: bytes = fcntl.ioctl(any_socket, SIOCGIFHWADDR, _IFREQ.pack(interface, 0, b""))
    _name, kind, address = _IFREQ.unpack(answer)
    return kind, address


def _tc(words: Sequence[str]) -> None:
    """Run the program tc of iproute2, which wg-quick needs too; OSError with its message if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program; the words are ours and an interface's name
            ["tc", *words],  # noqa: S607 - found in the system's own directories
            env={"PATH": _PATH, "LC_ALL": "C"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TC_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"tc: {error}") from error
    if done.returncode != 0:
        raise OSError(f"tc: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'failed'}")
