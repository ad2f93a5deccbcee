"""Checks the lines of wg-quick's file that start and stop igd."""

import re
import shlex
from collections.abc import Iterator, Sequence

from igd.operator.doctor import wg_quick_file
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.wg_quick_file import WgQuickFile

_STARTS = re.compile(r"\bsystemctl start\b.*\bigd@|\bigd run\b")
_CALLS = re.compile(r"\bigd@|\bigd (?:run|stop)\b")
_HOOKS = ("preup", "postup", "predown", "postdown")

_ADD_TRUE = r"/^ *(Pre|Post)(Up|Down) *= *.*(igd@|igd (run|stop) )/I{/\|\|/!{s/ *(#.*)?$/ || true \1/;s/ $//}}"
_ADD_NO_BLOCK = r"/igd@/{/--no-block/!s/systemctl start /&--no-block /}"
"""sed's commands that mend the lines."""


def start_igd(file: WgQuickFile) -> bool:
    """Return whether a line of the file starts igd."""
    return any(_STARTS.search(line) for line in _lines(file))


def _lines(file: WgQuickFile) -> Iterator[str]:
    """Yield the commands that call igd."""
    yield from (line for key, line in file.interface.settings if key in _HOOKS and _CALLS.search(line))


async def wg_quick_lines(machine: Machine) -> Sequence[Finding]:
    """Examine the lines of wg-quick's file that call igd: the tunnel must not depend on them."""
    file = wg_quick_file.read(machine.interface)
    lines = list(_lines(file)) if file else []
    if file is None or not lines:
        return []
    path = shlex.quote(str(file.path))
    found = []
    if any("||" not in line for line in lines):
        text = f"{file.path} has a line with igd and without `|| true`: if it fails, wg-quick takes the tunnel down"
        found.append(Finding(Colour.YELLOW, text, f"sed -i -E {shlex.quote(_ADD_TRUE)} {path}"))
    if any("systemctl start" in line and "--no-block" not in line for line in lines):
        text = f"{file.path} starts igd without --no-block: wg-quick waits for igd, and perhaps igd for wg-quick"
        found.append(Finding(Colour.YELLOW, text, f"sed -i {shlex.quote(_ADD_NO_BLOCK)} {path}"))
    return found or green(f"{len(lines)} lines of {file.path} call igd, and the tunnel does not depend on them")
