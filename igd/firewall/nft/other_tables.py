"""What other instances hold: several WireGuard interfaces may share one public address."""

import errno
from collections.abc import Iterable
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.firewall.netlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NLM_F_ACK,
    NLMSG_ERROR,
    Message,
    Netlink,
    NetlinkError,
    nested,
    refusal,
    text,
)
from igd.firewall.nft import elements
from igd.firewall.nft.elements import EXTERNAL, MAPPINGS, RESTRICTED, NftSet
from igd.firewall.site import OURS, label

GETSETELEM = 13
ELEMENTS = 3  # of NFTA_SET_ELEM_LIST_*


class OtherTables:
    """Looks into the nftables tables of the instances for other interfaces than `interface`, by a socket of its own."""

    def __init__(self, interface: str) -> None:
        self._own = label(interface)
        self._netlink = _Lookup()
        self._tables: list[str] = []

    def know(self, tables: Iterable[tuple[int, str]]) -> None:
        """Take all tables that there are now, by family (NFPROTO_*) and name: which are such is found out here."""
        self._tables = [
            name for family, name in tables if family == NFPROTO_INET and name.startswith(OURS) and name != self._own
        ]

    def taken_by_another(self, protocol: TransportProtocol, port: int, addresses: Iterable[IPv4Address]) -> bool:
        """Say whether one of them leads this port of one of these addresses somewhere; FirewallError."""
        addresses = list(addresses)
        return any(self._matches(table, addresses) and self._holds(table, protocol, port) for table in self._tables)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def _matches(self, table: str, addresses: Iterable[IPv4Address]) -> bool:
        return any(self._has(table, EXTERNAL, elements.address(address)) for address in addresses)

    def _holds(self, table: str, protocol: TransportProtocol, port: int) -> bool:
        if self._has(table, MAPPINGS, elements.port_key(protocol, port)):
            return True
        # What is restricted is found by the source only, so all of it is read; there is little.
        dumped = self._netlink.dump_if_there(_question(table, RESTRICTED))
        beginning = elements.restricted_beginning(protocol, port)
        return any(beginning in payload for payload in dumped)

    def _has(self, table: str, held_by: NftSet, key: bytes) -> bool:
        return self._netlink.finds(_question(table, held_by, nested(ELEMENTS, elements.element(key))))


class _Lookup(Netlink):
    """A socket that also asks for one thing: where there is none, that is no error."""

    def finds(self, message: Message) -> bool:
        """Say whether the kernel has what the message asks for."""
        (number,) = self._numbers(1)
        self._send(message.encode(number, NLM_F_ACK))
        refused, sentence = next(refusal(each) for each in self._answers(number) if each.kind == NLMSG_ERROR)
        if refused not in (0, errno.ENOENT):
            raise NetlinkError(refused, sentence)
        return refused == 0

    def dump_if_there(self, message: Message) -> list[bytes]:
        """Give the payloads of a dump, none where the set or its table is gone."""
        try:
            return self.dump(message)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return []


def _question(table: str, held_by: NftSet, listed: bytes = b"") -> Message:
    payload = text(1, table) + text(2, held_by.name) + listed
    return Message(NFNL_SUBSYS_NFTABLES << 8 | GETSETELEM, NFPROTO_INET, payload)
