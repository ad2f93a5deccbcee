"""The rules in iptables-legacy's `nat` tables for a site and its mappings.

IPv4:

    -A PREROUTING -d 60.60.60.1/32 -m comment --comment "igd wg0" -j igd_wg0     (at the end; one per address)
    -A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A igd_wg0 -p tcp -m tcp --dport 8043 -m comment --comment "yAnz5TF+, games"
               -j DNAT --to-destination 10.100.0.2:8043
    -A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x0/0x10000000
    -A POSTROUTING -m comment --comment "igd wg0" -j igd_wg0/out
    -A igd_wg0/out -s 10.100.0.0/24 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000
                   -j MASQUERADE                                                 (hairpin)
    -A igd_wg0/out -d 10.100.0.7/32 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000
                   -j MASQUERADE                                                 (masquerade_inbound)
    -A igd_wg0/out -s 10.100.0.2/32 -o eth0 -p udp -m udp --sport 9043 -m comment --comment "yAnz5TF+"
                   -j SNAT --to-source 60.60.60.1:8043                           (preserve_source_port)

IPv6, while there are pinholes:

    -A PREROUTING -m comment --comment "igd wg0" -j igd_wg0
    -A igd_wg0 -d 2001:db8::2/128 -p tcp -m tcp --dport 22 -m comment --comment "yAnz5TF+, ssh"
               -j CONNMARK --set-xmark 0x10000000/0x10000000

With anycast (RFC 7723), for IPv4 and, where the peers have it, for IPv6; here IPv4's:

    -A PREROUTING -d 192.0.0.9/32 -i wg0 -m comment --comment "igd wg0" -j igd_wg0/pcp
    -A igd_wg0/pcp -p udp -m udp --dport 5351 -m comment --comment "igd wg0" -j REDIRECT

The jumps stand at the end of PREROUTING, so that the operator's own DNATs come first. The mark is set before the DNATs
and cleared after them: a DNAT that matches ends the traversal, and only the first packet of a flow traverses nat, so
that only our flows bear the mark. Without hairpin the jumps in PREROUTING begin with `! -i wg0`.

The jump stands at the end of POSTROUTING too. Hairpin flows leave into the tunnel, where the operator's MASQUERADE for
the external interface does not match, and the operator's own rules for the tunnel take precedence. A preserved source
port must be chosen before the operator's MASQUERADE chooses one: only with that option does the jump come first.

REDIRECT translates to the first address of wg0 in the kernel's order; of several IPv6 addresses to the one added last.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_network

from igd.core.mapping import AnyMapping, Change, Entry, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.legacy.chain import POSTROUTING, PREROUTING, Edit, Extension, LegacyRule, OwnChain, Version
from igd.firewall.site import PCP_ANYCAST, PCP_SERVER_PORT, Site, label

_COMMENT_SIZE = 255  # XT_MAX_COMMENT_LEN less the closing 0
_ESCAPED = "\"'\\"  # characters that iptables' programs escape in a comment
_ANY_REMOTE = (Remote(IPv4Network("0.0.0.0/0")),)


class LegacyRules:
    """The rules of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._own = Extension("comment", (("comment", f"igd {site.wireguard}"),))
        self._mark = f"{site.mark:#x}/{site.mark:#x}"
        self.main = label(site.wireguard)  # of each IP version, one chain of this name
        self.out = f"{self.main}/out"  # not the label of any interface: those have hexadecimal digits after a slash
        self.pcp = f"{self.main}/pcp"  # nor is this one
        self.hooks = {self.main: PREROUTING, self.out: POSTROUTING, self.pcp: PREROUTING}

    def dnat(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry]) -> OwnChain:
        """Return the chain that translates packets to mapped endpoints."""
        jumps = (self._jump(address) for address in sorted(set(addresses)))
        mapped = (rule for entry in entries if isinstance(entry.mapping, PortMapping) for rule in _dnat(entry.mapping))
        rules = (self._mark_rule(self._mark), *mapped, self._mark_rule(f"0x0/{self._site.mark:#x}"))
        return OwnChain(4, self.main, PREROUTING, tuple(jumps), jumps_first=False, rules=rules)

    def pinholes(self, entries: Iterable[Entry]) -> OwnChain:
        """Return the chain that marks flows through pinholes; it exists in the kernel only while it has rules."""
        holes = (
            rule for entry in entries if isinstance(entry.mapping, Pinhole) for rule in self._pinhole(entry.mapping)
        )
        jumps = (self._jump(None),)
        return OwnChain(6, self.main, PREROUTING, jumps, jumps_first=False, rules=tuple(holes))

    def sources(self, address: IPv4Address | None, entries: Iterable[Entry]) -> OwnChain | None:
        """Return the chain that translates source addresses, or None; `address` is the external one, if any."""
        site = self._site
        if not (site.hairpin or site.preserve_source_port or site.masqueraded):
            return None
        jumps = (LegacyRule(Extension(self.out), matches=(self._own,)),)
        sources = (rule for entry in entries for rule in self._snat(entry.mapping, address))
        rules = (*self._hairpin(), *self._masquerades(), *sources)
        return OwnChain(4, self.out, POSTROUTING, jumps, jumps_first=site.preserve_source_port, rules=rules)

    def anycast(self, version: Version) -> OwnChain | None:
        """Return the chain that redirects PCP requests to the anycast address to the server, or None."""
        site = self._site
        if not site.anycast or all(network.version != version for network in site.peers):
            return None
        destination = ip_network(PCP_ANYCAST[version])
        jump = LegacyRule(Extension(self.pcp), destination=destination, incoming=site.wireguard, matches=(self._own,))
        port = Extension("udp", (("dport", str(PCP_SERVER_PORT)),))
        redirect = LegacyRule(Extension("REDIRECT"), protocol=TransportProtocol.UDP, matches=(port, self._own))
        return OwnChain(version, self.pcp, PREROUTING, (jump,), jumps_first=False, rules=(redirect,))

    def edits(self, changes: Iterable[Change], address: IPv4Address | None) -> list[Edit]:
        """Return the edits for these changes; a rule that stays keeps its place."""
        return [edit for change in changes for edit in self._edits(change, address)]

    def _edits(self, change: Change, address: IPv4Address | None) -> Iterator[Edit]:
        before, after = (self._of(entry, address) for entry in (change.before, change.after))
        for chains, others, adds in ((before, after, False), (after, before, True)):
            for place, rules in chains.items():
                version, chain, position = place
                for rule in rules:
                    if rule not in others.get(place, ()):
                        yield Edit(version, chain, rule, adds, position)

    def _of(
        self, entry: Entry | None, address: IPv4Address | None
    ) -> dict[tuple[Version, str, int | None], Sequence[LegacyRule]]:
        """Return an entry's rules by IP version, chain and position of new ones (None: at the end)."""
        if entry is None:
            return {}
        if isinstance(entry.mapping, Pinhole):
            return {(6, self.main, None): self._pinhole(entry.mapping)}
        return {(4, self.main, 1): _dnat(entry.mapping), (4, self.out, None): self._snat(entry.mapping, address)}

    def _jump(self, address: IPv4Address | None) -> LegacyRule:
        destination = None if address is None else IPv4Network(address)
        incoming = "" if self._site.hairpin else f"!{self._site.wireguard}"
        return LegacyRule(Extension(self.main), destination=destination, incoming=incoming, matches=(self._own,))

    def _mark_rule(self, value: str) -> LegacyRule:
        return LegacyRule(_set_mark(value), matches=(self._own,))

    def _pinhole(self, pinhole: Pinhole) -> list[LegacyRule]:
        return _rules(pinhole, _set_mark(self._mark))

    def _hairpin(self) -> Iterator[LegacyRule]:
        site = self._site
        matches = (self._own, Extension("connmark", (("mark", self._mark),)))
        for network in site.peers if site.hairpin else ():
            if isinstance(network, IPv4Network):
                yield LegacyRule(Extension("MASQUERADE"), source=network, outgoing=site.wireguard, matches=matches)

    def _masquerades(self) -> Iterator[LegacyRule]:
        site = self._site
        matches = (self._own, Extension("connmark", (("mark", self._mark),)))
        for network in site.masqueraded:
            target = Extension("MASQUERADE")
            yield LegacyRule(target, destination=network, outgoing=site.wireguard, matches=matches)

    def _snat(self, mapping: AnyMapping, address: IPv4Address | None) -> list[LegacyRule]:
        """Return the rules that preserve a source port; of several mappings of one endpoint the oldest is used.

        Their comment has no description, so that a new description does not move the rule to the end.
        """
        preserved = isinstance(mapping, PortMapping) and mapping.protocol is TransportProtocol.UDP
        if not (self._site.preserve_source_port and self._site.external and preserved and address):
            return []
        target = Extension("SNAT", (("to-source", f"{address}:{mapping.external_port}"),))
        port = Extension("udp", (("sport", str(mapping.internal.port)),))
        matches = (port, _comment(_printable(mapping.peer[:8])))
        source, outgoing = ip_network(mapping.internal.address), self._site.external
        return [LegacyRule(target, source, outgoing=outgoing, protocol=mapping.protocol, matches=matches)]


