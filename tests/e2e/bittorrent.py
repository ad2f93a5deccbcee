"""A BitTorrent client that is run in a lab's host.

    bittorrent.py seed TORRENT DIRECTORY [upnp|natpmp|upnp,natpmp]
    bittorrent.py fetch TORRENT DIRECTORY ADDRESS PORT

It uses no tracker, no DHT and no local discovery. `seed` maps its port, by UPnP unless other protocols are given
(libtorrent's "natpmp" is PCP, where the gateway supports that), and runs until SIGTERM; `fetch` connects to this one
peer, and ends when it has everything.
"""

import signal
import sys
from collections.abc import Collection, Iterator
from typing import Any

import libtorrent

_SETTINGS: dict[str, Any] = {
    "alert_mask": libtorrent.alert.category_t.port_mapping_notification
    | libtorrent.alert.category_t.peer_notification
    | libtorrent.alert.category_t.status_notification,
    "enable_dht": False,
    "enable_lsd": False,
    "listen_interfaces": "0.0.0.0:6881",
}
_ALERT_MILLISECONDS = 200


def _session(torrent: str, directory: str, mappers: Collection[str]) -> tuple[Any, Any]:
    enabled = {f"enable_{mapper}": mapper in mappers for mapper in ("upnp", "natpmp")}
    session = libtorrent.session({**_SETTINGS, **enabled})  # type: ignore[call-overload]  # a dict will do
    wanted = libtorrent.load_torrent_file(torrent)
    wanted.save_path = directory
    return session, session.add_torrent(wanted)


def _alerts(session: Any) -> Iterator[Any]:  # noqa: ANN401 - libtorrent has no types
    while True:
        session.wait_for_alert(_ALERT_MILLISECONDS)
        yield None
        yield from session.pop_alerts()


def _print(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def seed(torrent: str, directory: str, mappers: str = "upnp") -> None:
    """Map the port and serve; prints `mapped PROTOCOL PORT by MAPPER` and `visited by ADDRESS`."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    session, _ = _session(torrent, directory, mappers.split(","))
    for alert in _alerts(session):
        if ended:
            return  # the session's end waits until the ports are closed
        if isinstance(alert, libtorrent.portmap_alert):
            mapper = str(alert.map_transport)
            _print("mapped", str(alert.map_protocol).upper(), alert.external_port, "by", mapper)
        elif isinstance(alert, libtorrent.portmap_error_alert):
            _print(alert.message())
        elif isinstance(alert, libtorrent.incoming_connection_alert):
            _print("visited by", alert.endpoint[0])


def fetch(torrent: str, directory: str, address: str, port: str) -> None:
    """Fetch from this one peer; prints `complete`."""
    session, handle = _session(torrent, directory, ())
    handle.connect_peer((address, int(port)))
    for alert in _alerts(session):
        if isinstance(alert, libtorrent.torrent_finished_alert):
            _print("complete")
            return


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "seed":
        seed(*words)
    else:
        fetch(*words)
