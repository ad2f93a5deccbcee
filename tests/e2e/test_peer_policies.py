"""What the operator says about a peer holds for that peer, by every protocol, and for no other."""

import re
from collections.abc import Iterator

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp.options import Options
from tests.e2e.pcp_client import granted, map_port, refused
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, igd, mappings, natpmpc, ports, serving, start, upnpc
from tests.lab import Host, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Iptables
from tests.wire.pcp.client_codec import ErrorResponse

pytestmark = requires_root

TCP = TransportProtocol.TCP
GAME = 25565
UPNPC = ("upnpc", "-u", f"http://{GATEWAY}:2869/1/device.xml")
LONG_LIFETIME = 1800  # seconds: RFC 6887 §7.4
BACKENDS = pytest.mark.parametrize(("backend", "iptables"), [("nftables", "nft"), ("iptables", "legacy")])


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "natpmpc", "nft", "iptables-legacy-save")


def key(client: Host) -> str:
    return client.run("wg", "show", "wg0", "public-key").stdout.strip()


def section(name: str, client: Host, *lines: str) -> str:
    """Return the section of this client."""
    return "\n".join(["", f"[peers.{name}]", f'public_key = "{key(client)}"', *lines, ""])


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """A lab where the laptop (c1) has few ports and short leases; the phone (c2) has PCP only, and reserves a port."""
    needs("upnpc", "natpmpc", "nft")
    with Lab() as lab:
        laptop = section(
            "laptop",
            lab.c1,
            f'allow = ["3000-3999 0.0.0.0/0 0-65535", "{GAME} 0.0.0.0/0 0-65535"]',
            "leases = { min = 300, max = 3600, default = 1800 }",
            "max_mappings = 6",
        )
        phone = section("phone", lab.c2, 'protocols = ["pcp"]', f'reserve = ["tcp {GAME}", "udp {GAME}"]')
        with serving(lab, "[port_control]\nthird_party = true\n" + laptop + phone):
            yield lab


def close_all(client: Host, source: str) -> None:
    """Close all mappings of a peer, by PCP for those of PCP and NAT-PMP."""
    map_port(client, 0, source=source, lifetime=0)


def test_each_protocol_follows_the_rules_and_leases_of_the_peer(served: Lab) -> None:
    assert "failed with code 606" in served.c1.run(*UPNPC, "-r", "4000", "tcp", check=False).stdout
    assert "is redirected" in upnpc(served.c1, "-a", C1, "3000", "3000", "tcp", "60")
    port, _ = natpmpc(served.c1, "3001", "4001", "tcp", "60")
    assert port in range(3000, 4000)
    response = map_port(served.c1, 3002, external_port=4002, lifetime=120)
    assert granted(response).external_port in range(3000, 4000)
    assert response.lifetime == 300
    held = [mapping for mapping in mappings(served) if mapping["name"] == "laptop"]
    assert len(held) == 3
    assert all(mapping["lease"] in range(290, 301) for mapping in held)
    assert map_port(served.c1, 3002, lifetime=86400).lifetime == 3600
    for port in (3010, 3011, 3012):
        granted(map_port(served.c1, port))
    assert refused(map_port(served.c1, 3013)) is pcp.Result.USER_EX_QUOTA
    close_all(served.c1, C1)
    upnpc(served.c1, "-d", "3000", "tcp")


def test_a_reserved_port_is_granted_late_and_to_its_owner_only(served: Lab) -> None:
    """Its rules do not matter for it, and whoever else asks for it gets none or another."""
    taken = served.c1.run(*UPNPC, "-a", C1, str(GAME), str(GAME), "tcp", "600", check=False).stdout
    assert "failed with code 718" in taken
    port, _ = natpmpc(served.c1, str(GAME), str(GAME), "tcp", "600")
    assert port != GAME
    assert granted(map_port(served.c1, GAME, external_port=GAME)).external_port != GAME
    only = Options(prefer_failure=True)
    assert refused(map_port(served.c1, 3100, external_port=GAME, options=only)) is pcp.Result.CANNOT_PROVIDE_EXTERNAL
    assert granted(map_port(served.c2, GAME, source=C2, external_port=GAME)).external_port == GAME
    with answering(served.c2, GAME, "tcp"):
        assert ask(served.net, PUBLIC, GAME, "tcp").source == REMOTE
    close_all(served.c1, C1)
    close_all(served.c2, C2)


def test_a_protocol_that_the_peer_may_not_use_is_refused_in_its_own_terms(served: Lab) -> None:
    assert "failed with code 606" in served.c2.run(*UPNPC, "-r", "5000", "tcp", check=False).stdout
    natpmp = served.c2.run("natpmpc", "-g", GATEWAY, "-a", "5000", "5000", "tcp", "600", check=False)
    assert "failed : not authorized" in natpmp.stderr
    granted(map_port(served.c2, 5000, source=C2))
    close_all(served.c2, C2)
    counts = igd(served, "status", "wg0").stdout
    assert "MapPort PROTOCOL_FORBIDDEN" in counts


