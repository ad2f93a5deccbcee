"""`igd add` and `igd revoke`."""

import argparse
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from igd.commands.command import FAILED, INTERFACE, MISUSED, OK, Argument, Command, print_error, print_line
from igd.commands.daemons import SilentDaemonError, ask
from igd.core.mapping import parse_ports
from igd.operator import admin_paths
from igd.operator.admin_paths import RefusedError

MAX_SECONDS = 2**31
"""The longest lease that the configuration allows."""

MAX_DESCRIPTION = 128


def _add(arguments: argparse.Namespace) -> int:
    value = {
        "protocol": arguments.protocol,
        "port": None if arguments.port == "any" else arguments.port,
        "address": arguments.address,
        "internal_port": arguments.internal_port or (arguments.port if arguments.port != "any" else None),
        "seconds": arguments.seconds,
        "description": arguments.description,
    }
    if value["internal_port"] is None:
        return print_error("an external port that igd chooses needs INTERNAL-PORT", MISUSED)
    return _changed(arguments.interface, admin_paths.ADD, value, lambda answer: print_line(f"added: {answer}"))


def _revoke(arguments: argparse.Namespace) -> int:
    value = {name: getattr(arguments, name) for name in ("protocol", "ports", "to", "peer")}
    if not any(value.values()):
        return print_error("say which: PROTOCOL PORTS, --to ADDRESS, or --peer NAME", MISUSED)
    if value["protocol"] and not value["ports"]:
        return print_error(f"which ports? {value['protocol']} 1-65535 means all", MISUSED)
    return _changed(arguments.interface, admin_paths.REVOKE, value, _print_revoked)


def _print_revoked(answer: Any) -> int:  # noqa: ANN401 - any JSON value
    for mapping in answer["closed"]:
        print_line(f"revoked: {mapping}")
    for sentence in answer["refused"]:
        print_error(str(sentence), FAILED)
    return FAILED if answer["refused"] else OK


def _changed(interface: str, path: str, value: object, show: Callable[[Any], int]) -> int:
    """Post the value and show the answer; return the exit status."""
    try:
        return show(ask(interface, path, value))
    except RefusedError as refused:
        return print_error(str(refused), FAILED)
    except SilentDaemonError as silence:
        return print_error(str(silence), FAILED)
    except (KeyError, TypeError) as error:
        return print_error(f"the igd of {interface} sent an invalid response: {error!r}", FAILED)


def _ports(text: str) -> str:
    """Return `text` if it is a port or a range of ports."""
    try:
        parse_ports(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _number(text: str, largest: int, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(largest)) or not 1 <= int(text) <= largest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} from 1 to {largest}")
    return int(text)


def _port(text: str) -> int:
    return _number(text, 65535, "port")


def _port_or_any(text: str) -> int | str:
    return text if text == "any" else _port(text)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as 10.100.0.2 or 2001:db8::2") from None


def _seconds(text: str) -> int:
    return _number(text, MAX_SECONDS, "number of seconds")


def _description(text: str) -> str:
    if not text.isprintable() or len(text) > MAX_DESCRIPTION:
        raise argparse.ArgumentTypeError(f"a description has up to {MAX_DESCRIPTION} printable characters")
    return text


_PROTOCOLS = ("tcp", "udp")
_PROTOCOL: Argument = ("protocol", {"metavar": "tcp|udp", "choices": _PROTOCOLS, "help": "the transport protocol"})

ADD = Command(
    "Map a port for a peer, as if it had asked for it: its rules and its quota apply.",
    (
        INTERFACE,
        _PROTOCOL,
        ("port", {"metavar": "PORT", "type": _port_or_any, "help": "the external port, or any"}),
        ("address", {"metavar": "ADDRESS", "type": _address, "help": "an address of the peer; of IPv6: a pinhole"}),
        ("internal_port", {"metavar": "INTERNAL-PORT", "nargs": "?", "type": _port, "help": "default: PORT"}),
        (
            "--seconds",
            {
                "metavar": "SECONDS",
                "type": _seconds,
                "default": 0,
                "help": "default: while the peer is alive",
            },
        ),
        ("--description", {"metavar": "TEXT", "type": _description, "default": "added by the operator"}),
    ),
    _add,
)

REVOKE = Command(
    "Close mappings, and tell their clients. They may ask again: the rules decide on that.",
    (
        INTERFACE,
        ("protocol", {**_PROTOCOL[1], "nargs": "?"}),
        ("ports", {"metavar": "PORTS", "nargs": "?", "type": _ports, "help": "the external port, or a range"}),
        ("--to", {"metavar": "ADDRESS", "type": _address, "help": "only to this internal address, pinholes too"}),
        ("--peer", {"metavar": "NAME", "help": "only of this peer, by its name or public key, pinholes too"}),
    ),
    _revoke,
)
