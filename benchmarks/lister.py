"""One peer that lists its mappings: `python -m benchmarks.lister CONNECTIONS SECONDS`, in the network of the peer.

It prints "listing" when it begins, and at the end how long a list took in milliseconds. It has a process of its own, so
that what it reads does not delay the peer that is measured.
"""

import socket
import sys
import threading
import time

from benchmarks.figures import Series
from benchmarks.soap import GATEWAY, PATIENCE, Action, Control, encode

LIST = Action(
    "GetListOfPortMappings",
    {
        "NewStartPort": 1,
        "NewEndPort": 65535,
        "NewProtocol": "TCP",
        "NewManage": 0,
        "NewNumberOfPorts": 0,
    },
)

CONTROL = Control(2869, "/control/WANIPConn1")
RECEIVED = 1 << 20  # octets at once


def main() -> None:
    """List, and print."""
    connections, seconds = int(sys.argv[1]), float(sys.argv[2])
    times: list[float] = []
    end = time.monotonic() + seconds

    def list_again() -> None:
        while time.monotonic() < end:
            times.append(_list())

    threads = [threading.Thread(target=list_again) for _ in range(connections)]
    print("listing", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("listed", Series(tuple(times)).shown(1e3), flush=True)


def _list() -> float:
    with socket.create_connection((GATEWAY, CONTROL.port), PATIENCE) as connection:
        start = time.perf_counter()
        connection.sendall(encode(CONTROL, LIST))
        head = connection.recv(RECEIVED)
        while connection.recv(RECEIVED):
            pass
    if not head.startswith(b"HTTP/1.1 200 "):
        raise OSError(head.decode(errors="replace"))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
