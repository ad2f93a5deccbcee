"""Proof that a process is the igd that holds a lock file, for root, who signals it.

The file lies in a directory of the service's user, and whoever controls that user can write any process id into it.
"""

import os
import re
import stat
from pathlib import Path

_HELD = re.compile(r"\d+: FLOCK +ADVISORY +WRITE +(\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ")
"""A line of /proc/locks (proc(5)) for a lock that is held, not waited for: process, device and inode."""


def opened(path: Path, flags: int = 0) -> int:
    """Open a lock file for reading and writing, for its owner only if it is created; OSError.

    Nothing else is opened that somebody may have put in its place: not a symlink, not a FIFO, whose opening would wait,
    not a hard link to a file of another user.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o600)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise OSError(f"{path} is not a lock file: delete it")


def objection(lock: os.stat_result, process: int, interface: str) -> str:
    """Return why this process is not the igd that holds the lock, or "" if it is. OSError if it does not exist."""
    directory = Path("/proc", str(process))
    users = set(re.findall(r"(?m)^Uid:(.*)$", (directory / "status").read_text(encoding="ascii"))[0].split())
    if users not in ({str(lock.st_uid)}, {"0"}):
        return f"it runs as user {'/'.join(sorted(users))}, and the lock belongs to user {lock.st_uid}"
    if (process, lock.st_ino) not in _held():
        return "it does not hold the lock"
    words = (directory / "cmdline").read_bytes().split(b"\0")
    if not ({b"run", os.fsencode(interface)} <= set(words) and b"igd" in map(os.path.basename, words)):
        return f'its command is not "igd run {interface}"'
    return ""


def _held() -> set[tuple[int, int]]:
    """Return the processes that hold locks, with the inodes of the files.

    The devices are left out: on some filesystems (btrfs, overlay) the kernel has another number here than in stat(2).
    """
    found = _HELD.findall(Path("/proc/locks").read_text(encoding="ascii"))
    return {(int(process), int(inode)) for process, inode in found}
