"""The command line asks the daemon through a socket that nobody else may use."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from igd.operator.admin_client import MAPPINGS, NAME, STATUS, ask
from igd.operator.admin_socket import AdminSocket
from igd.operator.status import Status
from tests.gateway_harness import GatewayHarness, map_port

SHOWN = Status("0.1", 7, "wg0", "eth0", None, (), "pretend: asked for", "http://", "u", 12, 3, {"MapPort GRANTED": 4})


async def asked(directory: Path, what: str) -> Any:  # noqa: ANN401 - what JSON holds
    return await asyncio.to_thread(ask, directory, what)


@pytest.fixture
async def harness() -> GatewayHarness:
    return await GatewayHarness().start()


@pytest.fixture
async def admin(tmp_path: Path, harness: GatewayHarness) -> AsyncIterator[AdminSocket]:
    admin = AdminSocket(harness.gateway, lambda: SHOWN, tmp_path)
    await admin.open()
    yield admin
    await admin.close()


@pytest.mark.usefixtures("admin")
async def test_mappings_and_status_are_told(tmp_path: Path, harness: GatewayHarness) -> None:
    assert await asked(tmp_path, MAPPINGS) == []
    await harness.ask(map_port(description="a\x1b\nü"))
    (mapping,) = await asked(tmp_path, MAPPINGS)
    assert (mapping["external_port"], mapping["description"], mapping["lease"]) == (8043, "a\x1b\nü", 300)
    assert await asked(tmp_path, STATUS) == SHOWN.as_json() | {"matched_addresses": []}


@pytest.mark.usefixtures("admin")
async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


async def test_a_socket_that_was_left_behind_is_taken_over_and_ours_is_removed(
    tmp_path: Path, harness: GatewayHarness
) -> None:
    (tmp_path / NAME).touch()
    admin = AdminSocket(harness.gateway, lambda: SHOWN, tmp_path)
    await admin.open()
    assert await asked(tmp_path, MAPPINGS) == []
    await admin.close()
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_where_nobody_listens_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await asked(tmp_path, STATUS)


@pytest.mark.usefixtures("admin")
async def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        await asked(tmp_path, "/nothing")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", b"junk\r\n\r\n"])
async def test_a_daemon_that_dies_while_it_answers_is_an_error(tmp_path: Path, answer: bytes) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(die, tmp_path / NAME):
        with pytest.raises(OSError, match=r"."):
            await asked(tmp_path, STATUS)
