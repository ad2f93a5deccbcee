"""Carries out the change from miniupnpd to igd for one interface."""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from igd import config_file
from igd.config import default_path
from igd.core.mapping import Change, PortMapping
from igd.core.peers import Peers
from igd.firewall import adopted_flows
from igd.firewall.operator_rules import xtables
from igd.host import clock
from igd.operator import replaced_file
from igd.operator.migrate import stopping
from igd.operator.migrate.mappings import entries
from igd.operator.migrate.planning import Plan
from igd.store.leases import LeaseStore


def write_config(plan: Plan) -> str:
    """Write the configuration, after a copy of the file that is there; return what was done. OSError."""
    path = default_path(plan.interface)
    content = plan.written.encode()
    if not config_file.is_present(path):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replaced_file.replace(path, content)
        return f"wrote {path}"
    if path.read_bytes() == content:
        return f"{path} is what it would become"
    copy = next(copy for copy in _copies(path) if not config_file.is_present(copy))
    replaced_file.replace(copy, path.read_bytes())
    replaced_file.replace(path, content)
    return f"wrote {path}; its former content is in {copy}"


def _copies(path: Path) -> Iterator[Path]:
    """Yield names for a copy that igd does not take for a configuration."""
    yield path.with_name(f"{path.name}.bak")
    number = 1
    while True:
        yield path.with_name(f"{path.name}.{number}.bak")
        number += 1


def take_over(plan: Plan, peers: Peers, store_path: Path) -> Iterator[str]:
    """Stop miniupnpd and make its mappings and their flows igd's; yield what was done, step by step.

    igd must not run. OSError or FirewallError: what was not done is not undone.
    """
    miniupnpd = plan.miniupnpd
    path = plan.config.store.path or store_path
    with _owned(path), closing(LeaseStore(path, clock.moment)) as store:
        mappings, now = miniupnpd.mappings(), clock.boottime()
        if miniupnpd.process is not None:
            store.record_epoch(miniupnpd.began)
            yield f"stopped miniupnpd: {stopping.stop(miniupnpd.process, unit=miniupnpd.unit)}"
        yield from stopping.flush_chains(miniupnpd.lines)
        held = store.load()
        taken, notes = entries(mappings, peers, plan.config.policies, held, now)
        before = {entry.mapping.key: entry for entry in held}
        store.save([Change(before.get(entry.mapping.key), entry) for entry in taken])
        yield f"took over {len(taken)} mappings, into {path}"
        yield from notes
    flows = adopted_flows.mark(
        [entry.mapping for entry in taken if isinstance(entry.mapping, PortMapping)], plan.config.firewall.mark
    )
    yield f"took over {flows} live connections"


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Give the lease file to the owner of its directory; if that is made, it is the service's user's. OSError."""
    directory = path.parent
    if not directory.exists():
        directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        try:
            service = pwd.getpwnam(config_file.SERVICE_USER)
            os.chown(directory, service.pw_uid, service.pw_gid)
        except KeyError:  # the service is not installed
            pass
    owner = directory.stat()
    yield
    for file in directory.glob(f"{path.name}*"):
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)


def start(interface: str) -> str:
    """Start igd, as a service where there is one; return what was done. OSError or FirewallError."""
    unit = f"igd@{interface}.service"
    if stopping.has_unit(unit):
        xtables.run("systemctl", "start", unit)
        return f"started {unit}"
    command = (sys.executable, "-m", "igd", "run", interface, "--detach")
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - this program itself
        raise OSError(f"igd does not start: {' '.join(command)}")
    return f"started igd: igd run {interface} --detach"
