"""async-upnp-client's IgdDevice, with which Home Assistant asks: every method, and its subscription to events."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from async_upnp_client.aiohttp import AiohttpNotifyServer, AiohttpRequester
from async_upnp_client.client import UpnpService, UpnpStateVariable
from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.exceptions import UpnpActionError
from async_upnp_client.profiles.igd import FirewallStatus, IgdDevice, PortMappingEntry

from tests.e2e.control_points.reach import (
    C1_IPV6,
    assert_closed,
    assert_dropped,
    assert_reached,
    assert_reached_by_ipv6,
)
from tests.e2e.serving import C1, GATEWAY, PUBLIC, upnpc
from tests.lab import PATIENCE, Lab
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

ANY = IPv4Address(0)
"""Any remote host: IgdDevice can send no empty one when it adds or deletes."""

LEASE = timedelta(minutes=5)

TRIED_ELSEWHERE = {
    "async_search",
    "async_discover",  # the same with its own timeout
    "async_subscribe_services",
    "async_unsubscribe_services",
}


def location(version: int) -> str:
    return f"http://{GATEWAY}:2869/{version}/device.xml"


def with_device(lab: Lab, version: int, use: Callable[[IgdDevice], Awaitable[None]]) -> None:
    """Run this in c1, with an IgdDevice of this version's description."""

    async def run() -> None:
        device = await UpnpFactory(AiohttpRequester()).async_create_device(location(version))
        await use(IgdDevice(device, None))

    with lab.c1.entered():
        asyncio.run(run())