def _set_mark(value: str) -> Extension:
    return Extension("CONNMARK", (("set-xmark", value),))


def _dnat(mapping: PortMapping) -> list[LegacyRule]:
    return _rules(mapping, Extension("DNAT", (("to-destination", str(mapping.internal)),)))


def _rules(mapping: AnyMapping, target: Extension) -> list[LegacyRule]:
    """Return one rule for each remote that the mapping admits."""
    return [_rule(mapping, target, remote) for remote in dict.fromkeys(mapping.remotes or _ANY_REMOTE)]


def _rule(mapping: AnyMapping, target: Extension, remote: Remote) -> LegacyRule:
    """Return the rule for packets from `remote` to the external port, or to the pinhole's endpoint."""
    source_port = (("sport", str(remote.port)),) if remote.port else ()
    ports = Extension(mapping.protocol.name.lower(), (*source_port, ("dport", str(mapping.external_port))))
    return LegacyRule(
        target,
        source=remote.network if remote.network.prefixlen else None,
        destination=ip_network(mapping.internal.address) if isinstance(mapping, Pinhole) else None,
        protocol=mapping.protocol,
        matches=(ports, _comment(owner_comment(mapping))),
    )


def owner_comment(mapping: AnyMapping) -> str:
    """Return the comment that names a mapping's owner, without characters that iptables escapes."""
    peer, description = _printable(mapping.peer[:8]), _printable(mapping.description).strip()
    return (f"{peer}, {description}" if description else peer)[:_COMMENT_SIZE]


def _printable(text: str) -> str:
    return "".join(letter for letter in text if " " <= letter <= "~" and letter not in _ESCAPED)


def _comment(text: str) -> Extension:
    return Extension("comment", (("comment", text),))
