"""Where no systemd runs, wg-quick's own lines start and stop igd."""

import re

import pytest

from tests.e2e.serving import PUBLIC, REMOTE, rules, upnpc
from tests.lab import PATIENCE, Answer, Lab, answering, ask
from tests.lab.fixtures import requires_root
from tests.systemd.booted import Layers, rules_without_tunnel

pytestmark = requires_root

LINES = ("PostUp = igd run %i --detach || true", "PostDown = igd stop %i || true", "PostDown = touch /run/down-%i")
_INSTALL = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/up /mnt/work
mount -t overlay -o "lowerdir=$1/opt:/opt,upperdir=/mnt/up,workdir=/mnt/work" overlay /opt
"""
_WG_QUICK = ("env", "PATH=/opt/igd/bin:/usr/sbin:/usr/bin:/sbin:/bin", "wg-quick")


def test_hooks_alone(layers: Layers) -> None:
    with Lab(wg=False, server_lines=LINES) as lab:
        before = rules_without_tunnel(lab)
        lab.srv.run("sh", "-c", _INSTALL, "sh", layers[0])
        for _ in range(2):
            lab.srv.run(*_WG_QUICK, "up", "wg0")
            lab.wg_up(lab.c1)
            with answering(lab.c1, 8043):
                upnpc(lab.c1, "-n", "10.100.0.2", "8043", "8043", "tcp", "300")
                assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
            lab.wg_down(lab.c1)
            lab.srv.run(*_WG_QUICK, "down", "wg0")
            assert rules(lab) == before
            assert "igd run" not in lab.srv.run("ps", "-eo", "args").stdout


@pytest.mark.parametrize(
    ("breaking", "warning"),
    [
        ("rm -r /opt/igd", "igd: command not found"),
        ("chmod a-x /opt/igd/bin/igd", "igd: Permission denied"),
        ("rm /opt/igd/bin/python*", "igd: No such file or directory|required file not found|igd: cannot execute"),
        ("rm -r /opt/igd/lib/python*/site-packages/igd", "No module named 'igd'"),
        ("echo 'http_port = 0' > /etc/igd/wg0.toml", "igd: /etc/igd/wg0.toml: http_port: 0: "),
        ("mkdir -p /run/igd/wg0/lock", "igd: wg0: .*Is a directory"),
    ],
    ids=["removed", "not executable", "no python", "no package", "a mistake", "it cannot lock"],
)
def test_the_tunnel_does_not_depend_on_igd(layers: Layers, breaking: str, warning: str) -> None:
    with Lab(wg=False, server_lines=LINES) as lab:
        before = rules_without_tunnel(lab)
        lab.srv.run("sh", "-ec", f"{_INSTALL}{breaking}", "sh", layers[0])
        up = lab.srv.run(*_WG_QUICK, "up", "wg0")
        assert re.search(warning, up.stderr), up.stderr
        lab.wg_up(lab.c1)
        lab.c1.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "10.100.0.1")
        lab.srv.run(*_WG_QUICK, "down", "wg0")
        lab.srv.run("test", "-e", "/run/down-wg0")
        assert rules(lab) == before


def test_lines_without_a_fallback_take_the_tunnel_down(layers: Layers) -> None:
    """What docs/operating.md says of lines that are left over, and why the lines above have `|| true`."""
    with Lab(wg=False, server_lines=("PostUp = igd run %i --detach",)) as lab:
        up = lab.srv.run(*_WG_QUICK, "up", "wg0", check=False)
        assert (up.returncode, "igd: command not found" in up.stderr) == (127, True)
        assert lab.srv.run("ip", "link", "show", "dev", "wg0", check=False).returncode == 1
