"""`igd run` and `igd stop`."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from igd.commands.command import CONFIG, FAILED, INTERFACE, MISUSED, OK, Argument, Command, print_error, print_text
from igd.process.instance import Instance

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from igd.process.reloading import Reloading

_log = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""How long `igd stop` waits for the daemon to exit before it kills it."""

DETACH_SECONDS = 10.0
"""How long `igd run --detach` waits for readiness: wg-quick, which runs it, must not wait for ever."""

_DETACH: Argument = (
    "--detach",
    {"action": "store_true", "help": "run in the background; return once the daemon serves"},
)
_VERBOSE: Argument = ("--verbose", {"action": "store_true", "help": "log every request, and malformed ones"})


def _run(arguments: argparse.Namespace) -> int:
    from igd import config_file, log_lines
    from igd.config import ConfigError, default_path, load_for
    from igd.process import sd_notify
    from igd.process.background import detach
    from igd.process.reloading import Reloading

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if arguments.verbose:
        logging.getLogger("igd").setLevel(logging.DEBUG)
    try:
        config = load_for(arguments.interface, arguments.config)
    except ConfigError as error:
        sd_notify.notify(f"STATUS={str(error).splitlines()[0]}")
        return print_error(str(error), MISUSED)
    log_lines.limit(config.limits.log_lines_per_second, config.policies.label)

    def unread() -> list[str]:
        return [] if arguments.config else config_file.unread(default_path(arguments.interface))

    for warning in [*unread(), *config.warnings]:
        _log.warning(warning)
    instance = Instance(arguments.interface)
    given = arguments.config and arguments.config.absolute()
    reloading = Reloading(config, lambda: load_for(arguments.interface, given), unread)
    if not arguments.detach:
        return _serve(instance, reloading)
    return detach(
        lambda on_ready: _serve(instance, reloading, on_ready), instance.runtime_directory / "igd.log", DETACH_SECONDS
    )


def _serve(instance: Instance, reloading: "Reloading", on_ready: Callable[[], None] | None = None) -> int:
    from igd.config import ConfigError
    from igd.firewall.backend import FirewallError
    from igd.process import daemon

    try:
        with instance.lock():
            daemon.run(instance, reloading, on_ready)
    except ConfigError as error:
        return print_error(f"{instance.interface}: {error}", MISUSED)
    except (OSError, FirewallError) as error:
        return print_error(f"{instance.interface}: {error}", FAILED)
    return OK


def _stop(arguments: argparse.Namespace) -> int:
    from igd.firewall import kernel
    from igd.firewall.backend import FirewallError

    instance = Instance(arguments.interface)
    name = instance.interface
    try:
        ended = instance.stop(STOP_SECONDS)
        with instance.lock():
            kernel.remove_everything(name, *_mark_and_destinations(instance))
    except PermissionError:
        return print_error(f"only root and its own user may stop the igd of {name}: sudo igd stop {name}", FAILED)
    except (OSError, FirewallError) as error:
        return print_error(f"{name}: {error}", FAILED)
    if ended == "killed":
        return print_text(
            f"igd did not end in {STOP_SECONDS:g} s, and was killed; what it left in the firewall was removed"
        )
    if not ended:
        return print_text(
            f"igd was not running for {name}; what a killed one may have left in the firewall was removed"
        )
    return OK


def _mark_and_destinations(instance: Instance) -> tuple[int, "tuple[IPv4Network | IPv6Network, ...]"]:
    """Return the mark and the destinations of the flows that a killed daemon may have left.

    Its mappings are in the store and, if they are static, in the configuration.
    """
    from ipaddress import ip_network

    from igd.config import Config, ConfigError, default_path, load
    from igd.store.leases import addresses_in

    try:
        config = load(default_path(instance.interface))
    except ConfigError:  # it is missing or invalid now
        config = Config()
    static = {each.internal.address for peer in config.peers.values() for each in peer.static}
    mapped = static.union(addresses_in(config.store.path or instance.store_path))
    return config.firewall.mark, tuple(map(ip_network, mapped))


RUN = Command("Serve the peers of an interface.", (INTERFACE, CONFIG, _DETACH, _VERBOSE), _run)
STOP = Command("Stop the daemon; remove what a killed one left in the firewall.", (INTERFACE,), _stop)
