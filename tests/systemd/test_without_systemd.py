"""Where no systemd runs, wg-quick's own lines start and stop igd."""

from tests.e2e.serving import PUBLIC, REMOTE, rules, upnpc
from tests.lab import Answer, Lab, answering, ask
from tests.lab.fixtures import requires_root
from tests.systemd.booted import Layers, rules_without_tunnel

pytestmark = requires_root

LINES = ("PostUp = igd run %i --detach", "PostDown = igd stop %i")
_INSTALL = 'mount -t overlay -o "lowerdir=$1/opt:/opt" overlay /opt'
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