class Calls:
    """Calls methods of an IgdDevice, and knows which."""

    def __init__(self, device: IgdDevice) -> None:
        self._device = device
        self.called: set[str] = set()

    async def __call__(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - as the methods return
        """Call the method whose name ends in `method`."""
        self.called.add(f"async_{method}")
        return await getattr(self._device, f"async_{method}")(*arguments)

    async def refused(self, method: str, *arguments: object) -> int | None:
        """Call one that fails, and return the error's code."""
        with pytest.raises(UpnpActionError) as refusal:
            await self(method, *arguments)
        return refusal.value.error_code


def test_search(served: Lab) -> None:
    with served.c1.entered():
        found = asyncio.run(IgdDevice.async_search(timeout=1))
    assert {response["location"] for response in found} == {location(1), location(2)}


@pytest.mark.parametrize("version", [1, 2])
def test_every_method(served: Lab, version: int) -> None:
    async def use(device: IgdDevice) -> None:
        call = Calls(device)
        await _reads(call)
        await _is_refused(call)
        await _maps(call, served, 9200 + version)
        await _opens_a_pinhole(call, served, 8210 + version)
        methods = {name for name in dir(IgdDevice) if name.startswith("async_")}
        assert call.called == methods - TRIED_ELSEWHERE

    with_device(served, version, use)


async def _reads(call: Calls) -> None:
    assert await call("get_external_ip_address") == PUBLIC
    assert (await call("get_status_info")).connection_status == "Connected"
    assert (await call("get_connection_type_info")).connection_type == "IP_Routed"
    assert await call("get_nat_rsip_status") == (True, False)
    assert (await call("get_common_link_properties")).physical_link_status == "Up"
    assert await call("get_enabled_for_internet") is True
    for counter in ("bytes_received", "bytes_sent", "packets_received", "packets_sent"):
        assert await call(f"get_total_{counter}") > 0
    polled = await call("poll_traffic_data", set())
    assert polled.bytes_received is None
    state = await call("get_traffic_and_status_data")
    assert (state.connection_status, state.external_ip_address) == ("Connected", PUBLIC)
    assert state.bytes_received > 0
    # An action of no standard, which the description does not have:
    assert await call("get_port_mapping_number_of_entries") is None


async def _is_refused(call: Calls) -> None:
    """Nothing of the server's own connection is a peer's to change; what it is already is accepted."""
    await call("request_connection")
    await call("set_connection_type", "IP_Routed")
    await call("set_default_connection_service", await call("get_default_connection_service"))
    assert await call.refused("set_connection_type", "IP_Bridged") == 731
    assert await call.refused("set_enabled_for_internet", False) == 606  # noqa: FBT003
    assert await call.refused("request_termination") == 606
    assert await call.refused("force_termination") == 606


async def _maps(call: Calls, lab: Lab, port: int) -> None:
    await call("add_port_mapping", ANY, port, "TCP", port, IPv4Address(C1), True, "ha", LEASE)  # noqa: FBT003
    assert_reached(lab, port, port)
    entry = await call("get_specific_port_mapping_entry", None, port, "TCP")
    expected = PortMappingEntry(
        None, port, "TCP", port, IPv4Address(C1), enabled=True, description="ha", lease_duration=None
    )
    assert entry._replace(lease_duration=None) == expected
    assert timedelta(0) < entry.lease_duration <= LEASE
    assert port in [listed.external_port for listed in await _listed(call)]
    await call("delete_port_mapping", ANY, port, "TCP")
    assert_closed(lab, port)
    assert await call.refused("get_specific_port_mapping_entry", None, port, "TCP") == 714


async def _listed(call: Calls) -> list[PortMappingEntry]:
    entries: list[PortMappingEntry] = []
    with contextlib.suppress(UpnpActionError):  # behind the last
        while True:
            entries.append(await call("get_generic_port_mapping_entry", len(entries)))
    assert await call.refused("get_generic_port_mapping_entry", len(entries)) == 713
    return entries


async def _opens_a_pinhole(call: Calls, lab: Lab, port: int) -> None:
    """The address `::` is how it writes any remote host; it cannot ask whether a pinhole works."""
    assert await call("get_firewall_status") == FirewallStatus(True, True)  # noqa: FBT003
    pinhole = await call("add_pinhole", IPv6Address(0), 0, IPv6Address(C1_IPV6), port, 6, LEASE)
    assert await call("get_pinhole_packets", pinhole) == 0
    assert_reached_by_ipv6(lab, port)
    assert await call("get_pinhole_packets", pinhole) > 0
    await call("update_pinhole", pinhole, 600)
    await call("delete_pinhole", pinhole)
    assert_dropped(lab, port)
    assert await call.refused("delete_pinhole", pinhole) == 704


def test_of_a_lease_the_seconds_are_sent_without_the_days(served: Lab) -> None:
    """So that one of a day is 0 seconds, which asks for no end."""

    async def use(device: IgdDevice) -> None:
        call = Calls(device)
        target = ("TCP", 9231, IPv4Address(C1), True, "ha", timedelta(days=1))
        await call("add_port_mapping", ANY, 9231, *target)
        entry = await call("get_specific_port_mapping_entry", None, 9231, "TCP")
        assert entry.lease_duration > timedelta(days=1)

    with_device(served, 1, use)


@pytest.mark.parametrize("version", [1, 2])
def test_events(served: Lab, version: int) -> None:
    """Initial values, a change by another program, a renewal, and none after the end of the subscription."""
    needs("upnpc")
    with served.c1.entered():
        asyncio.run(_watch(served, version))


async def _watch(lab: Lab, version: int) -> None:
    requester = AiohttpRequester()
    server = AiohttpNotifyServer(requester, source=(C1, 0))
    await server.async_start_server()
    device = await UpnpFactory(requester).async_create_device(location(version))
    igd = IgdDevice(device, server.event_handler)
    news = asyncio.Event()

    def heard(_service: UpnpService, _variables: Sequence[UpnpStateVariable[Any]]) -> None:
        news.set()

    async def holds(condition: Callable[[], bool]) -> None:
        while not condition():
            news.clear()
            await news.wait()

    igd.on_event = heard
    async with asyncio.timeout(PATIENCE):
        await igd.async_subscribe_services()
        await holds(lambda: None not in (igd.external_ip_address, igd.port_mapping_number_of_entries))
        assert (igd.external_ip_address, igd.connection_status) == (PUBLIC, "Connected")
        before = igd.port_mapping_number_of_entries
        assert before is not None
        upnpc(lab.c1, "-a", C1, "8221", "9221", "tcp", "300")
        await holds(lambda: igd.port_mapping_number_of_entries == before + 1)
        await igd.async_subscribe_services()
        upnpc(lab.c1, "-d", "9221", "tcp")
        await holds(lambda: igd.port_mapping_number_of_entries == before)
        assert igd.is_subscribed
        await igd.async_unsubscribe_services()
    await server.async_stop_server()
