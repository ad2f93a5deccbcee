"""Libraries of Python's package index with which scripts map ports: miniupnpc, UPnPy and upnpclient."""

import socket
from typing import Any

import miniupnpc
import pytest
import upnpclient
import upnpy
from requests import HTTPError
from upnpclient.soap import SOAPError
from upnpy.exceptions import SOAPError as UPnPyError

from tests.e2e.control_points.reach import (
    C1_IPV6,
    assert_closed,
    assert_dropped,
    assert_reached,
    assert_reached_by_ipv6,
)
from tests.e2e.serving import C1, GATEWAY, PUBLIC
from tests.lab import PATIENCE, Lab
from tests.lab.fixtures import requires_root

pytestmark = requires_root

DESCRIPTIONS = [f"http://{GATEWAY}:2869/{version}/device.xml" for version in (1, 2)]


@pytest.fixture(scope="module")
def found(served: Lab) -> miniupnpc.UPnP:
    upnp = miniupnpc.UPnP()
    upnp.discoverdelay = 1  # milliseconds, but it waits for a second at least
    with served.c1.entered():
        assert upnp.discover() == 1
        assert upnp.selectigd() == f"http://{GATEWAY}:2869/control/WANIPConn1"
    return upnp


def test_miniupnpc_reads(served: Lab, found: miniupnpc.UPnP) -> None:
    with served.c1.entered():
        assert (found.lanaddr, found.wanaddr, found.externalipaddress()) == (C1, PUBLIC, PUBLIC)
        assert found.connectiontype() == "IP_Routed"
        status, uptime, last_error = found.statusinfo()
        assert (status, last_error) == ("Connected", "ERROR_NONE")
        assert uptime >= 0
        for name in ("totalbytereceived", "totalbytesent", "totalpacketreceived", "totalpacketsent"):
            assert getattr(found, name)() > 0
        with pytest.raises(Exception, match="Invalid Action"):
            found.getportmappingnumberofentries()  # an action of no standard


def test_miniupnpc_maps(served: Lab, found: miniupnpc.UPnP) -> None:
    with served.c1.entered():
        assert found.addportmapping(9301, "TCP", C1, 8301, "first", "", 600)
        other = found.addanyportmapping(9301, "TCP", C1, 8302, "second", "")
    assert other not in (0, 9301)
    assert_reached(served, 9301, 8301)
    assert_reached(served, other, 8302)
    with served.c1.entered():
        address, port, description, enabled, lease = found.getspecificportmapping(9301, "TCP")
        assert (address, port, description, enabled) == (C1, 8301, "first", True)
        assert 0 < lease <= 600
        listed: list[tuple[Any, ...]] = []
        while entry := found.getgenericportmapping(len(listed)):
            listed.append(entry)
        assert {(9301, "first"), (other, "second")} <= {(entry[0], entry[3]) for entry in listed}
        assert found.deleteportmapping(9301, "TCP")
        assert found.deleteportmappingrange(other, other, "TCP", 0)
        with pytest.raises(Exception, match="NoSuchEntryInArray"):
            found.deleteportmapping(9301, "TCP")
    assert_closed(served, 9301)
    assert_closed(served, other)


def test_upnpy(served: Lab) -> None:
    """It reads the first answer's documents alone, and wants a value for each argument."""
    with served.c1.entered():
        upnp = upnpy.UPnP()
        upnp.discover(delay=1)
        upnp.ssdp.socket.close()
        service = upnp.get_igd()["WANIPConn1"]
        assert service.GetExternalIPAddress() == {"NewExternalIPAddress": PUBLIC}
        key = {"NewRemoteHost": "", "NewExternalPort": 9311, "NewProtocol": "TCP"}
        target = {"NewInternalPort": 8311, "NewInternalClient": C1, "NewEnabled": 1}
        service.AddPortMapping(**key, **target, NewPortMappingDescription="UPnPy", NewLeaseDuration=600)
        entry = service.GetSpecificPortMappingEntry(**key)
        assert (entry["NewInternalClient"], entry["NewInternalPort"]) == (C1, "8311")
    assert_reached(served, 9311, 8311)
    with served.c1.entered():
        assert service.GetGenericPortMappingEntry(NewPortMappingIndex=0)["NewInternalClient"] == C1
        assert service.DeletePortMapping(**key) == {}
        with pytest.raises(UPnPyError) as refusal:
            service.DeletePortMapping(**key)
    assert refusal.value.error == 714
    assert_closed(served, 9311)


