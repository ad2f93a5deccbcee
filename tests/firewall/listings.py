"""The server's state as nft and conntrack print it, and the site of the nftables backend's tests."""

import json
import re
from typing import Any

from igd.firewall.site import Site
from tests.firewall.three_hosts import PEERS, run

SITE = Site("ext0", "wg0", PEERS)
TABLE = "inet", "igd_wg0"

HEAD = """\
table inet igd_wg0 {
	set external {
		type ipv4_addr
		elements = { 60.60.60.1, 60.60.60.3 }
	}

	map mappings {
		type inet_proto . inet_service : ipv4_addr . inet_service
		flags timeout
		elements = { tcp . 8043 timeout 2m30s comment "peer" : 10.100.0.2 . 80 }
	}

	set restricted_ports {
		type inet_proto . inet_service
		flags timeout
	}

	set pinholes {
		type ipv6_addr . inet_proto . inet_service
		flags timeout
	}

	set restricted_pinholes {
		type ipv6_addr . inet_proto . inet_service
		flags timeout
	}

	map outbound {
		type ipv4_addr . inet_service : ipv4_addr . inet_service
		flags timeout
	}

	set internal {
		type ipv4_addr
		flags timeout
		elements = { 10.100.0.2 }
	}

	chain prerouting {
		type nat hook prerouting priority -80; policy accept;
"""

LEADING = """\
		ip daddr @external socket transparent <= 1 return
		ip daddr @external ct mark set ct mark | 0x10000000 dnat ip to meta l4proto . th dport map @mappings
		ip daddr @external meta l4proto . th dport @restricted_ports jump from_remotes
		ip daddr @external ct mark set ct mark & 0xefffffff
		ip6 daddr . meta l4proto . th dport @pinholes ct mark set ct mark | 0x10000000
		ip6 daddr . meta l4proto . th dport @restricted_pinholes jump pinholes_from_remotes
	}

	chain postrouting {
		type nat hook postrouting priority srcnat - 1; policy accept;
"""

ANYCAST = """\
		iifname "wg0" ip daddr 192.0.0.9 udp dport 5351 redirect
		iifname "wg0" ip6 daddr 2001:1::1 udp dport 5351 redirect
"""

NOT_LED = """\
		iifname "wg0" return
"""

HAIRPIN = """\
		meta nfproto ipv4 iifname "wg0" oifname "wg0" ct mark & 0x10000000 != 0x00000000 masquerade
"""

PRESERVED = """\
		oifname "ext0" snat ip to ip saddr . udp sport map @outbound
"""

TAIL = """\
	}

	chain input {
		type filter hook input priority filter - 1; policy accept;
		ct direction original ct status dnat ct mark & 0x10000000 != 0x00000000 ct reply ip saddr @internal drop
	}

	chain forward {
		type filter hook forward priority filter - 1; policy accept;
		oifname != "wg0" ct direction original ct status dnat ct mark & 0x10000000 != 0x00000000 \
ct reply ip saddr @internal drop
	}

	chain from_remotes {
	}

	chain pinholes_from_remotes {
	}
}
"""

LISTING = HEAD + LEADING + HAIRPIN + TAIL
"""The table of SITE with tcp 8043 led to the peer's 80, for 60.60.60.1 and 60.60.60.3."""


def listing() -> str:
    """Return the whole ruleset, without what changes by itself."""
    return run("nft", "-s", "list", "ruleset")


def named_sets() -> dict[str, list[Any]]:
    """Return what nft's JSON says is in each map and set of the table, by name."""
    objects: list[dict[str, Any]] = json.loads(run("nft", "-j", "list", "table", *TABLE))["nftables"]
    found = (item[kind] for item in objects for kind in ("map", "set") if kind in item)
    return {each["name"]: each.get("elem", []) for each in found}


def elements(name: str, kind: str = "map") -> list[Any]:
    """Return what nft's JSON says is in the map or set."""
    objects: list[dict[str, Any]] = json.loads(run("nft", "-j", "list", kind, *TABLE, name))["nftables"]
    found: list[Any] = next(item[kind] for item in objects if kind in item).get("elem", [])
    return found


def held() -> dict[tuple[str, int], tuple[str, int, int]]:
    """Return what nft says `mappings` holds: endpoint and timeout by protocol and port."""
    found = elements("mappings")
    return {tuple(key["elem"]["val"]["concat"]): (*data["concat"], key["elem"]["timeout"]) for key, data in found}


def marks(family: str = "ipv4") -> dict[int, int]:
    """Return the conntrack marks by the port that a flow was first sent to."""
    flows = run("conntrack", "-L", "-f", family).splitlines()
    return {int(re.findall(r"dport=(\d+)", flow)[0]): int(re.findall(r"mark=(\d+)", flow)[0]) for flow in flows}
