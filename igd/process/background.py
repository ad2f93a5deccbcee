"""Runs the daemon in the background: the command returns once the daemon serves."""

import contextlib
import logging
import logging.handlers
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

SYSLOG = Path("/dev/log")

LOG_BYTES = 1 << 20
"""The size at which the log file is rotated: /run is in memory, and peers cause the log lines."""

_READY = b"+"


def detach(serve: Callable[[Callable[[], None]], int], log_file: Path, timeout: float) -> int:
    """Run `serve(on_ready)` in a child process; return 0 once it is ready, or its exit status if it ends before.

    The child logs to standard error until it is ready, then to syslog, or to `log_file` if there is no syslog. After
    `timeout` seconds, return 0 although the child is not ready yet.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return _wait(child, reading, timeout)
    os.close(reading)
    os.setsid()
    status = 1
    try:
        status = serve(lambda: _release_terminal(log_file, writing))
    except BaseException:  # os._exit prints no traceback
        logging.getLogger(__name__).exception("igd failed unexpectedly")
    finally:
        with contextlib.suppress(OSError):
            logging.shutdown()
        os._exit(status)


def _wait(child: int, reading: int, timeout: float) -> int:
    if not select.select([reading], [], [], timeout)[0]:
        sys.stderr.write("igd: not ready yet: continuing in the background\n")
        return 0
    if os.read(reading, 1) == _READY:
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _release_terminal(log_file: Path, writing: int) -> None:
    _log_to_syslog_or_file(log_file)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    with contextlib.suppress(BrokenPipeError):  # the parent process did not wait
        os.write(writing, _READY)
    os.close(writing)


def _log_to_syslog_or_file(log_file: Path) -> None:
    handler: logging.Handler
    if SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"igd[{os.getpid()}]: %(message)s"))
    else:
        handler = logging.handlers.RotatingFileHandler(log_file, maxBytes=LOG_BYTES, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.filters = logging.getLogger().handlers[0].filters
    logging.getLogger().handlers[:] = [handler]
