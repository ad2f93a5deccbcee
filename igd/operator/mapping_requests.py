"""What `igd add` and `igd revoke` ask of a running daemon: requests of the gateway, as if the peer had made them."""

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from igd.core.mapping import (
    AnyMapping,
    ControlProtocol,
    Endpoint,
    Entry,
    Pinhole,
    PortMapping,
    TransportProtocol,
    parse_ports,
)
from igd.core.peers import Address, Peer
from igd.core.policies import Policies
from igd.core.request import Mapped, MapPort, Refusal, Reply, Unmapped, UnmapPinhole, UnmapPorts
from igd.gateway import ChangeRequest, Gateway
from igd.operator.admin_paths import RefusedError

_ALL_PORTS = range(1, 65536)

_HINT = "a `static` line in the peer's section of the configuration stands whatever the rules and quotas are"

_STATIC = "the configuration has it: delete its `static` line, and then `igd reload`"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which mappings to revoke: those to which all of these apply that are not None. `peer` is a name or a public key.

    Without `to` and `peer`, only port mappings: many pinholes may have one port.
    """

    protocol: TransportProtocol | None
    ports: range | None
    to: Address | None
    peer: str | None

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> "Selection":
        """Parse the JSON object that `igd revoke` posts; KeyError, TypeError or ValueError if it is invalid."""
        protocol, ports, to = plain["protocol"], plain["ports"], plain["to"]
        return cls(
            TransportProtocol[protocol.upper()] if protocol else None,
            parse_ports(ports) if ports else None,
            ip_address(to) if to else None,
            plain["peer"] or None,
        )

    def names(self, mapping: AnyMapping, policies: Policies) -> bool:
        """Return whether this mapping is to be revoked."""
        return (
            self.protocol in (None, mapping.protocol)
            and (self.ports is None or mapping.external_port in self.ports)
            and self.to in (None, mapping.internal.address)
            and self.peer in (None, mapping.peer, policies.name_of(mapping.peer))
            and (isinstance(mapping, PortMapping) or self.to is not None or self.peer is not None)
        )

    def requests(self, entries: Iterable[Entry]) -> Iterator[tuple[Address, ChangeRequest]]:
        """Yield the requests that close these entries of one peer, and the address from which the peer could send each.

        Port mappings to all addresses are closed by one request for each protocol.
        """
        merged = set[TransportProtocol]()
        for mapping in (entry.mapping for entry in entries):
            source, port = mapping.internal.address, mapping.external_port
            if isinstance(mapping, Pinhole):
                yield source, UnmapPinhole(mapping.unique_id)
            elif self.to is not None:
                yield source, UnmapPorts(mapping.protocol, range(port, port + 1))
            elif mapping.protocol not in merged:
                merged.add(mapping.protocol)
                yield source, UnmapPorts(mapping.protocol, self.ports or _ALL_PORTS)


class MappingRequests:
    """Adds and revokes mappings of a gateway for the operator."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def revoke(self, plain: Mapping[str, Any]) -> dict[str, list[str]]:
        """Close the selected mappings, and have their clients told.

        Return which were closed, and a sentence for each that was not; RefusedError if nothing is selected.
        """
        selection, policies = Selection.parse(plain), self._gateway.policies
        selected = [entry for entry in self._gateway.ledger.table if selection.names(entry.mapping, policies)]
        if not selected:
            raise RefusedError("there is no such mapping")
        by_peer: dict[str, list[Entry]] = {}
        refused = []
        for entry in selected:
            if entry.lease.static:
                refused.append(f"{self._text(entry.mapping)}: {_STATIC}")
            else:
                by_peer.setdefault(entry.mapping.peer, []).append(entry)
        outcomes = await asyncio.gather(*(self._close(selection, key, every) for key, every in by_peer.items()))
        replies = list(itertools.chain.from_iterable(outcomes))
        closed = [mapping for reply in replies if isinstance(reply, Unmapped) for mapping in reply.mappings]
        self._gateway.report_revoked(closed)
        failed = [reply for reply in replies if isinstance(reply, Refusal)]
        refused += [f"{reply.name}: {reply.value}" for reply in failed if reply is not Refusal.NO_SUCH_MAPPING]
        return {"closed": list(map(self._text, closed)), "refused": refused}

    async def _close(self, selection: Selection, public_key: str, entries: Iterable[Entry]) -> list[Reply]:
        peer = Peer(public_key, (), self._gateway.policies.name_of(public_key))
        requests = selection.requests(entries)
        return [await self._gateway.ask(peer, source, each, by_operator=True) for source, each in requests]

    async def add(self, plain: Mapping[str, Any]) -> str:
        """Map a port for the peer that owns the internal address, as far as its rules allow; RefusedError.

        Return the mapping and its lease as a text.
        """
        address = ip_address(plain["address"])
        port = plain["port"] and int(plain["port"])
        request = MapPort(
            TransportProtocol[plain["protocol"].upper()],
            Endpoint(address, int(plain["internal_port"])),
            port,
            int(plain["seconds"]),
            str(plain["description"]),
            any_port=port is None,
        )
        peer = await self._owner(address)
        reply = await self._gateway.ask(peer, address, request, ControlProtocol.UPNP, by_operator=True)
        if not isinstance(reply, Mapped):
            assert isinstance(reply, Refusal), "the reply to MapPort"
            hint = f"; {_HINT}" if reply in _OVERRIDDEN_BY_STATIC else ""
            raise RefusedError(f"{reply.name}: {reply.value}{hint}")
        return f"{self._text(reply.mapping)} for {reply.lifetime} s"

    async def _owner(self, address: Address) -> Peer:
        try:
            owner = (await self._gateway.peers.peers(0)).owner(address)
        except OSError as error:
            raise RefusedError(f"the peers cannot be read: {error}") from None
        if owner is None:
            raise RefusedError(f"no peer has {address} in its AllowedIPs")
        return owner

    def _text(self, mapping: AnyMapping) -> str:
        return f"{mapping} ({self._gateway.policies.label(mapping.peer)})"


_OVERRIDDEN_BY_STATIC = {Refusal.FORBIDDEN, Refusal.PROTOCOL_FORBIDDEN, Refusal.NO_PINHOLES, Refusal.QUOTA}
