"""`igd migrate` where systemd runs miniupnpd: the unit is stopped and disabled, and igd's is started."""

import contextlib

from tests.e2e.former_gateway import FILE, NFT_CHAINS, config
from tests.e2e.serving import C1, PUBLIC, REMOTE, operators_rules
from tests.lab import answering
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import call, put
from tests.systemd.booted import SERVICE, WG_QUICK, Layers, assert_serves, booted

pytestmark = requires_root

_UNIT = "miniupnpd.service"
_PORT = 5000

# As Debian's unit and scripts do it: what is in the table besides goes with it.
_FILES = {
    f"/etc/systemd/system/{_UNIT}": f"""
[Service]
Type=forking
EnvironmentFile=-/etc/default/miniupnpd
ExecStartPre=nft -f /etc/miniupnpd/chains.nft
ExecStart=/usr/sbin/miniupnpd -f {FILE}
ExecStopPost=sh -c 'test -n "$MiniUPnPd_POSTSTOP_COMMAND" || sh /etc/miniupnpd/nft_removeall.sh'
PIDFile=/run/miniupnpd.pid
[Install]
WantedBy=multi-user.target
""",
    "/etc/miniupnpd/chains.nft": NFT_CHAINS,
    "/etc/miniupnpd/miniupnpd_functions.sh": "TABLE=filter\nNAT_TABLE=filter\n",
    "/etc/miniupnpd/nft_removeall.sh": "nft delete table inet filter\n",
    FILE: config(_PORT),
}


def test_the_unit_of_miniupnpd_gives_way_to_that_of_igd(layers: Layers) -> None:
    needs("miniupnpd", "upnpc")
    with booted(layers, files=_FILES, forward="open") as (lab, machine), contextlib.ExitStack() as life:
        lab.srv.run("install", "/usr/sbin/miniupnpd", "/run/machine/root/usr/sbin/miniupnpd")
        machine.run("systemctl", "start", WG_QUICK)
        machine.run("systemctl", "enable", "--now", _UNIT)
        lab.wg_up(lab.c1)
        url = f"http://10.100.0.1:{_PORT}/rootDesc.xml"
        lab.c1.run("upnpc", "-u", url, "-a", C1, "8043", "8043", "tcp", "3600")
        life.enter_context(answering(lab.c1, 8043))
        remote = life.enter_context(call(lab.net, PUBLIC, 8043))

        refused = machine.run("/opt/igd/bin/igd", "migrate", FILE, "--write", check=False)
        assert (refused.returncode, "inet filter forward" in refused.stderr) == (1, True)
        assert machine.shows(_UNIT, "ActiveState") == ("active",)

        remedy = refused.stderr.splitlines()[-1].removeprefix("igd: ")
        machine.run("sh", "-c", remedy)
        printed = machine.run("/opt/igd/bin/igd", "migrate", FILE, "--write").stdout
        assert "started igd@wg0.service\n" in printed
        assert "to go back: igd stop wg0 && systemctl enable --now miniupnpd" in printed
        assert machine.shows(_UNIT, "ActiveState", "UnitFileState") == ("inactive", "disabled")
        assert_serves(machine)
        machine.await_state(SERVICE, "active")
        assert put(remote).source == REMOTE
        assert "8043->10.100.0.2:8043" in lab.c1.run("upnpc", "-u", url, "-l").stdout
        owners = machine.run("stat", "-c", "%U %a", "/var/lib/igd/wg0", "/var/lib/igd/wg0/leases.sqlite").stdout
        assert owners == "igd 700\nigd 600\n"
        assert 'iifname "wg0" accept' in operators_rules(lab)
