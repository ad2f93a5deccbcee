"""The client side of the commands that ask a daemon: HTTP on a unix socket, without slow imports.

Root asks, in a directory of the daemon's user: whoever controls that user can answer anything, or put something else in
the socket's place.
"""

import http.client
import json
import socket
import stat
import struct
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd.operator.admin_paths import RefusedError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

NAME = "admin.sock"

TIMEOUT_SECONDS = 30.0
"""The time limit of a whole answer."""

MAX_BYTES = 64 << 20
"""The largest answer: 60,000 mappings with long descriptions have less than half of it."""

_CREDENTIALS = struct.Struct("=3i")  # struct ucred of unix(7): process, user, group


def get(directory: Path, path: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return what the daemon answers to GET for this path (admin_paths); `directory` is its runtime directory.

    OSError if it does not answer, or too much, or not in time.
    """
    return _ask(directory, "GET", path)


def post(directory: Path, path: str, value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Have the daemon do what this path and JSON value ask for, and return its answer; OSError, RefusedError."""
    return _ask(directory, "POST", path, json.dumps(value).encode())


def _ask(directory: Path, method: str, path: str, sent: bytes | None = None) -> Any:  # noqa: ANN401 - any JSON value
    with closing(_Connection(directory / NAME)) as connection:
        try:
            connection.request(method, path, sent)
            response = connection.getresponse()
            body = response.read(MAX_BYTES)
            if response.read(1):
                raise OSError(f"its answer has more than {MAX_BYTES >> 20} MB")
        except http.client.HTTPException as error:
            raise OSError(f"invalid response: {error!r}") from error
    if response.status not in {http.HTTPStatus.OK, http.HTTPStatus.UNPROCESSABLE_ENTITY}:
        raise OSError(f"response {response.status} {response.reason}")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OSError(f"invalid response: {error!r}") from error
    if response.status == http.HTTPStatus.UNPROCESSABLE_ENTITY:
        raise RefusedError(str(answer))
    return answer


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("igd", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket of the daemon, not to one of another user behind a link; OSError."""
        assert self.timeout is not None, "the class sets it"
        file = self._path.lstat()
        if not stat.S_ISSOCK(file.st_mode):
            raise OSError(f"{self._path} is not a socket")
        self.sock = _Socket(self.timeout)
        self.sock.connect(str(self._path))
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _process, user, _group = _CREDENTIALS.unpack(credentials)
        if user != file.st_uid:
            raise OSError(f"{self._path} leads to another user's socket")


class _Socket(socket.socket):
    """A unix socket that can be used for `seconds`: a time limit for each part of an answer would not end it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(socket.AF_UNIX)
        self.settimeout(seconds)
        self._deadline = time.monotonic() + seconds

    def recv_into(self, buffer: "Buffer", nbytes: int = 0, flags: int = 0) -> int:
        """Receive as much as there is; TimeoutError after the deadline."""
        rest = self._deadline - time.monotonic()
        if rest <= 0:
            raise TimeoutError("timed out")
        self.settimeout(rest)
        return super().recv_into(buffer, nbytes, flags)
