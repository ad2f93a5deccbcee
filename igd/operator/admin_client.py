"""The client side of `igd list` and `igd status`: HTTP on a unix socket, without slow imports."""

import http.client
import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

NAME = "admin.sock"
STATUS = "/status"
MAPPINGS = "/mappings"

TIMEOUT_SECONDS = 5.0


def get(directory: Path, path: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the daemon's STATUS or MAPPINGS; `directory` is its runtime directory. OSError if it does not answer."""
    with closing(_Connection(directory / NAME)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"invalid response: {error!r}") from error
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"response {response.status} {response.reason}")
    return json.loads(body)


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("igd", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
