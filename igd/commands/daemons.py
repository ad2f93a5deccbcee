"""Asks the daemon of one interface, or those of all, and explains silence."""

from typing import Any, NamedTuple

from igd.commands.command import INTERFACE, Argument
from igd.process import instance
from igd.process.instance import Instance

_, _OPTIONS = INTERFACE
SOME_INTERFACE: Argument = ("interface", {**_OPTIONS, "nargs": "?", "help": f"{_OPTIONS['help']}; default: all"})


class Answers(NamedTuple):
    """What the daemons answered, by interface, and a sentence for each that did not.

    `named`: the user named one interface.
    """

    found: dict[str, Any]
    errors: list[str]
    named: bool


class SilentDaemonError(Exception):
    """A daemon did not answer; the text says why, as far as can be seen."""


def ask_all(interface: str | None, path: str) -> Answers:
    """Ask the daemon of this interface, or all that run if it is None."""
    answers = Answers({}, [], interface is not None)
    names = [interface] if interface else running(answers.errors)
    for name in names:
        try:
            answers.found[name] = ask(name, path)
        except SilentDaemonError as silence:
            answers.errors.append(str(silence))
    return answers


def running(errors: list[str]) -> list[str]:
    """Return the interfaces whose daemons run; add a sentence to `errors` if there is none."""
    try:
        found = [each.interface for each in instance.running()]
    except OSError as error:
        errors.append(f"{instance.DIRECTORY} cannot be read: {error.strerror}")
        return []
    if not found:
        errors.append("igd is not running for any interface; see systemctl status 'igd@*'")
    return found


def ask(interface: str, path: str, value: object = None) -> Any:  # noqa: ANN401 - any JSON value
    """Return what the daemon of this interface answers; SilentDaemonError.

    With a `value`, the daemon does something; RefusedError.
    """
    from igd.operator import admin_client

    directory = Instance(interface).runtime_directory
    try:
        return admin_client.get(directory, path) if value is None else admin_client.post(directory, path, value)
    except (FileNotFoundError, ConnectionRefusedError):
        raise SilentDaemonError(_why_silent(Instance(interface))) from None
    except PermissionError:
        raise SilentDaemonError(f"the igd of {interface} answers root and its own user only") from None
    except OSError as error:
        raise SilentDaemonError(f"the igd of {interface} does not answer: {error}") from None


def _why_silent(silent: Instance) -> str:
    """Return why the daemon has no admin socket."""
    name = silent.interface
    try:
        missing = silent.waiting_for()
    except OSError:
        missing = None
    if missing is None:
        return f"igd is not running for {name}; see systemctl status igd@{name}"
    return f"igd waits for {missing}" if missing else f"igd is starting for {name}"
