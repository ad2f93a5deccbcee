"""The standard streams of a command, which may be closed, broken, full, or unable to write a character."""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from igd.commands.command import FAILED, print_error

ENDED_BY_SIGNAL = 128
"""What shells add to the number of the signal that has ended a program, to get its exit status."""


def guarded(run: Callable[[], int]) -> int:
    """Run a command, and return its exit status; nothing that happens to its streams makes a traceback.

    A reader that has gone ends it like SIGPIPE, without a message. Whatever else standard output refuses is an error.
    SIGINT ends the process.
    """
    _prepare()
    try:
        return _run_and_flush(run)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # a shell ends its loop only if the signal has ended the program
        return ENDED_BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:
        _discard(sys.stdout)
        return ENDED_BY_SIGNAL + signal.SIGPIPE
    except OSError as error:
        _discard(sys.stdout)
        return print_error(f"the output was not written: {error.strerror or error}", FAILED)
    finally:
        try:
            sys.stderr.flush()
        except OSError:  # nobody can be told
            _discard(sys.stderr)


def _run_and_flush(run: Callable[[], int]) -> int:
    try:
        return run()
    finally:  # also if argparse exits
        sys.stdout.flush()


def _prepare() -> None:
    """Open descriptors that are closed, lest a file get their number, and escape what the terminal cannot encode.

    What is written to a standard output that was closed is an error; to such a standard error, nobody reads it.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115 - a descriptor, for the life of the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115 - likewise
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    """Have the interpreter write to nowhere what the stream still holds when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
