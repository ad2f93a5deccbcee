"""What `igd migrate` does to files, to the rules of the kernel, and to the flows that it tracks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from igd.config import parse
from igd.operator.migrate import stopping, takeover
from igd.operator.migrate.conversion import convert
from igd.operator.migrate.planning import Miniupnpd, Plan, meant
from igd.operator.migrate.running import _files
from igd.operator.migrate.values import Situation
from tests.e2e.serving import IGD
from tests.lab import PATIENCE, Host
from tests.lab.fixtures import needs

_WG0 = Path("wg0.toml")


def plan(text: str = "ext_ifname=ens0\n") -> Plan:
    """Return the plan for a miniupnpd that does not run."""
    conversion = convert(text, Situation("wg0", {}))
    written = conversion.toml("miniupnpd.conf", {})
    return Plan(
        Miniupnpd(Path("miniupnpd.conf"), text, Path("leases.sqlite")), "wg0", conversion, written, parse(written, _WG0)
    )


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the configuration of wg0."""
    path = tmp_path / "igd" / "wg0.toml"
    monkeypatch.setattr(takeover, "default_path", lambda _interface: path)
    return path


def test_the_configuration_is_written(path: Path) -> None:
    assert takeover.write_config(plan()) == f"wrote {path}"
    assert path.read_text() == plan().written
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o755, 0o644)


def test_what_was_there_is_copied_before_each_change(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("http_port = 1\n")
    assert takeover.write_config(plan()).endswith(f"its former content is in {path}.bak")
    assert takeover.write_config(plan("ext_ifname=ens1\n")).endswith(f"its former content is in {path}.1.bak")
    assert Path(f"{path}.bak").read_text() == "http_port = 1\n"
    assert Path(f"{path}.1.bak").read_text() == plan().written


def test_the_same_content_needs_no_copy(path: Path) -> None:
    takeover.write_config(plan())
    assert takeover.write_config(plan()) == f"{path} is what it would become"
    assert list(path.parent.iterdir()) == [path]


def test_the_lease_file_is_read_unless_igd_has_served_since(tmp_path: Path) -> None:
    store, file = tmp_path / "leases.sqlite", tmp_path / "upnp.leases"
    miniupnpd = Miniupnpd(tmp_path / "miniupnpd.conf", f"lease_file={file}\n", store)
    assert (miniupnpd.mappings(), "names no lease_file that exists" in miniupnpd.origin) == ([], True)
    file.write_text("TCP:8043:10.100.0.2:8043:0:web\n")
    assert [str(each) for each in miniupnpd.mappings()] == ["TCP 8043 -> 10.100.0.2:8043"]
    assert miniupnpd.origin == str(file)
    store.touch()
    os.utime(file, (1, 1))
    assert (miniupnpd.mappings(), miniupnpd.origin) == ([], f"{file}, which is older than igd's leases")


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["miniupnpd", "-f", "/etc/x.conf", ""], "/etc/x.conf"),
        (["/usr/sbin/miniupnpd", "-d", "-f", "/etc/../etc/x.conf"], "/etc/x.conf"),
        (["miniupnpd", ""], "/etc/miniupnpd/miniupnpd.conf"),
        (["miniupnpd", "-N"], "/etc/miniupnpd.conf"),
    ],
)
def test_the_file_of_a_process(words: list[str], file: str) -> None:
    assert Path(file).resolve() in _files(words)
    assert Path("/etc/other.conf") not in _files(words)


def test_what_a_listening_ip_means() -> None:

    known = {"lo": (ip_interface("127.0.0.1/8"),), "wg0": (ip_interface("10.100.0.1/24"), ip_interface("fd00::1/64"))}
    words = ("wg0", "10.100.0.1/24", "10.100.0.0/16", "10.100.0.1", "fd00::/64", "eth9", "192.168.1.1/24")
    assert [meant(word, known) for word in words] == ["wg0"] * 5 + [""] * 2


@pytest.mark.parametrize(
    ("ignored", "status"), [("", -signal.SIGTERM), ("TERM", -signal.SIGINT), ("TERM INT", -signal.SIGKILL)]
)
def test_a_miniupnpd_that_misses_a_signal_ends_all_the_same(
    ignored: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    monkeypatch.setattr(stopping, "_SIGNALS", [(number, 0.2) for number in numbers[:2]] + [(numbers[2], PATIENCE)])
    trap = f"trap '' {ignored}; " if ignored else ""
    with subprocess.Popen(("sh", "-c", f"{trap}echo; exec sleep 1000"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the signals are ignored from now on
        assert stopping.stop(process.pid, unit=False) == f"kill {process.pid}"
        assert process.wait() == status


# A server with real programs


@pytest.fixture(scope="module")
def server(root: None) -> Iterator[Host]:
    """Return a host without networks."""
    needs("nft")
    with Host("srv") as host:
        yield host


_DEBIANS = """
table inet filter {
    chain forward { type filter hook forward priority 0; policy drop; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
    chain miniupnpd { ip daddr 10.100.0.2 tcp dport 8043 accept; }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""


@pytest.mark.parametrize(
    ("added", "endangered"),
    [
        ("", []),
        ("table inet filter { chain input { type filter hook input priority 0; }\n}", ["inet filter input"]),
        ("table inet filter { chain forward { ct state established accept; }\n}", ["inet filter forward"]),
        ("table inet other { chain input { type filter hook input priority 0; }\n}", []),
        ("table ip filter { chain input { type filter hook input priority 0; }\n}", []),
    ],
)
def test_rules_that_debians_script_would_delete_are_found(server: Host, added: str, endangered: list[str]) -> None:
    """It deletes the whole table `inet filter`, which Debian's own nftables.conf has for the operator's rules."""
    server.run("nft", "-f", "-", input=f"flush ruleset\n{_DEBIANS}{added}")
    server.write("/etc/miniupnpd/nft_removeall.sh", "")
    server.write("/etc/miniupnpd/miniupnpd_functions.sh", 'TABLE="filter"\nNAT_TABLE="filter"\n')
    server.write("/etc/default/miniupnpd", "MiniUPnPd_POSTSTOP_COMMAND=\n")
    assert _endangered(server) == endangered
    server.write("/etc/default/miniupnpd", "MiniUPnPd_POSTSTOP_COMMAND=true\n")
    assert _endangered(server) == []


def _endangered(server: Host) -> list[str]:
    code = "import json; from igd.operator.migrate import stopping; print(json.dumps(stopping.endangered(unit=True)))"
    found: list[str] = json.loads(server.run(*IGD[:2], sys.executable, "-c", code).stdout)
    return found


def test_only_the_rules_in_miniupnpds_chains_are_deleted(server: Host) -> None:
    server.run("nft", "-f", "-", input=f"flush ruleset\n{_DEBIANS}")
    code = "from igd.operator.migrate import stopping; print(*stopping.flush_chains([]))"
    assert server.run(*IGD[:2], sys.executable, "-c", code).stdout == "nft flush chain inet filter miniupnpd\n"
    left = server.run("nft", "list", "ruleset").stdout
    assert "8043" not in left
    assert left.count("jump") == 3


def test_a_file_that_cannot_be_read_is_named(server: Host) -> None:
    missing = server.run(*IGD, "migrate", "/etc/none.conf", check=False)
    assert (missing.returncode, missing.stderr) == (2, "igd: /etc/none.conf: No such file or directory\n")
