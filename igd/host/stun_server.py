"""Where a STUN server is, as the configuration names it."""

import re
from ipaddress import AddressValueError, IPv4Address
from typing import NamedTuple

PORT = 3478

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_AND_PORT = re.compile(rf"({_LABEL}(?:\.{_LABEL})*\.?)(?::([0-9]{{1,5}}))?", re.ASCII)


class StunServer(NamedTuple):
    """A host name or IPv4 address, and a UDP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "StunServer":
        """Parse "stun.example.net" or "198.51.100.7:3478"; ValueError states the format."""
        if text.count(":") > 1 and "." not in text:
            raise ValueError(f"{text!r} is an IPv6 address: only an IPv4 server sees the external IPv4 address")
        match = _HOST_AND_PORT.fullmatch(text)
        port = int(match[2] or PORT) if match else 0
        if not match or not 1 <= port <= 65535 or not _is_host(match[1]):
            raise ValueError(
                f"{text!r} is not a host name or IPv4 address such as stun.example.net or 198.51.100.7:3478"
            )
        return cls(match[1], port)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def _is_host(text: str) -> bool:
    """Return whether this is a name or a complete address: resolvers take "256.1" for an address as well."""
    if len(text) > 253 or not text.rstrip(".").rpartition(".")[2].isdigit():
        return len(text) <= 253
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True
