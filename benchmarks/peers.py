"""How soon igd follows a change of the peers, and what looking for one costs: `python -m benchmarks.peers`."""

import argparse
import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import gateways, natpmp, soap
from benchmarks.figures import Series
from benchmarks.gateways import Gateway
from benchmarks.soap import CLIENT, GATEWAY, PATIENCE
from igd.core.mapping import TransportProtocol
from tests.e2e import pcp_client
from tests.lab import Host, Lab
from tests.lab.wireguard import Iptables

BACKENDS: Mapping[str, Iptables] = {"nftables": "nft", "iptables": "legacy"}

_PORT = 8043
_PUBLIC, _REMOTE = "60.60.60.1", "60.60.60.2"
_CLIENT6 = "2001:470:100::2"
_SECOND, _SECOND6 = "10.100.0.3", "2001:470:100::3"
_INTERVAL = 0.002  # seconds between two packets
_SILENCE = 2.5  # seconds: nothing has come for so long, nothing will
_ALL_PACKETS = socket.htons(3)


class Change(NamedTuple):
    """Commands on the server after which the packets of a mapping must stop, and those that undo them."""

    make: str
    undo: str


_C1 = "wg set wg0 peer {c1}"
_BACK = f"{_C1} allowed-ips {CLIENT},{_CLIENT6} endpoint {{endpoint}}"

CHANGES = {
    "peer removed": Change(f"{_C1} remove", _BACK),
    "address taken from the peer": Change(f"{_C1} allowed-ips {_CLIENT6}", _BACK),
    "address moved to another peer": Change(f"wg set wg0 peer {{c2}} allowed-ips {_SECOND},{_SECOND6},{CLIENT}", _BACK),
    "route moved": Change(f"ip route add {CLIENT} via {_REMOTE}", f"ip route del {CLIENT}"),
    "routed by a rule": Change(f"ip rule add to {CLIENT} lookup 100", f"ip rule del to {CLIENT}"),
}


@contextmanager
def serving(backend: str, held: int = 0) -> Iterator[Gateway]:
    """Run igd with this backend and so many mappings; the firewall lets everything through."""
    with tempfile.TemporaryDirectory() as folder, Lab(iptables=BACKENDS[backend]) as lab:
        store = Path(folder) / "leases"
        gateways.write_store(lab, store, held)
        with gateways.igd(lab, store, f'[firewall]\nbackend = "{backend}"\n') as gateway:
            yield gateway


# Traffic stops


