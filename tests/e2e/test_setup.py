"""`igd setup` on servers without systemd: a client maps and is reached; --undo leaves nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.e2e.firewalls import firewalld
from tests.e2e.serving import C1, PUBLIC, REMOTE, natpmpc, rules, upnpc
from tests.lab import Answer, Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

CONF = "/etc/wireguard/wg0.conf"
LINES = "PostUp = igd run %i --detach || true\nPostDown = igd stop %i || true\n"
WITH_IGD = ("env", f"PATH={Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


def setup(srv: Host, *options: str, check: bool = True) -> "CompletedProcess[str]":
    """Run `igd setup wg0`."""
    return srv.run(*WITH_IGD, "igd", "setup", "wg0", *options, check=check)


def files(srv: Host) -> str:
    """Return names, modes, owners and sums of the files where setup and igd write."""
    listing = "find /etc/wireguard /etc/igd /etc/ufw /etc/firewalld /var/lib/igd* /run/igd -xdev"
    show = f"{listing} -printf '%p %M %u %l\n' | sort; {listing} -type f -exec sha256sum {{}} + | sort -k2"
    return srv.run("sh", "-c", f"({show}) 2>/dev/null").stdout


def running(srv: Host) -> bool:
    """Return whether igd runs."""
    return "igd run wg0" in srv.run("ps", "-eo", "args").stdout


def wg_quick(lab: Lab, verb: str) -> None:
    """Take the server's interface down or up; return when c1's tunnel works."""
    lab.srv.run(*WITH_IGD, "wg-quick", verb, "wg0")
    if verb == "up":
        lab.wg_down(lab.c1)
        lab.wg_up(lab.c1)


def assert_reached(lab: Lab) -> None:
    """Map a port from c1, and assert that the internet reaches it."""
    with answering(lab.c1, 8043):
        upnpc(lab.c1, "-r", "8043", "tcp")
        assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")


@pytest.fixture(scope="module")
def server(root: None) -> Iterator[Lab]:
    """Return a lab in which nothing is set up before or after a test."""
    needs("upnpc", "natpmpc", "nft")
    with Lab() as lab:
        yield lab


@pytest.fixture
def untouched(server: Lab) -> Iterator[Lab]:
    """Assert that a test leaves files and rules as they were."""
    before = files(server.srv), rules(server)
    yield server
    assert (files(server.srv), rules(server)) == before
    assert not running(server.srv)


def test_a_client_maps_and_is_reached_until_it_is_undone(untouched: Lab) -> None:
    command = " ".join((*WITH_IGD, "igd", "setup", "wg0"))
    done = untouched.srv.run("script", "-qec", command, "/dev/null", input="y\n").stdout.replace("\r", "")
    assert "Do this? [y/N]" in done
    assert "UPnP at TCP 10.100.0.1:2869: answers\nNAT-PMP and PCP at UDP 10.100.0.1:5351: answers\n" in done
    assert f"public address   {PUBLIC}\n" in done
    assert_reached(untouched)
    assert "nothing is to be done" in setup(untouched.srv, "--yes").stdout
    setup(untouched.srv, "--undo", "--yes")
    assert not running(untouched.srv)


def test_the_plan_is_shown_and_nothing_is_done_without_a_yes(untouched: Lab) -> None:
    refused = setup(untouched.srv, check=False)
    assert refused.returncode == 1
    assert f"add to {CONF}:" in refused.stdout
    assert "nothing was changed; --yes does it without asking" in refused.stderr


def test_if_igd_cannot_start_everything_is_undone(untouched: Lab) -> None:
    with untouched.srv.start("socat", "-d", "-d", "TCP4-LISTEN:2869,reuseaddr", "STDOUT") as other:
        other.wait_for("listening on")
        failed = setup(untouched.srv, "--yes", check=False)
    assert failed.returncode == 1
    assert "TCP 10.100.0.1:2869: Address already in use" in failed.stderr


def test_before_the_interface_is_up_igd_is_made_to_start_with_it() -> None:
    with Lab(wg=False) as lab:
        lab.srv.run(
            "sh", "-ec", f"cp -p {CONF} /run/wg0.conf; mount --bind /run/wg0.conf {CONF}"
        )  # as into a container
        before = files(lab.srv)
        assert "wg0 is not up, and igd starts with it" in setup(lab.srv, "--yes").stdout
        lab.srv.run(*WITH_IGD, "wg-quick", "up", "wg0")
        lab.wg_up(lab.c1)
        until(lambda: running(lab.srv))
        assert_reached(lab)
        setup(lab.srv, "--undo", "--yes")
        assert (files(lab.srv), running(lab.srv)) == (before, False)


def test_without_wg_quick_and_systemd_nothing_is_done(untouched: Lab) -> None:
    untouched.srv.run("mv", CONF, "/etc/wireguard/other.conf")
    failed = setup(untouched.srv, "--yes", check=False)
    untouched.srv.run("mv", "/etc/wireguard/other.conf", CONF)
    assert failed.returncode == 1
    assert "without systemd, wg-quick must start igd: there is no /etc/wireguard/wg0.conf" in failed.stderr


# Firewalls


def _reject(srv: Host, _stack: ExitStack) -> None:
    for accepted in ("-i lo", "-p udp --dport 51820", "-p icmp"):
        srv.run("iptables-nft", "-A", "INPUT", *accepted.split(), "-j", "ACCEPT")
    for last in ("REJECT", "LOG"):
        srv.run("iptables-nft", "-A", "INPUT", "-j", last)


def _ufw(srv: Host, stack: ExitStack) -> None:
    for words in ("--force reset", "allow 51820/udp", "route allow in on wg0", "--force enable"):
        srv.run("ufw", *words.split())
    stack.callback(srv.run, "ufw", "disable")


def _firewalld(srv: Host, stack: ExitStack) -> None:
    settings = (
        "--add-interface=wg0",
        "--add-interface=ens0",
        "--add-masquerade",
        "--add-port=51820/udp",
        "--add-forward",
    )
    firewalld(srv, stack, *(f"--zone=public {setting}" for setting in settings))


@pytest.mark.parametrize(
    ("load", "programs"),
    [(_ufw, ("ufw",)), (_firewalld, ("firewalld", "dbus-daemon", "gdbus"))],
    ids=["ufw", "firewalld"],
)
def test_the_firewall_lets_peers_in_until_it_is_undone(
    load: Callable[[Host, ExitStack], None], programs: tuple[str, ...]
) -> None:
    needs("natpmpc", *programs)
    with Lab() as lab, ExitStack() as stack:
        load(lab.srv, stack)
        before = files(lab.srv), rules(lab)
        setup(lab.srv, "--yes")
        assert natpmpc(lab.c1, "8043", "8043", "udp", "60")[0] == 8043
        assert "10.100.0.2" in upnpc(lab.c1, "-l")
        setup(lab.srv, "--undo", "--yes")
        assert (files(lab.srv), rules(lab)) == before


def test_the_interface_takes_igd_and_its_openings_with_it_and_brings_them_back() -> None:
    """With SaveConfig, wg-quick writes the file anew: without comments, and with what the kernel has."""
    with Lab() as lab, ExitStack() as stack:
        _reject(lab.srv, stack)
        conf = lab.srv.run("cat", CONF).stdout
        lab.srv.write(CONF, conf.replace("ListenPort", "# mine\nSaveConfig = true\nListenPort"))
        before = rules(lab)
        setup(lab.srv, "--yes")
        added = [
            line for line in lab.srv.run("cat", CONF).stdout.splitlines() if line not in {*conf.splitlines(), "# mine"}
        ]
        assert len(added) == 1 + 2 + 2 * 3, "SaveConfig; start and stop; and the same for each port"
        wg_quick(lab, "down")
        assert "1900" not in rules(lab)
        assert not running(lab.srv)
        wg_quick(lab, "up")
        until(lambda: running(lab.srv))
        assert_reached(lab)
        saved = lab.srv.run("cat", CONF).stdout.splitlines()
        assert "# mine" not in saved
        assert set(added) <= set(saved)
        setup(lab.srv, "--undo", "--yes")
        left = [line for line in saved if line not in added or line == "SaveConfig = true"]
        assert lab.srv.run("cat", CONF).stdout.splitlines() == left
        assert (rules(lab), running(lab.srv)) == (before, False)


NATIVE = """
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "wg0" accept
    }
}
"""


def test_nftables_own_forward_chain_is_named_in_the_configuration(server: Lab) -> None:
    server.srv.run("nft", "-f", "-", input=NATIVE)
    server.srv.write("/etc/igd/wg0.toml", f'rules = ["allow 1024-65535 {C1} 1024-65535"]')
    before = files(server.srv), rules(server)
    setup(server.srv, "--yes")
    assert_reached(server)
    setup(server.srv, "--undo", "--yes")
    assert (files(server.srv), rules(server)) == before
    server.srv.run("nft", "delete", "table", "inet", "filter")
    server.srv.run("rm", "/etc/igd/wg0.toml")
