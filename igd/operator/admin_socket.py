"""The server side of `igd list` and `igd status`: HTTP on a unix socket, for its owner and root."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from igd.gateway import Gateway
from igd.operator.admin_client import MAPPINGS, NAME, STATUS
from igd.operator.status import mapping_as_json


class AdminSocket:
    """Serves what `status` returns, and the mappings, on a unix socket in `directory`."""

    def __init__(self, gateway: Gateway, status: Callable[[], dict[str, Any]], directory: Path) -> None:
        self._path = directory / NAME
        app = web.Application()
        app.router.add_get(STATUS, _handler(status))
        app.router.add_get(MAPPINGS, _handler(lambda: _mappings(gateway)))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def open(self) -> None:
        """Listen, in place of a stale socket: the caller holds the interface's lock, so no daemon uses it. OSError."""
        await self._runner.setup()
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)  # a chmod afterwards would leave a moment in which anyone can connect
        try:
            await web.UnixSite(self._runner, self._path).start()
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def _mappings(gateway: Gateway) -> list[dict[str, Any]]:
    name_of = gateway.policies.name_of
    return [mapping_as_json(mapped, name_of(mapped.mapping.peer)) for mapped in gateway.mappings()]


def _handler(value: Callable[[], Any]) -> Callable[[web.Request], Any]:
    async def respond(_request: web.Request) -> web.Response:
        return web.json_response(value())

    return respond
