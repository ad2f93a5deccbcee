"""The settings of miniupnpd 2.3, and what became of each: for `igd migrate`, and for lines pasted into igd's file."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """What becomes of a line of miniupnpd's file."""

    CONVERTED = "converted"
    DEFAULT = "default here"
    NEEDLESS = "needless here"
    LOST = "no equivalent"


class Setting(NamedTuple):
    """What igd has for a setting; `text` is what to write in its place ({}: the value), or why there is nothing."""

    outcome: Outcome
    text: str

    @property
    def remedy(self) -> str:
        """What to do with a line of this setting in igd's own file; {}: the value."""
        return f"{'write' if self.outcome is Outcome.CONVERTED else 'delete it:'} {self.text}"


def _converted(text: str) -> Setting:
    return Setting(Outcome.CONVERTED, text)


def _needless(text: str) -> Setting:
    return Setting(Outcome.NEEDLESS, text)


def _lost(text: str) -> Setting:
    return Setting(Outcome.LOST, text)


_PRODUCT = _needless("it describes the product, and igd describes itself")
_OF_PF = _needless("it concerns the packet filter of BSD")
_OWN_NAMES = _needless("igd has tables and chains of its own")
_PORT_CONTROL = _converted("enabled = {} in a section [port_control]")

SETTINGS: Mapping[str, Setting] = {
    "ext_ifname": _converted('external_interface = "{}"'),
    "ext_ifname6": _needless("pinholes hold for every interface towards the internet"),
    "ext_ip": _converted('external_address = "{}"'),
    "ext_allow_private_ipv4": _needless("igd maps ports behind a private address, too, and warns of it"),
    "ext_perform_stun": _converted('external_address = "stun" and stun_servers = ["HOST:PORT"]'),
    "ext_stun_host": _converted('stun_servers = ["{}"]'),
    "ext_stun_port": _converted('stun_servers = ["HOST:{}"]'),
    "listening_ip": _needless("the WireGuard interface is given by igd run INTERFACE or igd@INTERFACE"),
    "ipv6_listening_ip": _needless("igd listens on all addresses of the WireGuard interface"),
    "ipv6_disable": _needless("rules without an IPv6 network allow no pinholes"),
    "port": _converted("http_port = {}"),
    "http_port": _converted("http_port = {}"),
    "https_port": _lost("igd has no HTTPS: what passes through the tunnel is encrypted"),
    "bitrate_up": _lost("igd reports the speed of the external interface"),
    "bitrate_down": _lost("igd reports the speed of the external interface"),
    "presentation_url": _needless("igd has a page of its own, which shows a peer its mappings"),
    "friendly_name": _converted('friendly_name = "{}"'),
    "manufacturer_name": _PRODUCT,
    "manufacturer_url": _PRODUCT,
    "model_name": _PRODUCT,
    "model_description": _PRODUCT,
    "model_url": _PRODUCT,
    "model_number": _PRODUCT,
    "serial": _PRODUCT,
    "notify_interval": _lost("igd announces itself at intervals of its own"),
    "system_uptime": _lost("igd reports the time since its start"),
    "packet_log": _OF_PF,
    "uuid": _converted('uuid = "{}"'),
    "clean_ruleset_threshold": _lost("mappings end with their leases; see idle_after for peers that went silent"),
    "clean_ruleset_interval": _lost("mappings end with their leases; see idle_after for peers that went silent"),
    "upnp_table_name": _OWN_NAMES,
    "upnp_nat_table_name": _OWN_NAMES,
    "upnp_forward_chain": _OWN_NAMES,
    "upnp_nat_chain": _OWN_NAMES,
    "upnp_nat_postrouting_chain": _OWN_NAMES,
    "upnp_nftables_family_split": _OWN_NAMES,
    "enable_natpmp": _PORT_CONTROL,
    "enable_pcp_pmp": _PORT_CONTROL,
    "min_lifetime": _converted("min = {} in a section [leases]"),
    "max_lifetime": _converted("max = {} in a section [leases]"),
    "pcp_allow_thirdparty": _converted("third_party = {} in a section [port_control]"),
    "enable_upnp": _lost('write protocols = ["nat-pmp", "pcp"] in the sections [peers.NAME] of peers without UPnP'),
    "anchor": _OF_PF,
    "queue": _OF_PF,
    "tag": _OF_PF,
    "quickrules": _OF_PF,
    "secure_mode": _needless("peers map ports to their own addresses only"),
    "lease_file": _needless("igd has a file of its own for each interface, in /var/lib/igd"),
    "lease_file6": _needless("igd has a file of its own for each interface, in /var/lib/igd"),
    "minissdpdsocket": _needless("igd answers searches itself"),
    "force_igd_desc_v1": _needless("igd offers a description of version 1 and one of version 2"),
    "set_learn_dscp": _lost("igd sets no DSCP"),
}
"""All settings of miniupnpd 2.3, whatever it is built with; its rules (allow, deny) are lines of another kind."""
