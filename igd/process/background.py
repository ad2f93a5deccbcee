"""Into the background: the caller gets the terminal back once the daemon serves."""

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
"""How long the log file may become before it is begun anew: it lies in memory, and peers fill it."""

_READY = b"+"


def detach(serve: Callable[[Callable[[], None]], int], log_file: Path, patience: float) -> int:
    """Run `serve(on_ready)` in a process of its own; give its exit status if it ends at once, 0 once it is ready.

    Until then it writes to our standard error; from then on to syslog, or to `log_file` where there is none. After
    `patience` seconds it is left to wait alone, and that counts as success.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return _wait(child, reading, patience)
    os.close(reading)
    os.setsid()
    status = 1
    try:
        status = serve(lambda: _leave_terminal(log_file, writing))
    except BaseException:  # nobody above would print it
        logging.getLogger(__name__).exception("ended by a mistake of its own")
    finally:
        with contextlib.suppress(OSError):
            logging.shutdown()
        os._exit(status)


def _wait(child: int, reading: int, patience: float) -> int:
    if not select.select([reading], [], [], patience)[0]:
        sys.stderr.write("igd: still waiting, in the background\n")
        return 0
    if os.read(reading, 1) == _READY:
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _leave_terminal(log_file: Path, writing: int) -> None:
    _log_elsewhere(log_file)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    with contextlib.suppress(BrokenPipeError):  # whoever started us has not waited
        os.write(writing, _READY)
    os.close(writing)


def _log_elsewhere(log_file: Path) -> None:
    handler: logging.Handler
    if SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"igd[{os.getpid()}]: %(message)s"))
    else:
        handler = logging.handlers.RotatingFileHandler(log_file, maxBytes=LOG_BYTES, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
