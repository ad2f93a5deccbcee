"""Lines to paste that several checks print."""

import re
import shlex

from igd import config_file, toml
from igd.config import default_path
from igd.operator.doctor.machine import NOT_RUNNING, Machine, has_systemd


def set_in_configuration(machine: Machine, **settings: str | list[str]) -> str:
    """Return the lines that set these top-level keys in the configuration file, and have a running daemon read it.

    A key that the file has is replaced where it stands; a new one comes before the first section.
    """
    path = default_path(machine.interface)
    name = shlex.quote(str(path))
    present = config_file.read(path) if config_file.is_present(path) else ""
    lines = []
    for key, value in settings.items():
        line = toml.line(key, value)
        if re.search(rf"^{key}\s*=", present, re.MULTILINE):
            script = rf"s|^{key}\s*=.*|{line}|"
        elif present:
            script = f"1i {line}"
        else:
            lines.append(f"printf '%s\\n' {shlex.quote(line)} >>{name}")
            continue
        lines.append(f"sed -i {shlex.quote(script)} {name}")
    directory = [] if present else [f"mkdir -p {shlex.quote(str(path.parent))}"]
    return "\n".join([*directory, *lines, *restart(machine)])


def restart(machine: Machine) -> list[str]:
    """Return the line with which a running daemon reads its configuration again; none if there is no daemon."""
    if machine.status is None and machine.silent == NOT_RUNNING:
        return []
    if has_systemd():
        return [f"systemctl restart igd@{machine.name}"]
    return [f"igd stop {machine.name} && igd run {machine.name} --detach"]
