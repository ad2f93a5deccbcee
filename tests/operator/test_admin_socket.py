"""The command line queries the daemon through a socket that only root and its owner may use."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from igd.operator.admin_client import NAME, get
from igd.operator.admin_paths import MAPPINGS, STATUS
from igd.operator.admin_socket import WRITTEN_AT_ONCE, AdminSocket
from tests.gateway_harness import GatewayHarness, entry, map_port

SHOWN: dict[str, object] = {
    "external_address": None,
    "matched_addresses": [],
    "uptime": 12,
    "decisions": {"MapPort GRANTED": 4},
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a time limit that only a hang exceeds."""
    monkeypatch.setattr("igd.operator.admin_client.TIMEOUT_SECONDS", 60.0)


async def fetched(directory: Path, path: str) -> Any:  # noqa: ANN401 - any JSON value
    return await asyncio.to_thread(get, directory, path)


@pytest.fixture
async def harness() -> GatewayHarness:
    return await GatewayHarness().start()


@pytest.fixture
async def admin(tmp_path: Path, harness: GatewayHarness) -> AsyncIterator[AdminSocket]:
    admin = AdminSocket(harness.gateway, lambda: SHOWN, tmp_path, {})
    await admin.open()
    yield admin
    await admin.close()


@pytest.mark.usefixtures("admin")
async def test_mappings_and_status_are_served(tmp_path: Path, harness: GatewayHarness) -> None:
    assert await fetched(tmp_path, MAPPINGS) == []
    await harness.ask(map_port(description="a\x1b\nü"))
    (mapping,) = await fetched(tmp_path, MAPPINGS)
    assert (mapping["external_port"], mapping["description"], mapping["lease"]) == (8043, "a\x1b\nü", 300)
    assert await fetched(tmp_path, STATUS) == SHOWN


@pytest.mark.usefixtures("admin")
@pytest.mark.parametrize("count", [WRITTEN_AT_ONCE, 2 * WRITTEN_AT_ONCE + 1])
async def test_a_list_that_is_written_in_pieces(tmp_path: Path, harness: GatewayHarness, count: int) -> None:
    await harness.maintenance.start([entry(port) for port in range(2000, 2000 + count)], None, [])
    assert [each["external_port"] for each in await fetched(tmp_path, MAPPINGS)] == list(range(2000, 2000 + count))


@pytest.mark.usefixtures("admin")
async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


async def test_a_stale_socket_is_replaced_and_removed_at_the_end(tmp_path: Path, harness: GatewayHarness) -> None:
    (tmp_path / NAME).touch()
    admin = AdminSocket(harness.gateway, lambda: SHOWN, tmp_path, {})
    await admin.open()
    assert await fetched(tmp_path, MAPPINGS) == []
    await admin.close()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the names alone


async def test_a_missing_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await fetched(tmp_path, STATUS)


@pytest.mark.usefixtures("admin")
async def test_an_unknown_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        await fetched(tmp_path, "/nothing")


@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", b"junk\r\n\r\n"])
async def test_an_incomplete_response_is_an_error(tmp_path: Path, response: bytes) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    async with await asyncio.start_unix_server(die, tmp_path / NAME):
        with pytest.raises(OSError, match=r"."):
            await fetched(tmp_path, STATUS)
