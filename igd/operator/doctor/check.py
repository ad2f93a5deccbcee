"""What a check is, and what it finds."""

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from igd.core.obstacle import Obstacle
from igd.operator.doctor.machine import Machine


class Colour(StrEnum):
    """How bad a finding is, the least first: nothing is wrong; something may be; ports, peers or igd do not work."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"

    @property
    def severity(self) -> int:
        """Return 0, 1 or 2, the worst last."""
        return tuple(Colour).index(self)


class Finding(NamedTuple):
    """What a check found: one line, and where something is wrong the lines to paste that mend it.

    `remedy` are lines of a shell that runs as root; "" if no line can mend it, and the text then says what can.
    """

    colour: Colour
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, colour: Colour, obstacle: Obstacle) -> "Finding":
        """Return the finding that this obstacle is there."""
        return cls(colour, obstacle.text, obstacle.remedy)


class Check(NamedTuple):
    """One row or more of the table: the name of what is looked at, such as "forwarding", and the function that does.

    `examine` returns at least one finding, or none if there is nothing to examine, such as IPv6 where no peer has it.
    An OSError or FirewallError that it raises becomes the finding "cannot be examined", which is yellow.
    """

    name: str
    examine: Callable[[Machine], Awaitable[Sequence[Finding]]]


def green(text: str) -> list[Finding]:
    """Return that nothing is wrong."""
    return [Finding(Colour.GREEN, text)]
