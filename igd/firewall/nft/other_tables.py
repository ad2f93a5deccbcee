"""The ports that other instances of igd hold: several WireGuard interfaces may share one public address."""

from collections.abc import Iterable
from contextlib import closing
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import NFT_MSG, NFTA_SET_ELEM_LIST
from igd.firewall.nfnetlink import NFPROTO_INET, Message, nested, nft_message, text
from igd.firewall.nft import elements
from igd.firewall.nft.elements import EXTERNAL, MAPPINGS, OLD_RESTRICTED, RESTRICTED_PORTS, NftSet
from igd.firewall.site import OURS, WITHOUT_MAPPINGS, label


class OtherTables:
    """Reads the nftables tables of the instances for interfaces other than `interface`."""

    def __init__(self, interface: str) -> None:
        self._own = label(interface)
        self._tables: list[str] = []

    def update(self, tables: Iterable[tuple[int, str]]) -> None:
        """Remember which of all present tables, by family (NFPROTO_*) and name, belong to other instances."""
        ours = (name for family, name in tables if family == NFPROTO_INET and name.startswith(OURS))
        self._tables = [name for name in ours if name != self._own and not name.endswith(WITHOUT_MAPPINGS)]

    def hold(self, protocol: TransportProtocol, port: int, addresses: Iterable[IPv4Address]) -> bool:
        """Return whether another instance maps this port of one of these addresses; FirewallError."""
        if not self._tables:
            return False
        keys = [elements.address_key(address) for address in addresses]
        with closing(Netlink()) as netlink:
            return any(
                any(_has(netlink, table, EXTERNAL, key) for key in keys) and _maps(netlink, table, protocol, port)
                for table in self._tables
            )


def _maps(netlink: Netlink, table: str, protocol: TransportProtocol, port: int) -> bool:
    key = elements.port_key(protocol, port)
    if any(_has(netlink, table, nft_set, key) for nft_set in (MAPPINGS, RESTRICTED_PORTS)):
        return True
    # The kernel finds these elements only with a source, so read all of them.
    dumped = netlink.dump_if_exists(_request(table, OLD_RESTRICTED))
    return any(elements.has_key_prefix(payload, protocol, port) for payload in dumped)


def _has(netlink: Netlink, table: str, nft_set: NftSet, key: bytes) -> bool:
    listed = nested(NFTA_SET_ELEM_LIST.ELEMENTS, elements.element(key))
    return netlink.exists(_request(table, nft_set, listed))


def _request(table: str, nft_set: NftSet, listed: bytes = b"") -> Message:
    names = text(NFTA_SET_ELEM_LIST.TABLE, table), text(NFTA_SET_ELEM_LIST.SET, nft_set.name)
    return nft_message(NFT_MSG.GETSETELEM, NFPROTO_INET, *names, listed)
