"""Writes a file whole or not at all, and leaves it everything but its content."""

import errno
import os
import shutil
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Give a file this content; OSError, and then it is as it was. Without a file of this name, make one of `mode`.

    The file is replaced at once, and keeps its owner, mode and other attributes. A symbolic link stays one. A file that
    is mounted by itself, as into a container, cannot be replaced, and is written in place.
    """
    file = path.resolve()
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
        try:
            new.write(content)
            new.flush()
            _take_attributes(file, new.name, mode)
            os.fsync(new.fileno())
            Path(new.name).replace(file)
        except BaseException as error:
            Path(new.name).unlink()
            if not isinstance(error, OSError) or error.errno != errno.EBUSY:
                raise
            file.write_bytes(content)


def _take_attributes(file: Path, new: str, mode: int) -> None:
    try:
        found = file.stat()
    except FileNotFoundError:
        Path(new).chmod(mode)
        return
    os.chown(new, found.st_uid, found.st_gid)
    shutil.copystat(file, new)
    os.utime(new)
