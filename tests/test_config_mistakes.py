"""Each mistake in a configuration file is named with its line and with what to write instead, which is accepted."""

import re
import tomllib
from pathlib import Path

import pytest

from igd.config import Config, ConfigError, load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wg0.toml"


def errors_of(path: Path, text: str) -> list[str]:
    """Return the lines of the error without the path, which begins each of them."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def accepted(written: str) -> Config:
    """Return the configuration of one line that a message says to write; `a = b in a section [c]` is two lines."""
    line, _, section = written.partition(" in a section ")
    return Config.model_validate(tomllib.loads(f"{section}\n{line}"))


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("ext_ifname=ens0", 'external_interface = "ens0"'),
        ("ext_ifname = ens0 # eth0", 'external_interface = "ens0"'),
        ("ext_ip=203.0.113.7", 'external_address = "203.0.113.7"'),
        ("http_port=5000 # TCP\nenable_natpmp=yes", "enabled = true in a section [port_control]"),
        ("enable_pcp_pmp=no", "enabled = false in a section [port_control]"),
        ("pcp_allow_thirdparty=yes", "third_party = true in a section [port_control]"),
        ("uuid=0d5f4e7c-5b2e-4c35-9b0d-2f6f2f1c0001", 'uuid = "0d5f4e7c-5b2e-4c35-9b0d-2f6f2f1c0001"'),
        ("uuid=00000000-0000-0000-0000-000000000000", 'uuid = "00000000-0000-0000-0000-000000000000"'),
        ("friendly_name=My Router", 'friendly_name = "My Router"'),
        ("allow 1024-65535 10.100.0.0/16 1024-65535", 'rules = ["allow 1024-65535 10.100.0.0/16 1024-65535"]'),
        ("deny 0-65535 0.0.0.0/0 0-65535", 'rules = ["deny 0-65535 0.0.0.0/0 0-65535"]'),
        ('allow 80 10.0.0.1 80 "^web"', "rules = ['allow 80 10.0.0.1 80 \"^web\"']"),
        ("allow 80 10.0.0.1 80\ndeny 1 ::/0 1", 'rules = ["allow 80 10.0.0.1 80", "deny 1 ::/0 1"]'),
        ("rules = [\n    allow 80 10.0.0.1 80,\n]", 'rules = ["allow 80 10.0.0.1 80"]'),
        ("external_interface = ens0", 'external_interface = "ens0"'),
        ('external_interface = "ens0', 'external_interface = "ens0"'),
        ("external_interface = ens0'", 'external_interface = "ens0"'),
        ("external_interface: ens0", 'external_interface = "ens0"'),
        ('external_interface: "ens0"', 'external_interface = "ens0"'),
        ("external_interface = \u201cens0\u201d", 'external_interface = "ens0"'),
        ('external_interface\u00a0= "ens0"', 'external_interface = "ens0"'),
        ("external_address = 203.0.113.7", 'external_address = "203.0.113.7"'),
        ("allow = 1024-65535 10.100.0.0/16 1024-65535", 'allow = ["1024-65535 10.100.0.0/16 1024-65535"]'),
        ("[peers.müller]", '[peers."müller"]'),
        ("[peers.Ann's phone]", '[peers."Ann\'s phone"]'),
        ("[peers.my.old phone]  # Ann's", '[peers."my.old phone"]'),
        ("[ peers.Ann Lee.leases ]", '[peers."Ann Lee".leases]'),
        ('[peers."Ann]', '[peers."Ann"]'),
        ("[peers.\u201cAnn\u201d]", '[peers."Ann"]'),
        ("[peers.ann", '[peers."ann"]'),
        ("; a comment", "# a comment"),
        ("// a comment", "# a comment"),
    ],
)  # fmt: skip
def test_a_line_that_is_not_toml_is_named_with_the_line_to_write(path: Path, line: str, written: str) -> None:
    (error,) = errors_of(path, f"# a comment\n\n{line}\n")
    assert re.search(r"line [34]\b", error)
    assert error.endswith(f"write {written}")
    tomllib.loads(written) if written.startswith("[") else accepted(written)


@pytest.mark.parametrize(("word", "literal"), [("yes", "true"), ("True", "true"), ("on", "true"), ("No", "false")])
def test_words_for_true_and_false(path: Path, word: str, literal: str) -> None:
    assert errors_of(path, f"[firewall]\nhairpin = {word}\n") == [
        f"line 2: hairpin = {word}: this is not TOML; write hairpin = {literal}"
    ]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("listening_ip=wg0", "delete it: the WireGuard interface is given by igd run INTERFACE or igd@INTERFACE"),
        ("lease_file=/var/lib/miniupnpd/leases", "delete it: igd has a file of its own for each interface"),
        ("secure_mode=yes", "delete it: peers map ports to their own addresses only"),
        ("model_description=x", "delete it: it describes the product, and igd describes itself"),
        ("clean_ruleset_interval=600", "delete it: mappings end with their leases; see idle_after for peers that"),
        ("ext_perform_stun=yes", 'write external_address = "stun" and stun_servers = ["HOST:PORT"]'),
        ("ext_perform_stun=no", "delete it: that is igd's default"),
        ("ext_stun_host=stun.example.net", 'write stun_servers = ["stun.example.net"]'),
        ("ext_stun_port=3478", 'write stun_servers = ["HOST:3478"]'),
        ("port=0", "delete it: that is igd's default"),
        ("port=", "delete it: that is igd's default"),
    ],
)
def test_what_igd_has_in_another_way_or_not_at_all(path: Path, line: str, remedy: str) -> None:
    error, _ = errors_of(path, f"{line}\nexternal_interface = ens0\n")
    assert error.startswith(f"line 1: {line.partition('=')[0]} is a setting of miniupnpd: {remedy}")


def test_every_line_of_a_pasted_file_is_named_at_once(path: Path) -> None:
    """Its values are no TOML, or are by chance, and two rules become one list."""
    pasted = ["ext_ifname=ens0", "listening_ip=wg0", "bitrate_up=1000000", "", "# uuidgen", "uuid=0000-1"]
    errors = errors_of(path, "\n".join([*pasted, "allow 1 10.0.0.1 1", "deny 2 ::/0 2"]))
    assert [error.partition(":")[0] for error in errors] == [f"line {number}" for number in (1, 2, 3, 6, 7)]
    assert errors[-1].endswith('write rules = ["allow 1 10.0.0.1 1", "deny 2 ::/0 2"]')


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        ("bitrate_up=1000000", "bitrate_up: a setting of miniupnpd: delete it"),
        ("port=5000", "port: a setting of miniupnpd: write http_port = 5000"),
        ("max_lifetime=86400", "max_lifetime: a setting of miniupnpd: write max = 86400 in a section [leases]"),
        ('ext_ifname="ens0"', 'ext_ifname: a setting of miniupnpd: write external_interface = "ens0"'),
        ("enable_natpmp=true", "enable_natpmp: a setting of miniupnpd: write enabled = true in a section [port_contr"),
        (
            "http_prot = 1",
            "http_prot: unknown key; did you mean http_port? Allowed are external_interface, external_ad",
        ),
        ('External-Interface = ""', "External-Interface: unknown key; did you mean external_interface?"),
        ("external_interfac = 1", "external_interfac: unknown key; did you mean external_interface?"),
        ("[Firewall]", "Firewall: unknown key; did you mean firewall?"),
        ("[firewall]\nbakend = 1", "firewall.bakend: unknown key; did you mean backend? Allowed are backend, mark"),
        ("bakend = 1", "bakend: unknown key; allowed are external_interface"),
        ("backend = 1", "backend: unknown key here; write backend in a section [firewall]"),
        ("[leases]\nrules = []", "leases.rules: unknown key in a section; write rules above the first [section]"),
        ("[leases]\nbackend = 1", "leases.backend: unknown key here; write backend in a section [firewall]"),
        ('"leases.max" = 60', '"leases.max": unknown key; write max in a section [leases]'),
        ("[Interface]\nListenPort = 51820", "Interface: this section belongs in wg-quick's file, /etc/wireguard/"),
        ("[[peer]]", "peer: this section belongs in wg-quick's file, /etc/wireguard/"),
    ],
)
def test_an_unknown_key_is_named_with_the_key_to_write(path: Path, line: str, reported: str) -> None:
    (error,) = errors_of(path, line)
    assert error.startswith(reported)


@pytest.mark.parametrize(
    "text",
    [
        "[Interface]\nAddress = 10.100.0.1/24\nPrivateKey = c2VjcmV0=\n",
        "# igd\n[interface]\nPrivateKey = c2VjcmV0=\n",
        "[Peer]\nPresharedKey = c2VjcmV0=\n",
        "PrivateKey = c2VjcmV0=\n",
        "PresharedKey=c2VjcmV0=\n",
        'PrivateKey = "c2VjcmV0="\n',
    ],
)
def test_a_key_of_wireguard_is_in_no_message(path: Path, text: str) -> None:
    (error,) = errors_of(path, text)
    assert "c2VjcmV0" not in error
    assert "wg-quick" in error or "unknown key" in error


def test_what_stands_before_a_pasted_line_is_named_first(path: Path) -> None:
    assert errors_of(path, "a = [1,, 2]\next_ifname=ens0\n") == ["Invalid value (at line 1, column 8): a = [1,, 2]"]
