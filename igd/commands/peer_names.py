"""`igd names`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from igd.commands.command import CONFIG, FAILED, INTERFACE, MISUSED, OK, Argument, Command, print_error, print_text

if TYPE_CHECKING:
    from igd.operator.names import Named

_SOURCE: Argument = (
    "--from",
    {"dest": "source", "metavar": "FILE", "type": Path, "help": "default: /etc/wireguard/INTERFACE.conf"},
)
_WRITE: Argument = ("--write", {"action": "store_true", "help": "add the sections that the configuration lacks"})


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
        return print_error(str(error), MISUSED)
    except PermissionError as error:
        return print_error(f"{error.filename}: permission denied; run sudo igd names {arguments.interface}", FAILED)
    except OSError as error:
        return print_error(f"{error.filename}: {error.strerror}; --from FILE names wg-quick's file", FAILED)
    return _print_names(named, source, path, written=arguments.write)


def _print_names(named: "Named", source: Path, path: Path, *, written: bool) -> int:
    """Print the sections, or that they were written; and on standard error which peers got none."""
    for note in named.notes:
        print_error(f"{source}: {note}", OK)
    if named.sections:
        added = f"added to {path}; igd reload has igd use the names:\n" if written else ""
        return print_text(added + "\n".join(named.sections))
    if named.notes:
        return print_error(f'{source}: write a line such as "# laptop" above [Peer]', FAILED)
    return print_error(f"every peer of {source} has its section in {path}", OK)


NAMES = Command(
    "Print sections with the names that comments in wg-quick's file give the peers.",
    (INTERFACE, _SOURCE, CONFIG, _WRITE),
    _names,
)
