"""Checks the wall clock, by which leases are converted after a reboot."""

from collections.abc import Sequence
from datetime import UTC, datetime

from igd.core.moment import RELEASED
from igd.host import clock
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine, has_systemd


async def wall_clock(_machine: Machine) -> Sequence[Finding]:
    """Examine whether the clock shows a date after igd's release."""
    wall = clock.moment().wall
    shown = f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%d %H:%M} UTC"
    if wall >= RELEASED:
        return green(shown)
    text = f"it is {shown}, before igd's release: after a reboot, leases go on with what was left of them"
    return [Finding(Colour.YELLOW, text, "timedatectl set-ntp true" if has_systemd() else "")]
