"""Syncthing in a lab's host, with as little as it needs to map its port: it asks no server and finds nobody."""

import re
import ssl
from pathlib import Path

from tests.e2e.serving import PUBLIC, mappings
from tests.lab import Host, Lab, Process

PORT = 22000
SEARCH_SECONDS = 3
"""Instead of 10. It is the MX of its searches, of which 1.29 makes three, one after the other."""

_OFF = "".join(
    f"<{option}>false</{option}>"
    for option in (
        "globalAnnounceEnabled",
        "localAnnounceEnabled",
        "relaysEnabled",
        "startBrowser",
        "crashReportingEnabled",
    )
)
_CONFIG = f"""<configuration version="36">
<gui enabled="false"></gui>
<options><listenAddress>tcp://0.0.0.0:{PORT}</listenAddress>{_OFF}<urAccepted>-1</urAccepted>
<natTimeoutSeconds>{SEARCH_SECONDS}</natTimeoutSeconds></options>
</configuration>
"""


def start(host: Host, home: Path) -> Process:
    """Start it with this empty directory for its files; it reports each interface on which it searches."""
    (home / "config.xml").write_text(_CONFIG)
    words = ("syncthing", "serve", f"--home={home}", "--no-browser", "--no-restart", "--no-default-folder")
    return host.start("env", "STNOUPGRADE=1", "STTRACE=upnp,nat", *words)


def opened(syncthing: Process) -> set[tuple[str, int]]:
    """Return address and port of all that it reported to have opened."""
    report = re.compile(r"external TCP address(?:\(es\) \[)? ?\[?([0-9a-f:.]+?)\]?:(\d+)\]? to local address")
    return {(match[1], int(match[2])) for match in map(report.search, syncthing.lines) if match}


def listed(lab: Lab) -> set[tuple[str, int]]:
    """Return address and port of all mappings and pinholes that lead to it."""
    found = [
        (each["internal_address"], each["external_port"]) for each in mappings(lab) if each["internal_port"] == PORT
    ]
    return {(address if ":" in address else PUBLIC, port) for address, port in found}


def certificate(home: Path) -> bytes:
    """Return what the program that was started with this directory proves its identity with."""
    return ssl.PEM_cert_to_DER_cert((home / "cert.pem").read_text())
