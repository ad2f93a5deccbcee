"""What iptables-legacy's `nat` tables hold for a site and its mappings.

IPv4:

    -A PREROUTING -d 60.60.60.1/32 -m comment --comment "igd wg0" -j igd_wg0     (at the end; one per address)
    -A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A igd_wg0 -p tcp -m tcp --dport 8043 -m comment --comment "yAnz5TF+, games"
               -j DNAT --to-destination 10.100.0.2:8043
    -A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x0/0x10000000
    -A POSTROUTING -m comment --comment "igd wg0" -j igd_wg0/out
    -A igd_wg0/out -s 10.100.0.0/24 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000
                   -j MASQUERADE                                                 (hairpin)
    -A igd_wg0/out -s 10.100.0.2/32 -o eth0 -p udp -m udp --sport 9043 -m comment --comment "yAnz5TF+"
                   -j SNAT --to-source 60.60.60.1:8043                           (preserve_source_port)

IPv6, while there are pinholes:

    -A PREROUTING -m comment --comment "igd wg0" -j igd_wg0
    -A igd_wg0 -d 2001:db8::2/128 -p tcp -m tcp --dport 22 -m comment --comment "yAnz5TF+, ssh"
               -j CONNMARK --set-xmark 0x10000000/0x10000000

Of both versions (of IPv6 where the peers have it), with anycast (RFC 7723), here IPv4's:

    -A PREROUTING -d 192.0.0.9/32 -i wg0 -m comment --comment "igd wg0" -j igd_wg0/pcp
    -A igd_wg0/pcp -p udp -m udp --dport 5351 -m comment --comment "igd wg0" -j REDIRECT

At the end of PREROUTING, so that the operator's own DNATs come first. Mark, try, take the mark back: DNAT ends the
walk, and only the first packet of a flow walks through nat, before anybody else sees the flow, so that the mark is on
our flows alone. Without hairpin the jumps in PREROUTING begin with `! -i wg0`.

At the end of POSTROUTING too: what is masqueraded there goes back into the tunnel, where the operator's own line for
the external interface does not match, and what he has written about the tunnel is his will. A port that is to be
preserved must be chosen before his MASQUERADE chooses: with that option, and with no other, the jump comes first.

REDIRECT leads to the first address of wg0 in the kernel's order; of several of IPv6 that is the one added last.
"""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_network

from igd.core.mapping import AnyMapping, Change, Entry, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.legacy.chain import POSTROUTING, PREROUTING, Edit, Extension, LegacyRule, OwnChain, Version
from igd.firewall.site import PCP_ANYCAST, PCP_SERVER_PORT, Site, label

_COMMENT_SIZE = 255  # XT_MAX_COMMENT_LEN less the closing 0
_OTHERWISE_READ = "\"'\\"  # what iptables' programs escape where they print a comment
_ANYBODY = (Remote(IPv4Network("0.0.0.0/0")),)


