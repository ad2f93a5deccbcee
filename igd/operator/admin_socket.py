"""HTTP on a unix socket: the daemon's side of `igd list` and `igd status`. Its owner and root may ask."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from igd.gateway import Gateway
from igd.operator.admin_client import MAPPINGS, NAME, STATUS
from igd.operator.status import Status, mapping_as_json


class AdminSocket:
    """The daemon's side, in the runtime directory."""

    def __init__(self, gateway: Gateway, status: Callable[[], Status], directory: Path) -> None:
        self._path = directory / NAME
        app = web.Application()
        app.router.add_get(STATUS, _answer(lambda: status().as_json()))
        app.router.add_get(MAPPINGS, _answer(lambda: [mapping_as_json(mapped) for mapped in gateway.mappings()]))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def open(self) -> None:
        """Listen; whoever holds the interface's lock may take over a socket that was left behind. OSError."""
        await self._runner.setup()
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)  # nobody may connect even for the moment before a chmod
        try:
            await web.UnixSite(self._runner, self._path).start()
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def _answer(give: Callable[[], Any]) -> Callable[[web.Request], Any]:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(give())

    return answer
