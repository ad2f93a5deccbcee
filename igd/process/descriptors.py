"""The limit of open files: connections must leave enough descriptors for everything else."""

import logging
import resource

log = logging.getLogger(__name__)

OTHERS = 128
"""Descriptors besides those of connections: sockets on each address, netlink, the store, programs and their output.
Without connections a running igd has 26."""


def fitting(connections: int) -> int:
    """Return how many of `connections` may be open at once, after raising the limit of open files where that helps.

    Without descriptors for `wg` and for the firewall, no request of any peer could be granted.
    """
    needed = connections + OTHERS
    limit = _raised(needed)
    if limit >= needed:
        return connections
    fits = max(1, limit - OTHERS)
    log.warning(
        "%d HTTP connections at once instead of %d, because igd may have %d open files; "
        "write LimitNOFILE=%d in the unit (systemctl edit), or a lower limits.connections in the configuration",
        *(fits, connections, limit, needed),
    )
    return fits


def _raised(needed: int) -> int:
    """Return the limit of open files, which is at least `needed` if it can be raised so far."""
    soft, hard = (needed if limit == resource.RLIM_INFINITY else limit for limit in _limits())
    if soft < min(needed, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), _limits()[1]))
        except OSError:  # a service may be forbidden to change its limits; its unit sets them
            log.debug("the limit of open files stays at %d", soft)
        else:
            soft = min(needed, hard)
    return soft


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)
