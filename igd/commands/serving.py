"""`igd run` and `igd stop`."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from igd.commands.command import CONFIG, FAILED, INTERFACE, MISUSED, OK, Argument, Command, print_error, print_text
from igd.process.instance import Instance

if TYPE_CHECKING:
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
_KEEP: Argument = (
    "--keep",
    {"action": "store_true", "help": "leave mappings and flows in the firewall, for the next igd to take over"},
)
_VERBOSE: Argument = ("--verbose", {"action": "store_true", "help": "log every request, and malformed ones"})


def _run(arguments: argparse.Namespace) -> int:
    from igd import config_file, log_lines
    from igd.config import ConfigError, default_path, load_for
    from igd.process import sd_notify
    from igd.process.background import detach
    from igd.process.in_kernel import end_unserved
    from igd.process.reloading import Reloading

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if arguments.verbose:
        logging.getLogger("igd").setLevel(logging.DEBUG)
    try:
        config = load_for(arguments.interface, arguments.config)
    except ConfigError as error:
        sd_notify.notify(f"STATUS={str(error).splitlines()[0]}")
        print_error(str(error), MISUSED)
        end_unserved(Instance(arguments.interface))
        return MISUSED
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
    from igd.process.in_kernel import end_unserved

    try:
        with instance.lock():
            daemon.run(instance, reloading, on_ready)
    except (ConfigError, OSError, FirewallError) as error:
        status = print_error(f"{instance.interface}: {error}", MISUSED if isinstance(error, ConfigError) else FAILED)
        end_unserved(instance)
        return status
    return OK


def _stop(arguments: argparse.Namespace) -> int:
    from igd.firewall.backend import FirewallError
    from igd.process.in_kernel import InKernel

    instance = Instance(arguments.interface)
    name = instance.interface
    try:
        ended = instance.stop(STOP_SECONDS, signal.SIGUSR1 if arguments.keep else signal.SIGTERM)
        if arguments.keep:
            return _report_kept(name, running=bool(ended))
        with instance.lock():
            InKernel(instance).remove()
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


def _report_kept(name: str, *, running: bool) -> int:
    if not running:
        return print_text(f"igd was not running for {name}; nothing was changed")
    return print_text(f"mappings and flows stay until the next `igd run {name}`, or `igd stop {name}`")


RUN = Command("Serve the peers of an interface.", (INTERFACE, CONFIG, _DETACH, _VERBOSE), _run)
STOP = Command("Stop the daemon; remove what a killed one left in the firewall.", (INTERFACE, _KEEP), _stop)
