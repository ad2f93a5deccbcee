"""What `igd list` and `igd status` ask the daemon: HTTP on its unix socket, without what takes long to import."""

import http.client
import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

NAME = "admin.sock"
STATUS = "/status"
MAPPINGS = "/mappings"

ANSWER_SECONDS = 5.0


def ask(directory: Path, what: str) -> Any:  # noqa: ANN401 - what JSON holds
    """Ask the daemon whose runtime directory this is for STATUS or MAPPINGS; OSError where none answers."""
    with closing(_Connection(directory / NAME)) as connection:
        try:
            connection.request("GET", what)
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"the daemon did not answer: {error!r}") from error
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"the daemon answered {response.status} {response.reason}")
    return json.loads(body)


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("igd", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
