"""Keys, and wg0.conf in the style of the usual how-to. Pure, but for `wg genkey`."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Forward = Literal["accept-lines", "drop", "open"]
Iptables = Literal["nft", "legacy"]

ENDPOINT = "60.60.60.1:51820"

# wireguard-go's device has a MULTICAST flag and an IPv6 link-local address, the kernel's has neither: what works here
# must work there.
_AS_THE_KERNELS = (
    "PostUp = ip link set %i multicast off",
    "PostUp = ip link set dev %i addrgenmode none",
    # nor does one come when IPv6 is switched off and on, or the MTU has been too small for it
    "PostUp = echo 1 >/proc/sys/net/ipv6/conf/default/addr_gen_mode",
    "PostUp = ip -6 address flush dev %i scope link",
)

# What lets the VPN's packets through srv. "accept-lines" is how the how-tos do it, in wg0.conf. "drop" is a
# careful operator's static firewall: clients out, answers in, and nothing new towards wg0. "open" has nothing of it.
_ACCEPT_LINES: Mapping[Forward, Sequence[str]] = {
    "accept-lines": ("FORWARD -i %i -j ACCEPT", "FORWARD -o %i -j ACCEPT"),
    "drop": (),
    "open": (),
}
_DROPPING = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i wg0 -j ACCEPT
COMMIT
"""
STATIC_RULES: Mapping[Forward, str] = {"accept-lines": "", "drop": _DROPPING, "open": ""}


class Keys(NamedTuple):
    """One end's key pair."""

    private: str
    public: str


class Peer(NamedTuple):
    """A VPN client as the server's file has it."""

    public: str
    allowed_ips: str


def make_keys() -> Keys:
    """Generate a new pair by wg."""
    private = _wg("genkey")
    return Keys(private, _wg("pubkey", private))


def server_conf(
    keys: Keys, peers: Sequence[Peer], *, forward: Forward, iptables: Iptables, extra: Sequence[str]
) -> str:
    """Write the server's wg0.conf; `extra` are whole lines such as "PostUp = ..." for [Interface]."""
    return "\n".join(
        [
            "[Interface]",
            "Address = 10.100.0.1/24, 2001:470:100::1/64",
            "ListenPort = 51820",
            f"PrivateKey = {keys.private}",
            *_AS_THE_KERNELS,
            *_firewall_lines(forward, iptables),
            *extra,
            *(f"\n[Peer]\nPublicKey = {peer.public}\nAllowedIPs = {peer.allowed_ips}" for peer in peers),
            "",
        ]
    )


def client_conf(keys: Keys, address: str, server: str, *, keepalive: int, extra: Sequence[str]) -> str:
    """Write a client's wg0.conf that sends everything through the tunnel; keepalive in seconds, 0 for none."""
    return "\n".join(
        [
            "[Interface]",
            f"Address = {address}",
            f"PrivateKey = {keys.private}",
            *_AS_THE_KERNELS,
            *extra,
            "",
            "[Peer]",
            f"PublicKey = {server}",
            "AllowedIPs = 0.0.0.0/0, ::/0",
            f"Endpoint = {ENDPOINT}",
            f"PersistentKeepalive = {keepalive}",
            "",
        ]
    )


def _firewall_lines(forward: Forward, iptables: Iptables) -> list[str]:
    """Name the very binary: what plain `iptables` means is the machine's choice."""
    lines = []
    for key, verb in (("PostUp", "-A"), ("PostDown", "-D")):
        rules = [f"iptables-{iptables} {verb} {rule}" for rule in _ACCEPT_LINES[forward]]
        masquerade = f"iptables-{iptables} -t nat {verb} POSTROUTING -o ens0 -j MASQUERADE"
        lines.append(f"{key} = " + "; ".join([*rules, masquerade]))
    return lines


def _wg(command: str, given: str = "") -> str:
    return subprocess.run(("wg", command), input=given, capture_output=True, text=True, check=True).stdout.strip()
