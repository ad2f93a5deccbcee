"""`auto` on servers that lack a program, a library or a right: what it chooses works there, and the log says why."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.serving import IGD, PUBLIC, REMOTE, serving, upnpc
from tests.lab import Answer, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Iptables

pytestmark = requires_root

_WRITABLE = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work && "
_WRITABLE += "mount -t overlay -o lowerdir=/usr/sbin,upperdir=/mnt/up,workdir=/mnt/work overlay /usr/sbin && "
WITHOUT_NFT = f"{_WRITABLE} rm /usr/sbin/nft"
WITHOUT_IPTABLES = f"{_WRITABLE} rm -f /usr/sbin/*tables* /usr/sbin/xtables-*"
WITHOUT_LEGACY_SAVE = f"{_WRITABLE} rm /usr/sbin/iptables-legacy-save"
WITHOUT_NET_RAW = ("setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw", *IGD)
LOCK_IS_DIRECTORY = "rm -f /run/xtables.lock; mkdir /run/xtables.lock"
LOCK_IS_LINK = "rm -f /run/xtables.lock; ln -s /run/elsewhere.lock /run/xtables.lock"
OWN_TABLE = "nft add table inet mine"

NOT_IN_USE = "this kernel supports nf_tables, and no IPv4 rules of iptables-legacy are in use"
UNSEEN = "rules of iptables-legacy, if there are any, cannot be seen: "
LEGACY = r"this host's own rules are iptables-legacy's \(filter, nat\)"
BESIDE = "mappings are kept in nftables, beside the rules of iptables-legacy: "


@pytest.mark.parametrize(
    ("iptables", "setup", "command", "backend", "reason", "warning"),
    [
        ("nft", "", IGD, "nftables", NOT_IN_USE, ""),
        ("nft", WITHOUT_NFT, IGD, "nftables", NOT_IN_USE, ""),
        ("nft", WITHOUT_IPTABLES, IGD, "nftables", NOT_IN_USE, ""),
        ("nft", "iptables-legacy -t nat -L; ip6tables-legacy -L", IGD, "nftables", NOT_IN_USE, ""),
        ("nft", "ip6tables-legacy -A INPUT -j ACCEPT", IGD, "nftables", NOT_IN_USE, ""),
        ("nft", "iptables-legacy -A INPUT -j ACCEPT", IGD, "nftables", r".*legacy \(filter\) and others are", ""),
        ("legacy", "", IGD, "iptables", LEGACY, ""),
        ("legacy", WITHOUT_NFT, IGD, "iptables", LEGACY, ""),
        ("legacy", OWN_TABLE, IGD, "nftables", r".*legacy \(filter, nat\) and others are in use", ""),
        ("legacy", LOCK_IS_LINK, IGD, "iptables", LEGACY, ""),
        ("legacy", LOCK_IS_DIRECTORY, IGD, "nftables", f"{LEGACY}, but the iptables backend cannot work",
         f"{BESIDE}cannot open iptables' lock /run/xtables.lock: Is a directory"),
        ("legacy", WITHOUT_LEGACY_SAVE, IGD, "nftables", "this kernel supports nf_tables",
         rf"{UNSEEN}there are tables \(filter, nat\), and iptables-legacy-save is not installed"),
        ("legacy", WITHOUT_IPTABLES, IGD, "nftables", "this kernel supports nf_tables",
         rf"{UNSEEN}there are tables \(filter, nat\), and iptables-legacy-save is not installed"),
        ("legacy", "", WITHOUT_NET_RAW, "nftables", "this kernel supports nf_tables",
         rf"{UNSEEN}there are tables \(filter, nat\), and listing them needs CAP_NET_RAW; see systemd/iptables-legacy"),
    ],
    ids=[
        "nothing", "no nft", "no iptables", "empty legacy", "legacy IPv6", "both", "legacy", "legacy, no nft",
        "legacy and a table", "lock is a link", "no lock", "no legacy-save", "legacy, no iptables", "no CAP_NET_RAW",
    ],
)  # fmt: skip
def test_what_auto_chooses_works(
    iptables: Iptables, setup: str, command: Sequence[str], backend: str, reason: str, warning: str
) -> None:
    needs("upnpc", "iptables-legacy-save")
    with Lab(iptables=iptables) as lab:
        lab.srv.run("sh", "-ec", setup)
        with serving(lab, command=command) as process, answering(lab.c1, 8043):
            (chosen,) = (line for line in process.lines if "firewall backend" in line)
            assert re.search(f": firewall backend {backend}: {reason}", chosen)
            warnings = [line for line in process.lines if line.startswith("WARNING igd.firewall.detect: ")]
            assert [bool(re.search(warning, line)) for line in warnings] == [True] * bool(warning), warnings
            upnpc(lab.c1, "-r", "8043", "tcp")
            assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise OSError('libip4tc.so.2: cannot open shared object file')", "libip4tc.so.2: cannot open shared object"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("class Match: pass", "module 'iptc' has no attribute 'xtables'"),
    ],
)
def test_a_python_iptables_that_does_not_work_is_not_chosen(tmp_path: Path, broken: str, reason: str) -> None:
    needs("upnpc", "iptables-legacy-save")
    (tmp_path / "iptc.py").write_text(broken)
    env, sources, *command = IGD
    with (
        Lab(iptables="legacy") as lab,
        serving(lab, command=(env, f"{sources}:{tmp_path}", *command)) as process,
        answering(lab.c1, 8043),
    ):
        log = "\n".join(process.lines)
        assert f"{BESIDE}python-iptables is installed and does not work here: {reason}" in log
        assert re.search(f"firewall backend nftables: {LEGACY}, but the iptables backend cannot work", log)
        assert "Traceback" not in log
        upnpc(lab.c1, "-r", "8043", "tcp")
        assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