class _Stream:
    """UDP packets from the internet to the mapping, and when the server last sent one on to the client's address."""

    def __init__(self, lab: Lab) -> None:
        self._out = lab.net.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._seen = lab.srv.socket(socket.AF_PACKET, socket.SOCK_DGRAM, _ALL_PACKETS)
        self._ended = threading.Event()
        self._out.connect((_PUBLIC, _PORT))
        self._seen.settimeout(_SILENCE)
        self._sender = threading.Thread(target=self._send)
        self._sender.start()

    def wait_for_one(self) -> None:
        """Wait until a packet is sent on; TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while not self._is_mapped(*self._seen.recvfrom(2048)):
            if time.monotonic() > deadline:
                raise TimeoutError("no packet is sent on")

    def last(self) -> float:
        """Wait until no packet is sent on for _SILENCE; return the monotonic time of the last."""
        last = time.monotonic()
        while time.monotonic() < last + _SILENCE:
            if self._is_mapped(*self._seen.recvfrom(2048)):
                last = time.monotonic()
        return last

    def close(self) -> None:
        """Stop sending."""
        self._ended.set()
        self._sender.join()
        self._out.close()
        self._seen.close()

    def _send(self) -> None:
        while not self._ended.wait(_INTERVAL):
            try:
                self._out.send(b"packet")
            except ConnectionRefusedError:  # the port is closed
                continue

    @staticmethod
    def _is_mapped(packet: bytes, source: tuple[str, int, int, int, bytes]) -> bool:
        destination, port = packet[16:20], packet[22:24]
        outgoing = source[2] == socket.PACKET_OUTGOING
        return outgoing and destination == socket.inet_aton(CLIENT) and port == struct.pack("!H", _PORT)


def seconds_to_stop(gateway: Gateway, change: Change) -> float:
    """Map a port, make the change while packets pass, and return the seconds until the last one."""
    lab = gateway.lab
    names = {name: _key(client) for name, client in (("c1", lab.c1), ("c2", lab.c2))}
    names["endpoint"] = next(line.split()[1] for line in _show(lab.srv, "endpoints") if line.startswith(names["c1"]))
    soap.ask(lab.c1, gateway.control, soap.add("UDP", _PORT))
    stream = _Stream(lab)
    try:
        stream.wait_for_one()
        time.sleep(random.random())  # noqa: S311 - igd looks once a second, and not at the same time each round
        start = time.monotonic()
        lab.srv.run(*change.make.format_map(names).split())
        return max(0.0, stream.last() - start)
    finally:
        stream.close()
        lab.srv.run(*change.undo.format_map(names).split())
        _shake_hands_again(lab.c1)


def _key(client: Host) -> str:
    return client.run("wg", "show", "wg0", "public-key").stdout.strip()


def _show(host: Host, field: str) -> list[str]:
    return host.run("wg", "show", "wg0", field).stdout.splitlines()


def _shake_hands_again(client: Host) -> None:
    """Have the client forget its session: the server did, if it removed the peer."""
    client.run("bash", "-c", "wg set wg0 peer $(wg show wg0 peers) remove && wg addconf wg0 <(wg-quick strip wg0)")
    client.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", GATEWAY)


# A peer is served


_SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
)


def _search(client: Host, _gateway: Gateway) -> None:
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as searching:
        searching.settimeout(1.0)
        searching.sendto(_SEARCH, (GATEWAY, 1900))
        searching.recv(2048)


FIRST: Mapping[str, Callable[[Host, Gateway], object]] = {
    "NAT-PMP": lambda client, _: natpmp.ask(client, 5351, natpmp.mapping(TransportProtocol.TCP, 8100)),
    "PCP": lambda client, _: pcp_client.granted(pcp_client.map_port(client, 8101, source=_SECOND)),
    "UPnP": lambda client, gateway: soap.ask(client, gateway.control, soap.add("TCP", 8102, _SECOND)),
    "SSDP": _search,
}
"""The first request of a peer, which raises an exception unless it is granted at the first packet."""


def seconds_to_serve(gateway: Gateway, request: Callable[[Host, Gateway], object]) -> float:
    """Add an address to a peer that had none while another peer keeps the list fresh; time its first request."""
    lab = gateway.lab
    peer = ("wg", "set", "wg0", "peer", _key(lab.c2), "allowed-ips")
    lab.srv.run(*peer, _SECOND6)
    ended = threading.Event()
    busy = threading.Thread(target=_ask_always, args=(gateway, ended))
    busy.start()
    try:
        time.sleep(1.5)  # the list without the address is read
        lab.srv.run(*peer, f"{_SECOND},{_SECOND6}")
        start = time.monotonic()
        request(lab.c2, gateway)
        return time.monotonic() - start
    finally:
        ended.set()
        busy.join()


def _ask_always(gateway: Gateway, ended: threading.Event) -> None:
    while not ended.wait(0.005):
        soap.ask(gateway.lab.c1, gateway.control, soap.EXTERNAL_ADDRESS)


# Cost


def idle_percent(gateway: Gateway, seconds: float) -> float:
    """Return the share of one processor that igd and its children use while nobody asks, in percent."""
    time.sleep(5.0)  # its start is over
    before, start = gateway.processor_seconds(), time.monotonic()
    time.sleep(seconds)
    return 100 * (gateway.processor_seconds() - before) / (time.monotonic() - start)


def main() -> None:
    """Measure everything, and print as it comes."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long igd is watched while nobody asks")
    parser.add_argument("--backend", choices=[*BACKENDS], default="nftables")
    options = parser.parse_args()
    for held in (0, 100):
        with serving(options.backend, held) as gateway:
            print(f"{held} mappings: idle {idle_percent(gateway, options.seconds):.2f} %", flush=True)
    with serving(options.backend) as gateway:
        gateway.lab.srv.run("ip", "route", "add", "default", "via", _REMOTE, "table", "100")
        for name, change in CHANGES.items():
            times = Series(tuple(seconds_to_stop(gateway, change) for _ in range(options.rounds)))
            print(f"{name}: stopped in {times.shown()} s, at most {max(times.values):.2f}", flush=True)
        for name, request in FIRST.items():
            times = Series(tuple(seconds_to_serve(gateway, request) for _ in range(options.rounds)))
            print(f"peer added, {name}: served in {times.shown(1e3, 0)} ms", flush=True)


if __name__ == "__main__":
    main()
