"""Reads the configuration again while igd runs: `igd reload` and SIGHUP."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from igd import log_lines, toml
from igd.config import Config, ConfigError
from igd.config_peers import without_peer
from igd.operator.admin_paths import RELOAD, RefusedError
from igd.process.in_kernel import InKernel
from igd.process.parts import Parts

log = logging.getLogger(__name__)

_AT_START = ("uuid", "http_port", "friendly_name", "store", "firewall", "port_control.enabled", "port_control.anycast")
"""What only a start can change, by section or by key; see also `_stun_changes`."""

_EXTERNAL = ("external_interface", "external_address", "stun_servers")


class Reloaded(NamedTuple):
    """What came of reading the configuration again; the changed keys are dotted, and a peer's are its section.

    `closed` are the mappings that are no longer allowed, as texts.
    """

    changed: list[str]
    at_restart: list[str]
    closed: list[str]
    warnings: list[str]


class Reloading:
    """The configuration in force, and how it is read again with `load`, which raises ConfigError.

    `unread` returns a sentence for each file that looks like the configuration and is not read.
    """

    def __init__(self, config: Config, load: Callable[[], Config], unread: Callable[[], list[str]]) -> None:
        self.config = config
        self._load = load
        self._unread = unread
        self._parts: Parts | None = None
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None  # of the signals
        self._again = False  # a signal has come since the task read the file

    async def serve(self, parts: Parts) -> None:
        """Apply changes to these parts from now on, and what has changed since they began to be opened."""
        async with self._lock:
            self._parts = parts
            running, self.config = parts.host.config, _applicable(self.config, parts.host.config)
            if self.config is not running and _differences(running, self.config):
                await _apply(parts, self.config, [])
        parts.actions[RELOAD] = self._reload_for_operator

    def begin(self) -> None:
        """Reload in a task, on a signal; the log has what comes of it. Signals that come meanwhile are one more."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._reload_on_signal())

    async def _reload_on_signal(self) -> None:
        while self._again:
            self._again = False
            with contextlib.suppress(ConfigError, OSError):  # `reload` has logged it
                await self.reload()

    async def _reload_for_operator(self, _value: object) -> dict[str, list[str]]:
        try:
            return (await self.reload())._asdict()
        except (ConfigError, OSError) as error:
            raise RefusedError(str(error)) from None

    async def reload(self) -> Reloaded:
        """Read the file again and apply what can change; ConfigError or OSError, and no change, if it is bad.

        Mappings stay, but for those that are no longer allowed (igd.policy_changes).
        """
        async with self._lock:
            try:
                return await self._reload()
            except (ConfigError, OSError) as error:
                for line in str(error).splitlines():
                    log.error("the configuration was not reloaded, the former one stays in force: %s", line)
                raise

    async def _reload(self) -> Reloaded:
        read = self._load()
        parts = self._parts
        if parts is not None:
            wireguard, interface = parts.host.wireguard, parts.host.instance.interface
            read.reject_own_key(interface, await wireguard.public_key())
            config = _applicable(read, self.config)
        else:
            config = read  # nothing was opened yet
        changed, at_restart = _differences(self.config, config), _differences(config, read)
        self.config = config
        log_lines.change_limit(config.limits.log_lines_per_second, config.policies.label)
        closed: list[str] = []
        found = [] if parts is None else await _apply(parts, config, closed)
        result = Reloaded(changed, at_restart, closed, [*self._unread(), *read.warnings, *found])
        _report(result)
        return result


async def _apply(parts: Parts, config: Config, closed: list[str]) -> list[str]:
    """Have all parts use this configuration; add closed mappings to `closed`, and return warnings."""
    gateway, host, site = parts.gateway, parts.host, parts.firewall.site
    host.config = config
    InKernel(host.instance).record(config)
    gateway.policies = config.policies
    gateway.rate_limit.per_second = config.limits.requests_per_second
    if site.request_rate is not None:
        site.request_rate = replace(site.request_rate, per_second=config.limits.requests_per_second)
    host.external_address.configure(config.external_interface, config.external_address)
    parts.endpoints.configure(config)
    host.wireguard.name_of = config.policies.name_of  # the peers count as changed, and all that follows them is told
    try:
        closed += map(str, await parts.maintenance.follow_policies())
    except OSError as error:
        return [f"the peers cannot be read, and mappings will be checked as soon as they can: {error}"]
    return without_peer(config.policies, host.instance.interface, host.wireguard.last_read)


def _report(result: Reloaded) -> None:
    log.info("the configuration was reloaded: %s", ", ".join(result.changed) or "nothing has changed")
    for warning in result.warnings:
        log.warning(warning)
    if result.at_restart:
        log.warning("in force after a restart: %s", ", ".join(result.at_restart))


def _applicable(read: Config, running: Config) -> Config:
    """Return what was read, with the running values of what only a start can change."""
    kept = [*_AT_START, *(_EXTERNAL if "stun" in {read.external_address, running.external_address} else ())]
    update: dict[str, Any] = {key: getattr(running, key) for key in kept if "." not in key}
    for dotted in kept:
        section, _, key = dotted.partition(".")
        if key:
            before = update.get(section, getattr(read, section))
            update[section] = before.model_copy(update={key: getattr(getattr(running, section), key)})
    return read.model_copy(update=update)


def _differences(one: Config, other: Config) -> list[str]:
    """Return the dotted keys whose values differ, and the sections of peers."""
    first, second = (dict(_values(config)) for config in (one, other))
    return [key for key in {**first, **second} if first.get(key) != second.get(key)]


def _values(config: Config) -> Iterator[tuple[str, object]]:
    """Yield each dotted key and its value; the rules as they are applied, whichever key has them."""
    plain = config.model_dump(exclude={"peers", "rules", "allow"})
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, value
    yield "rules", config.policy.rules
    for name, peer in config.peers.items():
        yield toml.dotted(("peers", name)), peer
