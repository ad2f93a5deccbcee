"""External ports that belong to one peer, as the operator writes them: reservations, and static mappings."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from igd.core.mapping import Endpoint, TransportProtocol, parse_ports, ports_text

NEVER_MAPPED = {(TransportProtocol.UDP, 5350), (TransportProtocol.UDP, 5351)}
"""External ports that are never mapped: NAT-PMP and PCP use them (RFC 6887 §11.3)."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """External ports (1 to 65535) of one protocol that no other peer gets."""

    protocol: TransportProtocol
    ports: range

    @classmethod
    def parse(cls, text: str) -> "Reservation":
        """Parse `tcp|udp PORTS`; ValueError states the error."""
        protocol, *ports = text.split()[:2] or [""]
        if len(text.split()) != 2:
            raise ValueError(f'{text!r} is not of the form: tcp|udp PORTS, such as "tcp 25565" or "udp 3000-3010"')
        found = parse_ports(ports[0])
        return cls(_protocol(protocol, text), range(max(1, found.start), found.stop))

    def overlap(self, other: "Reservation") -> "Reservation | None":
        """Return the ports that both reserve; None if there are none."""
        ports = range(max(self.ports.start, other.ports.start), min(self.ports.stop, other.ports.stop))
        return Reservation(self.protocol, ports) if self.protocol is other.protocol and ports else None

    def __str__(self) -> str:
        return f"{self.protocol.name.lower()} {ports_text(self.ports)}"


@dataclass(frozen=True, slots=True)
class StaticMapping:
    """A mapping that the operator makes: an external port, and the internal endpoint to which it leads."""

    protocol: TransportProtocol
    external_port: int
    internal: Endpoint

    @classmethod
    def parse(cls, text: str) -> "StaticMapping":
        """Parse `tcp|udp EXTERNAL-PORT ADDRESS INTERNAL-PORT`; ValueError states the error."""
        words = text.split()
        if len(words) != 4:
            raise ValueError(
                f"{text!r} is not of the form: tcp|udp EXTERNAL-PORT ADDRESS INTERNAL-PORT,"
                ' such as "tcp 25565 10.100.0.2 25565"'
            )
        protocol, external, internal = _protocol(words[0], text), _port(words[1]), _port(words[3])
        try:
            address = ip_address(words[2])
        except ValueError:
            raise ValueError(f"{words[2]!r} is not an address such as 10.100.0.2 or 2001:db8::2") from None
        if address.version == 6 and external != internal:
            raise ValueError(f"{text!r}: IPv6 ports are not translated, so both ports must be the same")
        if (protocol, external) in NEVER_MAPPED:
            raise ValueError(f"{text!r}: UDP 5350 and 5351 are never mapped: NAT-PMP and PCP use them")
        return cls(protocol, external, Endpoint(address, internal))

    @property
    def pinhole_address(self) -> IPv6Address | None:
        """The address that identifies a pinhole besides its port; None for a port mapping."""
        address = self.internal.address
        return address if isinstance(address, IPv6Address) else None

    @property
    def reservation(self) -> Reservation:
        """The external port."""
        return Reservation(self.protocol, range(self.external_port, self.external_port + 1))

    def __str__(self) -> str:
        protocol, internal = self.protocol.name.lower(), self.internal
        return f"{protocol} {self.external_port} {internal.address} {internal.port}"


def reservations(reserve: Iterable[Reservation], static: Iterable[StaticMapping]) -> tuple[Reservation, ...]:
    """Return the external ports that belong to a peer: those of `reserve`, and those of static port mappings."""
    return *reserve, *(each.reservation for each in static if each.pinhole_address is None)


def _protocol(word: str, line: str) -> TransportProtocol:
    if word not in {"tcp", "udp"}:
        raise ValueError(f"{line!r} must begin with tcp or udp")
    return TransportProtocol[word.upper()]


def _port(text: str) -> int:
    ports = parse_ports(text)
    if len(ports) != 1:
        raise ValueError(f"{text!r} is not one port from 1 to 65535")
    return ports[0]