class LegacyRules:
    """The rules of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._own = Extension("comment", (("comment", f"igd {site.wireguard}"),))
        self._mark = f"{site.mark:#x}/{site.mark:#x}"
        self.led = label(site.wireguard)  # the chains' names
        self.out = f"{self.led}/out"  # no interface's label ends so: hexadecimal digits would follow the slash
        self.pcp = f"{self.led}/pcp"  # nor so
        self.hooks = {self.led: PREROUTING, self.out: POSTROUTING, self.pcp: PREROUTING}

    def led4(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry]) -> OwnChain:
        """Give the chain that leads packets to mapped endpoints."""
        jumps = (self._jump(self.led, address) for address in sorted(set(addresses)))
        mapped = (rule for entry in entries if isinstance(entry.mapping, PortMapping) for rule in _dnat(entry.mapping))
        rules = (self._own_mark(self._mark), *mapped, self._own_mark(f"0x0/{self._site.mark:#x}"))
        return OwnChain(4, self.led, PREROUTING, tuple(jumps), jumps_first=False, rules=rules)

    def led6(self, entries: Iterable[Entry]) -> OwnChain:
        """Give the chain that marks flows through pinholes; without any there is to be none."""
        holes = (rule for entry in entries if isinstance(entry.mapping, Pinhole) for rule in self._hole(entry.mapping))
        jumps = (self._jump(self.led, None),)
        return OwnChain(6, self.led, PREROUTING, jumps, jumps_first=False, rules=tuple(holes))

    def out4(self, address: IPv4Address | None, entries: Iterable[Entry]) -> OwnChain | None:
        """Give the chain that chooses sources, if one is wanted; no `address`: there is no external one."""
        site = self._site
        if not (site.hairpin or site.preserve_source_port):
            return None
        jumps = (LegacyRule(Extension(self.out), matches=(self._own,)),)
        sources = (rule for entry in entries for rule in self._snat(entry.mapping, address))
        rules = (*self._hairpin(), *sources)
        return OwnChain(4, self.out, POSTROUTING, jumps, jumps_first=site.preserve_source_port, rules=rules)

    def led_anycast(self, version: Version) -> OwnChain | None:
        """Give the chain by which what peers send to PCP's anycast address reaches the server, if one is wanted."""
        site = self._site
        if not site.anycast or all(network.version != version for network in site.peers):
            return None
        to_it = ip_network(PCP_ANYCAST[version])
        jump = LegacyRule(Extension(self.pcp), destination=to_it, incoming=site.wireguard, matches=(self._own,))
        port = Extension("udp", (("dport", str(PCP_SERVER_PORT)),))
        redirect = LegacyRule(Extension("REDIRECT"), protocol=TransportProtocol.UDP, matches=(port, self._own))
        return OwnChain(version, self.pcp, PREROUTING, (jump,), jumps_first=False, rules=(redirect,))

    def edits(self, changes: Iterable[Change], address: IPv4Address | None) -> list[Edit]:
        """Give what these changes mean for the rules; a rule that stays keeps its place."""
        return [edit for change in changes for edit in self._edits(change, address)]

    def _edits(self, change: Change, address: IPv4Address | None) -> Iterator[Edit]:
        before, after = (self._of(entry, address) for entry in (change.before, change.after))
        for chains, others, comes in ((before, after, False), (after, before, True)):
            for place, rules in chains.items():
                version, chain, position = place
                for rule in rules:
                    if rule not in others.get(place, ()):
                        yield Edit(version, chain, rule, comes, position)

    def _of(
        self, entry: Entry | None, address: IPv4Address | None
    ) -> dict[tuple[Version, str, int | None], Sequence[LegacyRule]]:
        """Give an entry's rules by IP version, chain, and where new ones belong: behind the mark, or at the end."""
        if entry is None:
            return {}
        if isinstance(entry.mapping, Pinhole):
            return {(6, self.led, None): self._hole(entry.mapping)}
        return {(4, self.led, 1): _dnat(entry.mapping), (4, self.out, None): self._snat(entry.mapping, address)}

    def _jump(self, chain: str, address: IPv4Address | None) -> LegacyRule:
        destination = None if address is None else IPv4Network(address)
        incoming = "" if self._site.hairpin else f"!{self._site.wireguard}"
        return LegacyRule(Extension(chain), destination=destination, incoming=incoming, matches=(self._own,))

    def _own_mark(self, value: str) -> LegacyRule:
        return LegacyRule(_set_mark(value), matches=(self._own,))

    def _hole(self, pinhole: Pinhole) -> list[LegacyRule]:
        target = _set_mark(self._mark)
        return [_from(remote, pinhole, target, pinhole.internal.port) for remote in _sources(pinhole)]

    def _hairpin(self) -> Iterator[LegacyRule]:
        site = self._site
        matches = (self._own, Extension("connmark", (("mark", self._mark),)))
        for network in site.peers if site.hairpin else ():
            if isinstance(network, IPv4Network):
                yield LegacyRule(Extension("MASQUERADE"), source=network, outgoing=site.wireguard, matches=matches)

    def _snat(self, mapping: AnyMapping, address: IPv4Address | None) -> list[LegacyRule]:
        """Of several for one endpoint the first is used. Without the description: with it, its place would change."""
        if not self._site.preserve_source_port or address is None or mapping.protocol is not TransportProtocol.UDP:
            return []
        if isinstance(mapping, Pinhole):
            return []
        rule = LegacyRule(
            Extension("SNAT", (("to-source", f"{address}:{mapping.external_port}"),)),
            source=ip_network(mapping.internal.address),
            outgoing=self._site.external,
            protocol=mapping.protocol,
            matches=(
                Extension("udp", (("sport", str(mapping.internal.port)),)),
                _comment(_printable(mapping.peer[:8])),
            ),
        )
        return [rule]


def _sources(mapping: AnyMapping) -> Iterable[Remote]:
    return dict.fromkeys(mapping.remotes or _ANYBODY)


def _set_mark(value: str) -> Extension:
    return Extension("CONNMARK", (("set-xmark", value),))


def _dnat(mapping: PortMapping) -> list[LegacyRule]:
    target = Extension("DNAT", (("to-destination", str(mapping.internal)),))
    return [_from(remote, mapping, target, mapping.external_port) for remote in _sources(mapping)]


def _from(remote: Remote, mapping: AnyMapping, target: Extension, port: int) -> LegacyRule:
    """Give the rule for what comes from `remote`, to `port` or to the pinhole's endpoint."""
    source_port = (("sport", str(remote.port)),) if remote.port else ()
    ports = Extension(mapping.protocol.name.lower(), (*source_port, ("dport", str(port))))
    return LegacyRule(
        target,
        source=remote.network if remote.network.prefixlen else None,
        destination=ip_network(mapping.internal.address) if isinstance(mapping, Pinhole) else None,
        protocol=mapping.protocol,
        matches=(ports, _comment(whose(mapping))),
    )


def whose(mapping: AnyMapping) -> str:
    """Give the comment that says whose mapping a rule is: it reads the same wherever iptables prints or reads it."""
    peer, description = _printable(mapping.peer[:8]), _printable(mapping.description).strip()
    return (f"{peer}, {description}" if description else peer)[:_COMMENT_SIZE]


def _printable(text: str) -> str:
    return "".join(letter for letter in text if " " <= letter <= "~" and letter not in _OTHERWISE_READ)


def _comment(text: str) -> Extension:
    return Extension("comment", (("comment", text),))
