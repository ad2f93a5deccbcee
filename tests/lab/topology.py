"""The lab: srv, a WireGuard server, and c1 and c2, its clients, around net, which plays the internet.

    c1 eth0 70.70.70.1 --- 70.70.70.254 c1 |
                                           | net | srv 60.60.60.2 --- 60.60.60.1 ens0 srv
    c2 eth0 80.80.80.1 --- 80.80.80.254 c2 |

In the tunnel (wg0) srv is 10.100.0.1, c1 10.100.0.2 and c2 10.100.0.3. IPv6 likewise: 2001:470:60::/64,
2001:470:70::/64 and 2001:470:80::/64 outside, 2001:470:100::/64 in the tunnel. net has a route to the last,
but none to 10.100.0.0/24: in IPv4, 60.60.60.1 is the only way from net to a VPN client.
The addresses look public because clients refuse to work with a gateway whose address is reserved.
"""

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

from .host import Host
from .process import PATIENCE
from .wireguard import STATIC_RULES, Forward, Iptables, Peer, client_conf, make_keys, server_conf


class _Cable(NamedTuple):
    """A host's cable to net, by its two ends; prefix lengths are 24 and 64."""

    device: str  # net's end is named after the host
    ipv4: str
    ipv6: str
    router4: str
    router6: str


_CABLES = {
    "srv": _Cable("ens0", "60.60.60.1", "2001:470:60::1", "60.60.60.2", "2001:470:60::2"),
    "c1": _Cable("eth0", "70.70.70.1", "2001:470:70::1", "70.70.70.254", "2001:470:70::fe"),
    "c2": _Cable("eth0", "80.80.80.1", "2001:470:80::1", "80.80.80.254", "2001:470:80::fe"),
}
_IN_TUNNEL = {
    "c1": "10.100.0.2/32, 2001:470:100::2/128",
    "c2": "10.100.0.3/32, 2001:470:100::3/128",
}


class Lab:
    """The four hosts; entering the `with` builds them, leaving it ends them.

    `wg`: bring the tunnels up. `forward` and `iptables`: the server's firewall (see wireguard.py).
    `server_lines` and `client_lines`: more lines for [Interface], such as "PostUp = ...".
    `keepalive`: the clients' PersistentKeepalive in seconds, 0 for none.
    `networks`: the clients' `Address` has the prefix lengths of the tunnel's networks.
    """

    net: Host
    srv: Host
    c1: Host
    c2: Host

    def __init__(
        self,
        *,
        wg: bool = True,
        forward: Forward = "accept-lines",
        iptables: Iptables = "nft",
        server_lines: Sequence[str] = (),
        client_lines: Sequence[str] = (),
        keepalive: int = 25,
        networks: bool = False,
    ) -> None:
        self._wg, self._forward, self._iptables, self._keepalive = wg, forward, iptables, keepalive
        self._server_lines, self._client_lines, self._networks = server_lines, client_lines, networks
        self._up: list[Host] = []
        self._life = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as building:
            self.net, self.srv, self.c1, self.c2 = (
                building.enter_context(Host(name)) for name in ("net", "srv", "c1", "c2")
            )
            self._lay_cables()
            self._load_static_rules()
            self._write_wg0()
            if self._wg:
                self.wg_up(self.srv, self.c1, self.c2)
            self._life = building.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()

    def wg_up(self, *hosts: Host) -> None:
        """Bring wg0 up in these hosts; return when every tunnel that is up at both ends carries packets."""
        for host in hosts:
            host.run("wg-quick", "up", "wg0")
        if self.srv in hosts:
            for client in self._up:
                _forget_session(client)
        self._up.extend(hosts)
        if self.srv in self._up:
            for client in set(self._up) - {self.srv}:
                _reach_server(client)

    def wg_down(self, *hosts: Host) -> None:
        """Take wg0 down in these hosts."""
        for host in hosts:
            host.run("wg-quick", "down", "wg0")
            self._up.remove(host)

    def _lay_cables(self) -> None:
        for host in (self.srv, self.c1, self.c2):
            self._lay_cable(host, _CABLES[host.name])
        for router in (self.net, self.srv):
            router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        _ip(self.net, f"route add 2001:470:100::/64 via {_CABLES['srv'].ipv6}")

    def _lay_cable(self, host: Host, cable: _Cable) -> None:
        pair = f"{host.name} type veth peer name {cable.device} netns {host.pid}"
        with self.net.entered():  # in net's network, but among our own process ids
            subprocess.run(("ip", "link", "add", *pair.split()), check=True)
        _ip(self.net, *_addresses(host.name, cable.router4, cable.router6))
        _ip(
            host,
            *_addresses(cable.device, cable.ipv4, cable.ipv6),
            f"route add 0.0.0.0/0 via {cable.router4}",
            f"route add ::/0 via {cable.router6}",
        )

    def _load_static_rules(self) -> None:
        rules = STATIC_RULES[self._forward]
        for family in ("iptables", "ip6tables") if rules else ():
            self.srv.run(f"{family}-{self._iptables}-restore", input=rules)

    def _write_wg0(self) -> None:
        server = make_keys()
        peers = []
        for client in (self.c1, self.c2):
            keys, addresses = make_keys(), _IN_TUNNEL[client.name]
            peers.append(Peer(keys.public, addresses))
            own = addresses.replace("/32", "/24").replace("/128", "/64") if self._networks else addresses
            conf = client_conf(keys, own, server.public, keepalive=self._keepalive, extra=self._client_lines)
            client.write("/etc/wireguard/wg0.conf", conf)
        conf = server_conf(server, peers, forward=self._forward, iptables=self._iptables, extra=self._server_lines)
        self.srv.write("/etc/wireguard/wg0.conf", conf)


def _ip(host: Host, *commands: str) -> None:
    host.run("ip", "-batch", "-", input="\n".join(commands) + "\n")


def _addresses(device: str, ipv4: str, ipv6: str) -> tuple[str, ...]:
    return (
        f"address add {ipv4}/24 dev {device}",
        f"address add {ipv6}/64 dev {device}",
        f"link set {device} up",
    )


def _reach_server(client: Host) -> None:
    for address in ("10.100.0.1", "2001:470:100::1"):
        client.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", address)


def _forget_session(client: Host) -> None:
    """Make the client shake hands anew: with a server that has restarted it would wait for some 15 seconds."""
    client.run("bash", "-c", "wg set wg0 peer $(wg show wg0 peers) remove && wg addconf wg0 <(wg-quick strip wg0)")
