"""A disk that can be filled without anybody else's noticing."""

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # linux/sched.h, linux/mount.h
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class SmallDisk:
    """A disk that nobody else has, and of which this process alone knows; it is gone when its last file is closed.

    For the calling thread, for the rest of its life, `directory` is on it.
    """

    def __init__(self, directory: Path, size: int) -> None:
        _checked(_libc.unshare(CLONE_NEWNS))
        _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        _checked(_libc.mount(b"tmpfs", bytes(directory), b"tmpfs", 0, f"size={size}".encode()))
        self._filling = os.open(directory / "filling", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def leave(self, size: int) -> None:
        """Leave this many bytes free, in pages of 4 KiB."""
        os.ftruncate(self._filling, 0)
        rest = os.fstatvfs(self._filling)
        os.posix_fallocate(self._filling, 0, rest.f_bfree * rest.f_frsize - size)

    def close(self) -> None:
        """Return it back."""
        os.close(self._filling)
