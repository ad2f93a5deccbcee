"""The flow of a probe, and which packets belong to it."""

from dataclasses import dataclass

from igd.core.mapping import Endpoint, TransportProtocol
from igd.firewall.operator_rules.packet import Version


@dataclass(frozen=True, slots=True)
class ProbeFlow:
    """A flow that `sender` begins to `sent_to`; it is mapped, and leads to `led_to`. None: to the server itself.

    The ports of `sent_to` and `led_to` are the same.
    """

    protocol: TransportProtocol
    sender: Endpoint
    sent_to: Endpoint
    led_to: Endpoint | None = None

    @property
    def version(self) -> Version:
        """Its IP version."""
        return 4 if self.sender.address.version == 4 else 6

    @property
    def is_translated(self) -> bool:
        """Whether it is a port mapping's, and not a pinhole's."""
        return self.led_to is not None and self.led_to.address != self.sent_to.address