def test_upnpclient_finds_both_descriptions(served: Lab) -> None:
    with served.c1.entered():
        devices = upnpclient.discover(timeout=1)
    assert sorted(device.location for device in devices) == DESCRIPTIONS


@pytest.mark.parametrize("location", DESCRIPTIONS)
def test_upnpclient_maps(served: Lab, location: str) -> None:
    """It checks what it sends by the service's document; it wants a value for each argument, and words for booleans."""
    with served.c1.entered():
        service = upnpclient.Device(location).WANIPConn1
        assert service.GetExternalIPAddress() == {"NewExternalIPAddress": PUBLIC}
        status = service.GetStatusInfo()
        assert (status["NewConnectionStatus"], status["NewLastConnectionError"]) == ("Connected", "ERROR_NONE")
        key = {"NewRemoteHost": "", "NewExternalPort": 9321, "NewProtocol": "TCP"}
        target = {"NewInternalPort": 8321, "NewInternalClient": C1, "NewEnabled": "1"}
        service.AddPortMapping(**key, **target, NewPortMappingDescription="upnpclient", NewLeaseDuration=600)
        assert service.GetSpecificPortMappingEntry(**key)["NewInternalPort"] == 8321
    assert_reached(served, 9321, 8321)
    with served.c1.entered():
        assert service.GetGenericPortMappingEntry(NewPortMappingIndex=0)["NewEnabled"] is True
        service.DeletePortMapping(**key)
        with pytest.raises(SOAPError) as refusal:
            service.DeletePortMapping(**key)
    assert refusal.value.args[0] == 714
    assert_closed(served, 9321)


@pytest.mark.parametrize("location", DESCRIPTIONS)
def test_upnpclient_opens_a_pinhole(served: Lab, location: str) -> None:
    port = 8330 + DESCRIPTIONS.index(location)
    with served.c1.entered():
        firewall = upnpclient.Device(location).WANIPv6Firewall1
        assert firewall.GetFirewallStatus() == {"FirewallEnabled": True, "InboundPinholeAllowed": True}
        remote = {"RemoteHost": "", "RemotePort": 0}
        internal = {"InternalClient": C1_IPV6, "InternalPort": port, "Protocol": 6}
        pinhole = firewall.AddPinhole(**remote, **internal, LeaseTime=600)
    assert_reached_by_ipv6(served, port)
    with served.c1.entered():
        assert firewall.CheckPinholeWorking(**pinhole) == {"IsWorking": True}
        assert firewall.GetPinholePackets(**pinhole)["PinholePackets"] > 0
        assert firewall.GetOutboundPinholeTimeout(**remote, **internal)["OutboundPinholeTimeout"] > 0
        firewall.UpdatePinhole(**pinhole, NewLeaseTime=900)
        firewall.DeletePinhole(**pinhole)
    assert_dropped(served, port)


@pytest.mark.parametrize("location", DESCRIPTIONS)
def test_upnpclient_subscribes(served: Lab, location: str) -> None:
    """It receives no events itself: a plain socket does."""
    with served.c1.socket(socket.AF_INET, socket.SOCK_STREAM) as listening, served.c1.entered():
        listening.settimeout(PATIENCE)
        listening.bind((C1, 0))
        listening.listen()
        service = upnpclient.Device(location).WANIPConn1
        sid, timeout = service.subscribe(f"http://{C1}:{listening.getsockname()[1]}/events", timeout=600)
        assert timeout > 0
        notifying, _ = listening.accept()
        with notifying:
            notifying.settimeout(PATIENCE)
            assert notifying.recv(4096).startswith(b"NOTIFY /events HTTP/1.")
            notifying.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert service.renew_subscription(sid, timeout=600) > 0
        service.cancel_subscription(sid)
        with pytest.raises(HTTPError, match=r"\b412\b"):
            service.renew_subscription(sid)
