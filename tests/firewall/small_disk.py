"""A disk that can be filled."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


class SmallDisk:
    """A disk in memory that is mounted on a directory."""

    def __init__(self, directory: Path) -> None:
        self._filling = os.open(directory / "filling", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def leave(self, size: int) -> None:
        """Leave this many bytes free, in pages of 4 KiB."""
        os.ftruncate(self._filling, 0)
        rest = os.fstatvfs(self._filling)
        os.posix_fallocate(self._filling, 0, rest.f_bfree * rest.f_frsize - size)

    def close(self) -> None:
        """Close the file that fills the disk."""
        os.close(self._filling)


@contextlib.contextmanager
def mounted(directory: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a disk of this many bytes on a directory in the block."""
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", directory), check=True)
    try:
        with contextlib.closing(SmallDisk(directory)) as disk:
            yield disk
    finally:
        subprocess.run(("umount", "--lazy", directory), check=True)
