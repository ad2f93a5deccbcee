"""What `igd migrate` prints. Pure."""

import shlex
from collections.abc import Sequence

from igd.config import default_path
from igd.operator.migrate.conversion import Row
from igd.operator.migrate.mappings import Entries
from igd.operator.migrate.planning import Plan
from igd.operator.status import printable

_UNSAID = "(not in the file)"


def conversion(plan: Plan) -> str:
    """Return what becomes of each line, and the configuration."""
    source, path = plan.miniupnpd.file, default_path(plan.interface)
    warnings = [f"warning: {warning}" for warning in plan.config.warnings]
    rows = [f"{source}, for {plan.interface}:", *map(_row, plan.conversion.rows), *warnings]
    return "\n".join([*rows, "", f"{path}:", "", plan.written.rstrip(), ""])


def _row(row: Row) -> str:
    place = f"line {row.line.number}: {row.line.text}" if row.line else _UNSAID
    return f"{printable(place)}\n    {printable(f'{row.outcome}: {row.text}')}"


def mappings(plan: Plan, found: Entries) -> str:
    """Return which mappings are taken over, and which are not."""
    lines = [f"mappings of {plan.miniupnpd.origin}: {len(found.taken)} can be taken over"]
    lines += [f"    {entry.mapping}" for entry in found.taken]
    return "\n".join(map(printable, [*lines, *(f"    {note}" for note in found.notes)]))


def danger(chains: Sequence[str]) -> str:
    """Return why miniupnpd is not stopped, and what to do."""
    return (
        "miniupnpd is not stopped: systemd would run /etc/miniupnpd/nft_removeall.sh, which deletes rules of yours, in"
        f" the chains {', '.join(chains)}. Prevent that, and run igd migrate again:\n"
        "echo MiniUPnPd_POSTSTOP_COMMAND=true >> /etc/default/miniupnpd"
    )


def next_step(plan: Plan) -> str:
    """Return the command that does it."""
    source = shlex.quote(str(plan.miniupnpd.file))
    return f"nothing was changed. To do it: igd migrate {source} --interface {plan.interface} --write"


def way_back(plan: Plan) -> str:
    """Return the command by which miniupnpd takes its place again, with the mappings in its lease file."""
    command = f"miniupnpd -f {shlex.quote(str(plan.miniupnpd.file))}"
    if plan.miniupnpd.unit:
        command = "systemctl enable --now miniupnpd"
    return f"to go back: igd stop {plan.interface} && {command}"
