"""Which pinholes the kernel holds for an endpoint: several may admit different remotes to it."""

from collections.abc import Collection, Iterable

from igd.core.mapping import Change, Endpoint, Entry, Key, Pinhole, Remote

EndpointKey = tuple[int, Endpoint]


class OpenPinholes:
    """The remotes of each pinhole, by protocol and endpoint. One thread writes, and others may read."""

    def __init__(self) -> None:
        self._remotes: dict[EndpointKey, dict[Key, tuple[Remote, ...]]] = {}

    def replace(self, entries: Iterable[Entry]) -> None:
        """Have exactly the pinholes of `entries`."""
        remotes: dict[EndpointKey, dict[Key, tuple[Remote, ...]]] = {}
        for entry in entries:
            if isinstance(entry.mapping, Pinhole):
                remotes.setdefault(_endpoint(entry.mapping), {})[entry.mapping.key] = entry.mapping.remotes
        self._remotes = remotes

    def change(self, changes: Iterable[Change]) -> None:
        """Close and open pinholes."""
        for change in changes:
            entry = change.after or change.before
            if entry is not None and isinstance(entry.mapping, Pinhole):
                endpoint, key = _endpoint(entry.mapping), change.key
                held = {each: remotes for each, remotes in self._remotes.get(endpoint, {}).items() if each != key}
                if change.after is not None:
                    held[key] = entry.mapping.remotes
                self._remotes[endpoint] = held  # at once: a renewed pinhole is never closed for those who read
                if not held:
                    del self._remotes[endpoint]

    def admit(self, protocol: int, endpoint: Endpoint, source: Endpoint) -> bool:
        """Return whether a pinhole lets packets from `source` through to the endpoint."""
        return any(admits(remotes, source) for remotes in self._remotes.get((protocol, endpoint), {}).values())


def admits(remotes: Collection[Remote], source: Endpoint) -> bool:
    """Return whether a mapping with these remotes admits the source."""
    return not remotes or any(
        source.address in remote.network and remote.port in (0, source.port) for remote in remotes
    )


def _endpoint(pinhole: Pinhole) -> EndpointKey:
    return int(pinhole.protocol), pinhole.internal
