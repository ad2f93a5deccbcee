"""Lines to paste that several checks print."""

import re
import shlex

from igd import config_file, toml
from igd.config import default_path
from igd.core.peers import Peer
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


def set_for_peer(machine: Machine, peer: Peer, key: str, value: object) -> str:
    """Return the lines that add this key to the section of a peer; "" if its section has the key.

    A peer without a section gets one.
    """
    path = default_path(machine.interface)
    file, line = shlex.quote(str(path)), toml.line(key, value)
    if peer.name:
        if key in machine.config.peers[peer.name].model_fields_set:
            return ""
        header = _SPECIAL.sub(r"\\\g<0>", toml.section(("peers", peer.name), {})[0])
        return "\n".join([f"sed -i {shlex.quote(f'/^{header}/a {line}')} {file}", *reload(machine)])
    section = toml.section(("peers", f"peer-{peer.public_key[:8]}"), {"public_key": peer.public_key})
    words = " ".join(map(shlex.quote, ["", *section, line]))
    directory = f"mkdir -p {shlex.quote(str(path.parent))}"
    return "\n".join([directory, f"printf '%s\\n' {words} >>{file}", *reload(machine)])


_SPECIAL = re.compile(r"[\[\].*/\\^$]")
"""What sed's regular expressions treat specially."""


def reload(machine: Machine) -> list[str]:
    """Return the line with which a daemon that serves reads its file again; for most keys this is enough."""
    return [f"igd reload {machine.name}"] if machine.status else restart(machine)


def restart(machine: Machine) -> list[str]:
    """Return the line with which a running daemon reads its configuration again; none if there is no daemon."""
    if machine.status is None and machine.silent == NOT_RUNNING:
        return []
    if has_systemd():
        return [f"systemctl restart igd@{machine.name}"]
    return [f"igd stop {machine.name} && igd run {machine.name} --detach"]
