"""A real BitTorrent client opens its port by itself, is reached through it, and closes it."""

import hashlib
import json
import random
import sys
from pathlib import Path

import pytest

from tests.e2e import bittorrent
from tests.e2e.default_route import THROUGH_GATEWAY
from tests.e2e.serving import PUBLIC, REMOTE, held, mappings, ports, serving
from tests.lab import PATIENCE, Lab, call, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

CLIENT = (sys.executable, bittorrent.__file__)
CONTENT = random.Random(1).randbytes(1_000_000)
PIECE = 2**16  # bytes


@pytest.fixture
def seeded(tmp_path: Path) -> Path:
    """Return a directory with CONTENT in it, and beside it content.torrent."""
    (tmp_path / "seeded").mkdir()
    (tmp_path / "seeded/content").write_bytes(CONTENT)
    pieces = (CONTENT[start : start + PIECE] for start in range(0, len(CONTENT), PIECE))
    hashes = b"".join(hashlib.sha1(piece).digest() for piece in pieces)  # noqa: S324 - the format demands SHA-1
    # BEP 3: a dictionary of dictionaries, keys in order, strings with their lengths before them
    sizes = (len(CONTENT), PIECE, len(hashes), hashes)
    info = b"d6:lengthi%de4:name7:content12:piece lengthi%de6:pieces%d:%se" % sizes
    (tmp_path / "content.torrent").write_bytes(b"d4:info" + info + b"e")
    return tmp_path / "seeded"


@pytest.mark.parametrize("mappers", ["upnp", "natpmp", "upnp,natpmp"])
def test_libtorrent_maps_its_port_and_is_fetched_from(seeded: Path, mappers: str) -> None:
    """With PCP alone, and as it comes: by both at once, and each closes what is one mapping."""
    needs("nft")
    torrent, fetched = seeded.with_name("content.torrent"), seeded.with_name("fetched")
    with Lab(client_lines=THROUGH_GATEWAY) as lab, serving(lab) as process:
        with lab.c1.start(*CLIENT, "seed", torrent, seeded, mappers) as client:
            wanted = {(protocol, mapper) for protocol in ("TCP", "UDP") for mapper in mappers.split(",")}
            mapped = [client.wait_for(r"mapped (\w+) (\d+) by (\w+)") for _ in wanted]
            assert {(match[1], match[3]) for match in mapped} == wanted
            port = mapped[0][2]
            assert sorted(ports(lab)) == [("TCP", int(port)), ("UDP", int(port))]
            assert any("('PCP')" in line for line in process.lines) == ("natpmp" in mappers)
            assert lab.net.run(*CLIENT, "fetch", torrent, fetched, PUBLIC, port).stdout == "complete\n"
            assert (fetched / "content").read_bytes() == CONTENT
            client.wait_for(f"visited by {REMOTE}")
            assert client.stop() == 0
        assert ports(lab) == held(lab) == []


def test_transmission_maps_its_port(lab: Lab, tmp_path: Path) -> None:
    needs("nft", "transmission-daemon")
    settings = {"peer-port": 51413, "port-forwarding-enabled": True, "dht-enabled": False, "rpc-enabled": False}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with serving(lab):
        with lab.c1.start("transmission-daemon", "--foreground", "--config-dir", tmp_path):
            until(lambda: held(lab) == [("TCP", 51413), ("UDP", 51413)])
            leases = [mapping["lease"] for mapping in mappings(lab)]
            assert leases == [pytest.approx(604800, abs=PATIENCE)] * 2  # it asked for no end
            call(lab.net, PUBLIC, 51413).close()
        assert ports(lab) == held(lab) == []
