"""The server side of the commands that ask a daemon: HTTP on a unix socket, for its owner and root."""

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web

from igd.endpoints.long_body import LongBody
from igd.gateway import Gateway
from igd.operator.admin_client import NAME
from igd.operator.admin_paths import ACTIONS, MAPPINGS, STATUS, RefusedError
from igd.operator.status import mapping_as_json
from igd.turns import pieces

WRITTEN_AT_ONCE = 32
"""How many mappings of a list are written before requests get their turn: half a millisecond."""

Handler = Callable[[web.Request], Awaitable[web.Response]]


Action = Callable[[Any], Awaitable[Any]]
"""Does what a posted JSON value asks for, and returns a JSON value; RefusedError."""


class AdminSocket:
    """Serves what `status` returns, and the mappings, on a unix socket in `directory`, and does `actions` by path."""

    def __init__(
        self,
        gateway: Gateway,
        status: Callable[[], dict[str, Any]],
        directory: Path,
        actions: Mapping[str, Action],
    ) -> None:
        self._path = directory / NAME
        app = web.Application()
        app.router.add_get(STATUS, _status_handler(status))
        app.router.add_get(MAPPINGS, _mappings_handler(gateway))
        for path in ACTIONS:
            app.router.add_post(path, _action_handler(actions, path))
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
    async def respond(_request: web.Request) -> web.Response:
        written = list[bytes]()
        for piece in pieces(await gateway.mappings(), WRITTEN_AT_ONCE):
            async with gateway.turns:
                name_of = gateway.policies.name_of
                shown = [mapping_as_json(each, name_of(each.mapping.peer)) for each in piece]
                written += [b"," if written else b"[", json.dumps(shown)[1:-1].encode()]
        return web.Response(body=LongBody([*(written or [b"["]), b"]"], "application/json; charset=utf-8"))

    return respond


def _action_handler(actions: Mapping[str, Action], path: str) -> Handler:
    async def respond(request: web.Request) -> web.Response:
        try:
            return web.json_response(await actions[path](await request.json()))
        except RefusedError as refused:
            return web.json_response(str(refused), status=HTTPStatus.UNPROCESSABLE_ENTITY)
        except (KeyError, TypeError, ValueError) as error:
            return web.Response(text=repr(error), status=HTTPStatus.BAD_REQUEST)

    return respond


def _status_handler(status: Callable[[], dict[str, Any]]) -> Handler:
    async def respond(_request: web.Request) -> web.Response:
        return web.json_response(status())

    return respond
