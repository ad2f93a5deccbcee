"""Debian's miniupnpd on the lab's server, with nftables or with iptables, as its operator runs it by hand."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.lab import Lab, Process

Backend = Literal["nftables", "iptables"]

FILE = "/etc/miniupnpd/miniupnpd.conf"
LEASES = "/var/lib/miniupnpd.leases"
UUID = "00000000-0000-4000-8000-000000000001"


def config(port: int = 0) -> str:
    """Return the configuration of a miniupnpd that serves this port, or one of its choice."""
    return f"""
ext_ifname=ens0
listening_ip=wg0
http_port={port}
enable_natpmp=yes
secure_mode=yes
uuid={UUID}
lease_file={LEASES}
allow 1024-65535 10.100.0.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


# As Debian's nft_init.sh makes them, with the rule that lets the clients out. Answered flows are not accepted: those of
# mappings pass by the rules of miniupnpd only.
NFT_CHAINS = """
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        jump miniupnpd
        iifname "wg0" accept
    }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
    }
    chain miniupnpd {
    }
    chain prerouting_miniupnpd {
    }
    chain postrouting_miniupnpd {
    }
}
"""

# As Debian's iptables_init.sh makes them.
_IPTABLES_CHAINS = {
    "filter": """*filter
:FORWARD DROP [0:0]
:MINIUPNPD - [0:0]
-A FORWARD -i ens0 ! -o ens0 -j MINIUPNPD
-A FORWARD -i wg0 -j ACCEPT
COMMIT
""",
    "nat": """*nat
:MINIUPNPD - [0:0]
:MINIUPNPD-POSTROUTING - [0:0]
-A PREROUTING -i ens0 -j MINIUPNPD
-I POSTROUTING -o ens0 -j MINIUPNPD-POSTROUTING
COMMIT
""",
}


@contextmanager
def laboratory(backend: Backend) -> Iterator[Lab]:
    """Build a lab whose server has the chains that miniupnpd fills, and drops what they do not accept."""
    with Lab(forward="open", iptables="nft" if backend == "nftables" else "legacy") as lab:
        if backend == "nftables":
            lab.srv.run("nft", "-f", "-", input=NFT_CHAINS)
        else:
            for chains in _IPTABLES_CHAINS.values():
                lab.srv.run("iptables-legacy-restore", "--noflush", input=chains)
        yield lab


def start(lab: Lab, program: Path | str) -> tuple[Process, str]:
    """Start miniupnpd; return it, and the URL of its description."""
    lab.srv.write(FILE, config())
    process = lab.srv.start(program, "-d", "-f", FILE)
    port = process.wait_for(r"HTTP listening on port (\d+)")[1]
    return process, f"http://10.100.0.1:{port}/rootDesc.xml"


def program(backend: Backend, directory: Path) -> Path | str:
    """Return the path of Debian's miniupnpd; that for iptables is unpacked, because the packages exclude each other."""
    if backend == "nftables":
        return "miniupnpd"
    run = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "miniupnpd-iptables")
    subprocess.run(run, cwd=directory, check=True)
    (package,) = directory.glob("*.deb")
    subprocess.run(("dpkg-deb", "-x", package, directory), check=True)
    return directory / "usr/sbin/miniupnpd"
