"""The command line: a table of subcommands. Each imports what it needs when it runs, so that all start fast."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from igd import VERSION
from igd.host.interface_name import interface_name
from igd.process.instance import Instance

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from igd.config import Config
    from igd.operator.names import Named

_log = logging.getLogger(__name__)

OK, FAILED, MISUSED = 0, 1, 2

STOP_SECONDS = 15.0
"""How long `igd stop` waits for the daemon to exit before it kills it."""

DETACH_SECONDS = 10.0
"""How long `igd run --detach` waits for readiness: wg-quick, which runs it, must not wait for ever."""


class Command(NamedTuple):
    """One subcommand: its help text, its arguments, and the function that runs it and returns the exit status."""

    purpose: str
    arguments: tuple[tuple[str, dict[str, Any]], ...]
    run: Callable[[argparse.Namespace], int]


def main() -> None:
    """Run the given subcommand; exit with 0 (success), 1 (failure) or 2 (wrong usage or configuration)."""
    parser = argparse.ArgumentParser(prog="igd", description="A port-mapping gateway for WireGuard servers.")
    parser.add_argument("--version", action="version", version=f"igd {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.purpose, description=command.purpose)
        for argument, options in command.arguments:
            subparser.add_argument(argument, **options)
    arguments = parser.parse_args()
    sys.exit(COMMANDS[arguments.command].run(arguments))


def _print_error(text: str, status: int) -> int:
    from igd.operator.status import printable

    sys.stderr.write("".join(f"igd: {printable(line)}\n" for line in text.splitlines()))
    return status


def _print(text: str) -> int:
    sys.stdout.write(f"{text}\n")
    return OK


def _run(arguments: argparse.Namespace) -> int:
    from igd import log_lines
    from igd.config import ConfigError, load_for
    from igd.process import sd_notify
    from igd.process.background import detach

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if arguments.verbose:
        logging.getLogger("igd").setLevel(logging.DEBUG)
    try:
        config = load_for(arguments.interface, arguments.config)
    except ConfigError as error:
        sd_notify.notify(f"STATUS={str(error).splitlines()[0]}")
        return _print_error(str(error), MISUSED)
    log_lines.limit(config.limits.log_lines_per_second, config.policies.label)
    for warning in [*([] if arguments.config else _unread(arguments.interface)), *config.warnings]:
        _log.warning(warning)
    instance = Instance(arguments.interface)
    if not arguments.detach:
        return _serve(instance, config)
    return detach(
        lambda on_ready: _serve(instance, config, on_ready), instance.runtime_directory / "igd.log", DETACH_SECONDS
    )


def _serve(instance: Instance, config: "Config", on_ready: Callable[[], None] | None = None) -> int:
    from igd.config import ConfigError
    from igd.firewall.backend import FirewallError
    from igd.process import daemon

    try:
        with instance.lock():
            daemon.run(instance, config, on_ready)
    except ConfigError as error:
        return _print_error(f"{instance.interface}: {error}", MISUSED)
    except (OSError, FirewallError) as error:
        return _print_error(f"{instance.interface}: {error}", FAILED)
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
        return _print_error(f"only root and its own user may stop the igd of {name}: sudo igd stop {name}", FAILED)
    except (OSError, FirewallError) as error:
        return _print_error(f"{name}: {error}", FAILED)
    if ended == "killed":
        return _print(
            f"igd did not end in {STOP_SECONDS:g} s, and was killed; what it left in the firewall was removed"
        )
    if not ended:
        return _print(f"igd was not running for {name}; what a killed one may have left in the firewall was removed")
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


def _unread(interface: str) -> list[str]:
    from igd import config_file
    from igd.config import default_path

    return config_file.unread(default_path(interface))


def _check(arguments: argparse.Namespace) -> int:
    from igd.config import Config, ConfigError, default_path, load_for

    try:
        file, interface = _file_and_interface(arguments.subject)
        config = load_for(interface, file) if interface else Config()
    except (ConfigError, ValueError) as error:
        return _print_error(str(error), MISUSED)
    try:
        host_warnings = _host_warnings(interface, config)
    except ConfigError as error:
        return _print_error(f"{file or default_path(interface)}: {error}", MISUSED)
    for warning in [*_check_warnings(file, interface), *config.warnings, *host_warnings]:
        _print_error(f"warning: {warning}", OK)
    return _print(config.describe())


def _file_and_interface(subject: str | None) -> tuple[Path | None, str]:
    """Return the file to check, None for the default one, and the interface that it is for; "" without a subject."""
    if subject is None:
        return None, ""
    path = Path(subject)
    if "/" in subject or path.is_file() or path.suffix in {".toml", ".conf"}:
        return path.absolute(), path.stem
    return None, interface_name(subject)


def _host_warnings(interface: str, config: "Config") -> list[str]:
    from igd.process.host_check import host_warnings

    try:
        return host_warnings(interface, config) if interface else []
    except OSError as error:
        return [f"this host cannot be examined: {error}"]


def _check_warnings(file: Path | None, interface: str) -> list[str]:
    from igd import config_file
    from igd.config import DIRECTORY, default_path

    if not interface:
        return ["no file and no interface is given: these are the defaults"]
    if file is not None:
        return list(filter(None, [config_file.misnamed(file, DIRECTORY)]))
    read = default_path(interface)
    if not config_file.is_present(read):
        return _unread(interface) or [f"there is no {read}: these are the defaults"]
    return [*_unread(interface), *filter(None, [config_file.service_denial(read)])]


def _query(arguments: argparse.Namespace) -> int:
    from igd.operator import admin_client, status

    name = arguments.interface
    as_text: Callable[[Any], str]
    path, as_text = admin_client.STATUS, status.listing
    if arguments.command == "list":
        path, as_text = admin_client.MAPPINGS, status.table
    try:
        response = admin_client.get(Instance(name).runtime_directory, path)
    except (FileNotFoundError, ConnectionRefusedError):
        return _print_error(_why_silent(Instance(name)), FAILED)
    except PermissionError:
        return _print_error(f"the igd of {name} answers root and its own user only", FAILED)
    except OSError as error:
        return _print_error(f"the igd of {name} does not answer: {error}", FAILED)
    try:
        return _print(json.dumps(response, indent=2) if arguments.json else as_text(response))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _print_error(f"the igd of {name} sent an invalid response: {error!r}", FAILED)


def _names(arguments: argparse.Namespace) -> int:
    from igd import config_file
    from igd.config import Config, ConfigError, default_path, load
    from igd.operator import names

    source = arguments.source or Path(f"/etc/wireguard/{arguments.interface}.conf")
    path = arguments.config or default_path(arguments.interface)
    try:
        text = source.read_text(encoding="utf-8", errors="replace")
        config = load(path) if config_file.is_present(path) else Config()
        named = names.named(text, config)
        if arguments.write and named.sections:
            names.add(named.sections, path)
    except ConfigError as error:
        return _print_error(str(error), MISUSED)
    except PermissionError as error:
        return _print_error(f"{error.filename}: permission denied; run sudo igd names {arguments.interface}", FAILED)
    except OSError as error:
        return _print_error(f"{error.filename}: {error.strerror}; --from FILE names wg-quick's file", FAILED)
    return _print_names(named, source, path, written=arguments.write)


def _print_names(named: "Named", source: Path, path: Path, *, written: bool) -> int:
    """Print the sections, or that they were written; and on standard error which peers got none."""
    for note in named.notes:
        _print_error(f"{source}: {note}", OK)
    if named.sections:
        added = f"added to {path}; restart igd to use the names:\n" if written else ""
        return _print(added + "\n".join(named.sections))
    if named.notes:
        return _print_error(f'{source}: write a line such as "# laptop" above [Peer]', FAILED)
    return _print_error(f"every peer of {source} has its section in {path}", OK)


def _why_silent(instance: Instance) -> str:
    """Return why the daemon has no admin socket."""
    name = instance.interface
    try:
        missing = instance.waiting_for()
    except OSError:
        missing = None
    if missing is None:
        return f"igd is not running for {name}; see systemctl status igd@{name}"
    return f"igd waits for {missing}" if missing else f"igd is starting for {name}"


def _interface(text: str) -> str:
    try:
        return interface_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_INTERFACE = ("interface", {"metavar": "INTERFACE", "type": _interface, "help": "the WireGuard interface"})
_JSON = ("--json", {"action": "store_true", "help": "as JSON"})
_CONFIG = ("--config", {"metavar": "FILE", "type": Path, "help": "default: /etc/igd/INTERFACE.toml, if it exists"})
_DETACH = ("--detach", {"action": "store_true", "help": "run in the background; return once the daemon serves"})
_VERBOSE = ("--verbose", {"action": "store_true", "help": "log every request, and malformed ones"})
_SUBJECT = (
    "subject",
    {"metavar": "FILE|INTERFACE", "nargs": "?", "help": "a file, or the interface that it is for; default: none"},
)

_SOURCE = (
    "--from",
    {"dest": "source", "metavar": "FILE", "type": Path, "help": "default: /etc/wireguard/INTERFACE.conf"},
)
_WRITE = ("--write", {"action": "store_true", "help": "add the sections that the configuration lacks"})

COMMANDS = {
    "run": Command("Serve the peers of an interface.", (_INTERFACE, _CONFIG, _DETACH, _VERBOSE), _run),
    "stop": Command("Stop the daemon; remove what a killed one left in the firewall.", (_INTERFACE,), _stop),
    "check": Command("Check a configuration, and show it with all defaults.", (_SUBJECT,), _check),
    "names": Command(
        "Print sections with the names that comments in wg-quick's file give the peers.",
        (_INTERFACE, _SOURCE, _CONFIG, _WRITE),
        _names,
    ),
    "list": Command("List the mappings of all peers.", (_INTERFACE, _JSON), _query),
    "status": Command("Show the daemon's state and request counters.", (_INTERFACE, _JSON), _query),
}
