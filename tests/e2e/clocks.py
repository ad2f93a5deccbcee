"""Clocks of the server that a test sets, for igd alone: the machine's clocks are never touched."""

import shlex
import time
import uuid

from tests.e2e.serving import IGD
from tests.lab import Host

_LIBRARY, _SHIFTS = "/run/clocks.so", "/run/clocks"

# Between a program and its C library. What reads other clocks, such as asyncio's timers, does so as ever.
_SOURCE = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_BOOTTIME) {
        long wall, boottime;
        FILE *file = fopen("SHIFTS", "r");
        if (file == NULL || fscanf(file, "%ld %ld", &wall, &boottime) != 2)
            abort();
        fclose(file);
        now->tv_sec += clock == CLOCK_REALTIME ? wall : boottime;
    }
    return result;
}
"""


class Clocks:
    """The clocks of programs that `command` starts; needs gcc. They are right at first."""

    command = ("env", f"LD_PRELOAD={_LIBRARY}", *IGD)

    def __init__(self, host: Host) -> None:
        self._host = host
        self._wall = self._boottime = 0
        source = _SOURCE.replace("SHIFTS", _SHIFTS)
        host.run("gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", _LIBRARY, input=source)
        self._write()

    def set_wall(self, by: int = 0, *, to: int | None = None) -> None:
        """Set the wall clock by these seconds, or to these seconds since 1970."""
        self._wall = self._wall + by if to is None else to - int(time.time())
        self._write()

    def suspend(self, seconds: int) -> None:
        """Let the time of a suspend pass."""
        self._wall += seconds
        self._boottime += seconds
        self._write()

    def reboot(self, seconds_off: int) -> None:
        """Be off for these seconds, and boot. The kernel's state is that of before, which igd replaces."""
        self._wall += seconds_off
        self._boottime = 10 - int(time.clock_gettime(time.CLOCK_BOOTTIME))
        self._write()
        boot_id = str(uuid.uuid4())
        self._host.write(f"/run/{boot_id}", f"{boot_id}\n")
        self._host.run("mount", "--bind", f"/run/{boot_id}", "/proc/sys/kernel/random/boot_id")

    def _write(self) -> None:
        shifts = shlex.quote(f"{self._wall} {self._boottime}")
        self._host.run("sh", "-c", f"echo {shifts} > {_SHIFTS}.new && mv {_SHIFTS}.new {_SHIFTS}")


def in_time_namespace(boottime: int) -> tuple[str, ...]:
    """Return a command of igd whose CLOCK_BOOTTIME the kernel shifts by these seconds; needs Linux 6.1."""
    return ("unshare", "--time", "--boottime", str(boottime), *IGD)
