"""What all checks share: the interface, its configuration, its peers and its daemon, read once."""

import shlex
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igd.config import DIRECTORY, Config, ConfigError
from igd.core.peers import Interface, Peers
from igd.firewall.site import Site
from igd.host import clock
from igd.host.external_address import ExternalAddressReader
from igd.host.links import Links
from igd.host.wireguard import WireGuard
from igd.operator import admin_client, admin_paths
from igd.site_settings import Port, ports, site

NOT_RUNNING = "igd is not running"


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one interface's daemon: the leases, and the directory of the lock and the admin socket."""

    store: Path
    runtime_directory: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """One WireGuard interface and the host around it.

    `config` are the defaults if the file is invalid; `config_error` then has its errors, a line each. `addresses` are
    the interface's own. `peers` is None if there is no such interface, or if `wg` cannot read it; `unread` then has the
    reason. `status` is what `igd status --json` prints, None if no daemon answers; `silent` then has the reason.
    """

    interface: str
    config: Config
    config_error: str
    links: Links
    addresses: tuple[Interface, ...]
    wireguard: WireGuard
    peers: Peers | None
    unread: str
    external: ExternalAddressReader
    paths: Paths
    status: dict[str, Any] | None
    silent: str

    @property
    def name(self) -> str:
        """The interface's name as a word of a shell."""
        return shlex.quote(self.interface)

    @property
    def ports(self) -> list[Port]:
        """The ports of the server that peers send to."""
        return ports(self.config)

    @property
    def site(self) -> Site:
        """The site for which a daemon would open ports now."""
        return site(self.config, self.interface, self.external.interface, self.peers or Peers([], []))


@asynccontextmanager
async def examined(
    interface: str, paths: Paths, config: Config, config_error: str = "", waiting: str | None = None
) -> AsyncIterator[Machine]:
    """Read what all checks share; changes nothing. OSError if the kernel's links cannot be read.

    `waiting` is what a daemon waits for before it serves, an empty string for nothing, None if there is no daemon.
    """
    async with Links() as links:
        wireguard = WireGuard(interface, clock=clock.boottime, wall_clock=time.time, name_of=config.policies.name_of)
        wireguard.addresses = await links.addresses(interface)
        peers, unread = None, ""
        try:
            if await links.state(interface):
                peers = await wireguard.peers()
                config.reject_own_key(interface, await wireguard.public_key())
        except ConfigError as error:
            config_error = config_error or str(error)
        except OSError as error:
            unread = str(error)
        external = ExternalAddressReader(links, interface, config.external_interface, config.external_address)
        await external.read(peers.addresses if peers else ())
        status, silent = _ask(paths.runtime_directory, waiting)
        yield Machine(
            interface,
            config,
            config_error,
            links,
            wireguard.addresses,
            wireguard,
            peers,
            unread,
            external,
            paths,
            status,
            silent,
        )


def _ask(runtime_directory: Path, waiting: str | None) -> tuple[dict[str, Any] | None, str]:
    """Return the status of a running daemon, or why there is none."""
    try:
        status = admin_client.get(runtime_directory, admin_paths.STATUS)
    except (FileNotFoundError, ConnectionRefusedError):
        if waiting is None:
            return None, NOT_RUNNING
        return None, f"igd waits for {waiting}" if waiting else "igd is starting"
    except OSError as error:
        return None, f"igd does not answer: {error}"
    return (status, "") if isinstance(status, dict) else (None, "igd sent an invalid response")


def has_systemd() -> bool:
    """Return whether systemd runs this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def interfaces() -> list[str]:
    """Return the WireGuard interfaces of this host, and those that igd is configured for; OSError without `wg`."""
    command = ("wg", "show", "interfaces")
    shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    configured = (path.stem for path in DIRECTORY.glob("*.toml") if path.stem != "igd")
    return list(dict.fromkeys([*shown.stdout.split(), *sorted(configured)]))
