"""The server side of `igd list` and `igd status`: HTTP on a unix socket, for its owner and root."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from igd.gateway import Gateway
from igd.operator.admin_client import MAPPINGS, NAME, STATUS
from igd.operator.status import mapping_as_json

Handler = Callable[[web.Request], Awaitable[web.Response]]


class AdminSocket:
    """Serves what `status` returns, and the mappings, on a unix socket in `directory`."""

    def __init__(self, gateway: Gateway, status: Callable[[], dict[str, Any]], directory: Path) -> None:
        self._path = directory / NAME
        app = web.Application()
        app.router.add_get(STATUS, _status_handler(status))
        app.router.add_get(MAPPINGS, _mappings_handler(gateway))
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


def _mappings_handler(gateway: Gateway) -> Handler:
    name_of = gateway.policies.name_of

    async def respond(_request: web.Request) -> web.Response:
        mappings = await gateway.mappings()

        def text() -> str:
            return json.dumps([mapping_as_json(mapped, name_of(mapped.mapping.peer)) for mapped in mappings])

        return web.json_response(text=await asyncio.to_thread(text))  # no request of a peer waits for a long list

    return respond


def _status_handler(status: Callable[[], dict[str, Any]]) -> Handler:
    async def respond(_request: web.Request) -> web.Response:
        return web.json_response(status())

    return respond
