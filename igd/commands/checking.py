"""`igd check`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from igd.commands.command import MISUSED, OK, Argument, Command, print_error, print_text
from igd.host.interface_name import interface_name

if TYPE_CHECKING:
    from igd.config import Config

_SUBJECT: Argument = (
    "subject",
    {"metavar": "FILE|INTERFACE", "nargs": "?", "help": "a file, or the interface that it is for; default: none"},
)


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
        return print_error(str(error), MISUSED)
    try:
        host_warnings = _host_warnings(interface, config)
    except ConfigError as error:
        return print_error(f"{file or default_path(interface)}: {error}", MISUSED)
    for warning in [*_check_warnings(file, interface), *config.warnings, *host_warnings]:
        print_error(f"warning: {warning}", OK)
    return print_text(config.describe())


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
    return [*_unread(interface), *map(str, filter(None, [config_file.service_denial(read)]))]


CHECK = Command("Check a configuration, and show it with all defaults.", (_SUBJECT,), _check)