def test_names_are_in_list_status_log_and_page(served: Lab) -> None:
    granted(map_port(served.c2, 5001, source=C2, external_port=5001))
    row = next(line for line in igd(served, "list", "wg0").stdout.splitlines() if " 5001 " in line)
    assert " phone " in f"{row} "
    assert {mapping["peer"] for mapping in mappings(served) if mapping["name"] == "phone"} == {key(served.c2)}
    assert "  phone  " in igd(served, "status", "wg0").stdout
    page = served.c2.run("curl", "-s", f"http://{GATEWAY}:2869/").stdout
    assert "mapped to you (phone):" in page
    close_all(served.c2, C2)


@BACKENDS
def test_a_port_that_is_reserved_later_is_closed_for_others_at_the_next_start(backend: str, iptables: Iptables) -> None:
    firewall = f'[firewall]\nbackend = "{backend}"\n'
    with Lab(iptables=iptables) as lab, answering(lab.c1, GAME), answering(lab.c2, GAME):
        with serving(lab, firewall):
            upnpc(lab.c1, "-a", C1, str(GAME), str(GAME), "tcp", "600")
            upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "600")
            assert ask(lab.net, PUBLIC, GAME).source == REMOTE
        reserved = section("phone", lab.c2, f'reserve = ["tcp {GAME}"]', "allow = []")
        no_pcp = section("laptop", lab.c1, 'protocols = ["upnp", "nat-pmp"]')
        with start(lab, firewall + reserved + no_pcp) as process:
            assert ports(lab) == [("TCP", 8043)]
            closed = f"the port is reserved for another peer: TCP {GAME} -> {C1}:{GAME} \\(laptop\\)"
            assert any(re.search(closed, line) for line in process.lines)
            with pytest.raises(ConnectionRefusedError):
                ask(lab.net, PUBLIC, GAME)
            by_pcp = map_port(lab.c1, GAME, external_port=GAME)
            assert isinstance(by_pcp, ErrorResponse)
            assert (by_pcp.result, by_pcp.lifetime) == (pcp.Result.NOT_AUTHORIZED, LONG_LIFETIME)
            upnpc(lab.c2, "-a", C2, str(GAME), str(GAME), "tcp", "600")
            assert ask(lab.net, PUBLIC, GAME).source == REMOTE
            process.wait_for(f"{C2} \\(phone\\) requests map TCP {GAME}")


def test_root_takes_names_from_the_comments_of_wg_quicks_file(lab: Lab) -> None:
    conf = lab.srv.run("cat", "/etc/wireguard/wg0.conf").stdout
    secrets = re.findall(r"(?:PrivateKey|PresharedKey) = (\S+)", conf)
    assert secrets
    first, second, third = conf.split("[Peer]")
    lab.srv.write(
        "/etc/wireguard/wg0.conf", f"{first}### Client laptop\n[Peer]{second}# BEGIN_PEER phone\n[Peer]{third}"
    )
    lab.srv.write("/etc/igd/wg0.toml", "# mine\nhttp_port = 5000\n")
    printed = igd(lab, "names", "wg0")
    assert printed.stderr == ""
    igd(lab, "names", "wg0", "--write")
    written = lab.srv.run("cat", "/etc/igd/wg0.toml").stdout
    assert written == f"# mine\nhttp_port = 5000\n\n{printed.stdout}"
    assert not any(secret in written for secret in secrets)
    checked = igd(lab, "check", "wg0")
    assert "peers." not in checked.stderr
    with serving(lab):
        lab.c1.run("upnpc", "-u", f"http://{GATEWAY}:5000/1/device.xml", "-r", "8043", "tcp")
        assert [mapping["name"] for mapping in mappings(lab)] == ["laptop"]


def test_sections_that_fit_no_peer(lab: Lab) -> None:
    """A section for a peer that is not there is a warning until it comes; one for the server itself is an error."""
    lab.srv.write("/etc/igd/wg0.toml", section("server", lab.srv))
    for command in ("check", "run"):
        failed = igd(lab, command, "wg0", check=False)
        assert failed.returncode == 2
        assert "peers.server.public_key: this is the key of wg0 itself" in failed.stderr
    phone = key(lab.c2)
    lab.srv.run("wg", "set", "wg0", "peer", phone, "remove")
    warning = "peers.phone: no peer of wg0 has this public_key"
    with serving(lab, section("phone", lab.c2)) as process:
        process.wait_for(warning)
        assert f"igd: warning: {warning}" in igd(lab, "check", "wg0").stderr
        lab.srv.run("wg", "set", "wg0", "peer", phone, "allowed-ips", C2)
        process.wait_for(f"no longer: {warning}")
