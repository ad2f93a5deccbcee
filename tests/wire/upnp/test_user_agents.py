"""Windows and Xbox read version 1, and nothing of version 2."""

from uuid import UUID

import pytest

from igd.wire.upnp import ssdp
from igd.wire.upnp.description import DEVICE_PATHS, WITHOUT_FIREWALL_PATH, Identity, documents
from igd.wire.upnp.user_agents import knows_version_1_only
from igd.wire.upnp.xml import Element, parse

ROOT = UUID("11111111-2222-3333-4444-555555555555")
DOCUMENTS = documents(Identity(ROOT, "igd on wg0", "0.1.0"))

VERSION_1_ONLY = [
    "Microsoft-Windows/10.0 UPnP/1.0",
    "Microsoft-Windows/6.2 UPnP/1.0 Microsoft-DLNA DLNADOC/1.50",
    "MICROSOFT-WINDOWS/10.0 UPNP/1.0",
    "FDSSDP",
    "fdssdp",
    "DAFUPnP",
    "Xbox/2.0.8955.0 UPnP/1.0 Xbox/2.0.8955.0",
    "Mozilla/4.0 (compatible; UPnP/1.0; Windows NT/5.1)",
    "Mozilla/4.0 (compatible; UPnP/1.0; Windows 9x)",
]
OTHERS = [
    "",
    "MiniUPnPc/2.2.4",
    "syncthing/1.0",
    "Go-http-client/1.1",
    "python-requests/2.31.0",
    "Windows/10.0 UPnP/1.1 MiniUPnPc/2.2.4",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:120.0) Gecko/20100101 Firefox/120.0",
]


@pytest.mark.parametrize("user_agent", VERSION_1_ONLY)
def test_windows_and_xbox(user_agent: str) -> None:
    assert knows_version_1_only(user_agent)


@pytest.mark.parametrize("user_agent", OTHERS)
def test_other_clients_also_on_windows(user_agent: str) -> None:
    assert not knows_version_1_only(user_agent)


def search(target: str, *user_agents: str) -> list[str]:
    """Return the targets of the answers."""
    names = "".join(f"User-Agent: {each}\r\n" for each in user_agents)
    found = ssdp.parse(f"M-SEARCH * HTTP/1.1\r\nST: {target}\r\n{names}\r\n".encode())
    assert found
    return [each.target for each in ssdp.matches(found.target, ROOT, version_1_only=found.version_1_only)]


@pytest.mark.parametrize("user_agents", [["FDSSDP"], ["one", "Microsoft-Windows/10.0 UPnP/1.0"]])
def test_a_search_for_everything_finds_version_1(user_agents: list[str]) -> None:
    found = search("ssdp:all", *user_agents)
    assert found == [each for each in search("ssdp:all") if not each.endswith(":2") and "IPv6" not in each]
    assert f"uuid:{ROOT}" in found


def test_a_search_by_name_finds_what_is_named() -> None:
    """The client of another maker may run on Windows, and say so."""
    for target in ("InternetGatewayDevice:1", "InternetGatewayDevice:2"):
        assert search(f"urn:schemas-upnp-org:device:{target}", "Microsoft Windows/10.0 UPnP/1.1 x/1")


def types(path: str) -> list[str]:
    """Return the last parts of all types in a device description."""

    def below(element: Element) -> list[str]:
        own = [element.text.rpartition("-org:")[2]] if element.name in {"deviceType", "serviceType"} else []
        return own + [each for child in element.children for each in below(child)]

    return below(parse(DOCUMENTS[path]))


def test_the_description_for_them_is_version_1_without_what_came_with_version_2() -> None:
    assert types(WITHOUT_FIREWALL_PATH) == [
        "device:InternetGatewayDevice:1",
        "service:Layer3Forwarding:1",
        "device:WANDevice:1",
        "service:WANCommonInterfaceConfig:1",
        "device:WANConnectionDevice:1",
        "service:WANIPConnection:1",
    ]


def test_the_descriptions_for_others_have_it_all() -> None:
    for path in DEVICE_PATHS.values():
        assert "service:WANIPv6FirewallControl:1" in types(path)
