"""The limit of open files: connections and events must leave enough descriptors for everything else."""

import logging
import resource

log = logging.getLogger(__name__)

OTHERS = 128
"""Descriptors besides those of connections and of deliveries of events: sockets on each address, netlink, the store,
programs and their output. Without connections a running igd has 26."""


def fitting(connections: int, subscriptions: int) -> tuple[int, int]:
    """Return how many of these there may be at once, after raising the limit of open files where that helps.

    Each connection needs a descriptor, and each subscription one while an event is delivered. Without descriptors for
    `wg` and for the firewall, no request of any peer could be granted.
    """
    wanted = connections + subscriptions
    limit = _raised(wanted + OTHERS)
    if limit >= wanted + OTHERS:
        return connections, subscriptions
    part = max(0, limit - OTHERS) / wanted
    fits = max(1, int(connections * part)), max(1, int(subscriptions * part))
    log.warning(
        "%d HTTP connections at once instead of %d, and %d subscriptions instead of %d, because igd may have %d open"
        " files; write LimitNOFILE=%d in the unit (systemctl edit), or lower limits.connections and"
        " limits.subscriptions in the configuration",
        *(fits[0], connections, fits[1], subscriptions, limit, wanted + OTHERS),
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
