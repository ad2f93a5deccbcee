"""The lab carries discovery: a real client finds a real gateway through the tunnel, and none where none is."""

from .fixtures import needs, requires_root
from .topology import Lab

pytestmark = requires_root

_MINIUPNPD = """
ext_ifname=ens0
listening_ip=wg0
http_port=0
enable_upnp=yes
uuid=00000000-0000-4000-8000-000000000001
"""


def test_without_a_gateway_the_client_says_so(lab: Lab) -> None:
    needs("external-ip")
    printed = lab.c1.run("external-ip")  # eight seconds: four searches
    assert (printed.stdout, printed.stderr) == ("", "No IGD UPnP Device found on the network !\n")


def test_a_gateway_is_found_through_the_tunnel(lab: Lab) -> None:
    # it has to join the group on wg0, as miniupnpd does, for the multicast search to come up to it
    needs("external-ip", "miniupnpd")
    lab.srv.write("/etc/igd/miniupnpd.conf", _MINIUPNPD)
    with lab.srv.start("miniupnpd", "-d", "-f", "/etc/igd/miniupnpd.conf") as gateway:
        gateway.wait_for("HTTP listening on port")
        assert lab.c1.run("external-ip").stdout == "60.60.60.1\n"
