"""What the checks read: wg-quick's file, lists of sockets, echoes; and the drop-ins that they print."""

import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from pathlib import Path

import pytest

from igd.core.peers import Peer, Peers
from igd.operator.doctor import drop_ins, echo, other_servers, wg_quick_file
from igd.operator.doctor.samples import addresses_of

SYSTEMD = Path(__file__).parents[3] / "systemd"
KEY = "A" * 43 + "="

FILE = f"""# mine
[interface]
PrivateKey = {KEY}
Address=10.100.0.1/24,2001:db8::1/64
 PostUp = iptables -A FORWARD -i %i -j ACCEPT # a comment
address = 10.101.0.1/24
[Peer] # laptop
PublicKey = {KEY}
PresharedKey = {KEY}
AllowedIPs = 10.100.0.2/32 , 2001:db8::2/128
"""


def test_wg_quicks_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in any case, lists in several lines; secret keys are not kept."""
    monkeypatch.setattr(wg_quick_file, "DIRECTORY", tmp_path)
    assert wg_quick_file.read("wg0") is None
    (tmp_path / "wg0.conf").write_text(FILE)
    file = wg_quick_file.read("wg0")
    assert file is not None
    assert file.interface.items("address") == ["10.100.0.1/24", "2001:db8::1/64", "10.101.0.1/24"]
    assert file.interface.values("postup") == ["iptables -A FORWARD -i %i -j ACCEPT"]
    (peer,) = file.peers
    assert peer.values("publickey") == [KEY]
    assert peer.items("allowedips") == ["10.100.0.2/32", "2001:db8::2/128"]
    assert str(file).count(KEY) == 1


def test_a_list_of_sockets() -> None:
    listing = """
udp   UNCONN 0 0         0.0.0.0:5351  0.0.0.0:* users:(("mini upnpd",pid=12,fd=7),("x",pid=13,fd=7))
udp   UNCONN 0 0 10.100.0.1%wg0:1900   0.0.0.0:* users:(("igd",pid=14,fd=8))
udp   UNCONN 0 0         0.0.0.0:51820 0.0.0.0:*
tcp   LISTEN 0 5       [::1]%lo:2869     [::]:* users:(("nginx",pid=15,fd=3))
tcp   LISTEN 0 5               *:80          *:* users:(("apache2",pid=16,fd=3))
"""
    assert [tuple(each) for each in other_servers.parse(listing.strip())] == [
        ("udp", "0.0.0.0", "", 5351, "mini upnpd", 12),
        ("udp", "10.100.0.1", "wg0", 1900, "igd", 14),
        ("tcp", "::1", "lo", 2869, "nginx", 15),
        ("tcp", "*", "", 80, "apache2", 16),
    ]


OWN, PEER = IPv4Address("10.100.0.1"), IPv4Address("10.100.0.2")


def test_an_echo_request_and_its_answer() -> None:
    request = echo.request(OWN, PEER, 7)
    assert len(request) == 28
    assert echo.checksum(request[:20]) == echo.checksum(request[20:]) == 0
    answer = request[:12] + PEER.packed + OWN.packed + bytes([0]) + request[21:]
    assert list(echo.answers(answer, 7)) == [(OWN, PEER)]
    for other in (request, answer[:24], b"", answer[:9] + b"\x11" + answer[10:]):
        assert list(echo.answers(other, 7)) == []
    assert list(echo.answers(answer, 8)) == []


def test_a_sample_is_never_the_servers_own_address() -> None:
    laptop = Peer("A", (IPv4Network("0.0.0.0/0"), IPv4Network("192.168.7.0/24")))
    phone = Peer("B", tuple(IPv4Network(f"10.100.0.{host}/32") for host in range(2, 200)))
    peers = Peers([laptop, phone], [IPv4Interface("10.100.0.1/24")])
    assert addresses_of(peers, phone)[IPv4Network("10.100.0.2/32")] == PEER
    assert addresses_of(peers, laptop) == {
        IPv4Network("192.168.7.0/24"): IPv4Address("192.168.7.1"),
        IPv4Network("10.100.0.0/24"): IPv4Address("10.100.0.200"),
    }


@pytest.mark.parametrize(
    "network", ["10.100.0.2/31", "10.100.0.3/32", "10.100.0.0/16", "2001:db8::/64", "2001:db8::2/127"]
)
def test_a_sample_of_any_network(network: str) -> None:
    peer = Peer("A", (ip_network(network),))
    ((found, address),) = addresses_of(Peers([peer], [IPv4Interface("10.100.0.1/24")]), peer).items()
    assert found == peer.allowed_ips[0]
    assert address in found
    assert address != IPv4Address("10.100.0.1")


@pytest.mark.parametrize("name", list(drop_ins.NEEDED))
def test_a_printed_drop_in_has_the_rights_of_the_one_in_systemd(name: str) -> None:
    """It need not be found on the server: a package has it elsewhere than a clone."""
    shipped = (SYSTEMD / name).read_text()
    assert set(drop_ins.settings(name)) == set(re.findall(r"^\w+=(?!-).*", shipped, re.MULTILINE))
