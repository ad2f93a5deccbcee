"""igd without its extra for the iptables backend, on a server whose own rules are iptables-legacy's."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.firewalls import ALLOWED, FIREWALLS, loaded
from tests.e2e.serving import C2, IGD, PUBLIC, REMOTE, operators_rules, rules, serving, start, upnpc
from tests.lab import Answer, CommandFailed, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

(LEGACY,) = (firewall for firewall in FIREWALLS if firewall.iptables == "legacy")
OPERATORS = 8080
"""A port that peers may map, were it not for a redirection of the operator's."""
INSTALL = f"{sys.prefix}/bin/pip install 'wg-igd[iptables]'"


@pytest.fixture
def lab() -> Iterator[Lab]:
    needs("upnpc", "iptables-legacy-save")
    with Lab(forward=LEGACY.forward, iptables=LEGACY.iptables) as lab, loaded(LEGACY, lab):
        lab.srv.run(*f"iptables-legacy -t nat -A PREROUTING -p udp --dport {OPERATORS} -j DNAT --to {C2}".split())
        yield lab


@pytest.fixture
def without_library(tmp_path: Path) -> tuple[str, ...]:
    """The command of an igd that cannot import python-iptables."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['iptc'] = None\n")
    env, sources, *command = IGD
    return (env, f"{sources}:{tmp_path}", *command)


def test_auto_serves_by_nftables_and_says_what_to_install(lab: Lab, without_library: tuple[str, ...]) -> None:
    before, before_of_operator = rules(lab), operators_rules(lab)
    with (
        answering(lab.c1, 8043, "tcp"),
        answering(lab.c1, 8043, "udp"),
        answering(lab.c2, ALLOWED),
        serving(lab, command=without_library) as process,
    ):
        (warning,) = (line for line in process.lines if "mappings are kept in nftables" in line)
        assert warning.startswith("WARNING")
        assert warning.endswith(INSTALL)
        assert any("firewall backend nftables" in line for line in process.lines)
        upnpc(lab.c1, "-r", "8043", "tcp", "8043", "udp")
        for protocol in ("tcp", "udp"):
            assert ask(lab.net, PUBLIC, 8043, protocol) == Answer(REMOTE, "who am I?")
        assert ask(lab.net, PUBLIC, ALLOWED) == Answer(REMOTE, "who am I?"), "the operator's own redirection"
        with pytest.raises(CommandFailed, match="718"):
            upnpc(lab.c1, "-r", str(OPERATORS), "udp")
        assert operators_rules(lab) == before_of_operator
    assert rules(lab) == before


def test_the_iptables_backend_ends_with_the_line_that_installs_it(lab: Lab, without_library: tuple[str, ...]) -> None:
    before = rules(lab)
    lab.srv.write("/etc/igd/wg0.toml", '[firewall]\nbackend = "iptables"\n')
    done = lab.srv.run(*without_library, "run", "wg0", check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.endswith(f"{INSTALL}\n")
    assert "Traceback" not in done.stderr
    assert rules(lab) == before


def test_igd_stop_removes_what_the_iptables_backend_left(lab: Lab, without_library: tuple[str, ...]) -> None:
    before = rules(lab)
    with start(lab, '[firewall]\nbackend = "iptables"\n') as process:
        upnpc(lab.c1, "-r", "8043", "tcp")
        process.signal(signal.SIGKILL)
        process.wait()
    assert "--to-destination 10.100.0.2:8043" in rules(lab)
    lab.srv.run(*without_library, "stop", "wg0", timeout=20)
    assert rules(lab) == before
