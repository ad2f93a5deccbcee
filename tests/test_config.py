"""The configuration file is used as written; each error in it is reported in one line."""

import json
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.config import HTTP_PORT, Config, ConfigError, PortControlSettings, default_path, load, load_for
from igd.core.policy import ANY_UNPRIVILEGED, Policy, PortRule
from igd.host.interface_name import interface_name

FULL = r"""
external_interface = "eth1"
external_address = "203.0.113.7"
uuid = "0d5f4e7c-5b2e-4c35-9b0d-2f6f2f1c0001"
http_port = 5000
friendly_name = "Küche"
routed_hosts = false
idle_after = 600
rules = [
    'deny 5000 10.100.0.0/16 0-65535 "^evil"',
    "allow 1024-65535 10.100.0.0/16 1024-65535",
]

[leases]
min = 120
max = 86400
default = 3600

[limits]
mappings_per_peer = 8
requests_per_second = 20
connections = 100
connections_per_peer = 10
subscriptions = 20
subscriptions_per_peer = 4
log_lines_per_second = 5

[port_control]
enabled = false
anycast = false
third_party = true

[firewall]
backend = "iptables"
mark = 0x2000
hairpin = false
preserve_source_port = true
own_table = true
forward_chain = "inet filter forward"

[store]
path = "/srv/igd/leases.sqlite"

[peers.laptop]
public_key = "GLiBCyzMu7qF7JbIWShcKmJ4d3rcVnEUQDZV6LYKYDw="
rules = ["allow 3000-3999 0.0.0.0/0 0-65535"]
max_mappings = 4
leases = { min = 300, max = 3600, default = 1800 }
protocols = ["nat-pmp", "pcp"]
routed_hosts = true
reserve = ["tcp 25565", "udp 3000-3010"]
static = ["tcp 443 10.100.0.2 8443", "tcp 22 2001:db8::2 22"]
masquerade_inbound = true
idle_after = 0

[peers."Oma's \"Handy\" 🏠"]
public_key = "w9Vd1mYw8f0oA7Gk9N5wYc5bq0sS8r6Y6m9tqM0Jp1E="
"""


NO_RANGE = "is not a range of ports such as 1024-65535 or 8080"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wg0.toml"


def error_of(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_an_empty_file_means_the_defaults(path: Path) -> None:
    path.touch()
    config = load(path)
    assert config == Config()
    assert config.policy == Policy(ANY_UNPRIVILEGED, max_lifetime=604800, default_lifetime=604800, max_mappings=64)
    assert (config.http_port, config.limits.requests_per_second, config.firewall.backend) == (HTTP_PORT, 200, "auto")


def test_every_key_is_read(path: Path) -> None:
    path.write_text(FULL, encoding="utf-8")
    config = load(path)
    assert config.external_interface == "eth1"
    assert config.external_address == IPv4Address("203.0.113.7")
    assert config.uuid == UUID("0d5f4e7c-5b2e-4c35-9b0d-2f6f2f1c0001")
    assert config.http_port == 5000
    assert config.friendly_name == "Küche"
    assert config.limits.requests_per_second == 20
    assert config.firewall.backend == "iptables"
    assert config.port_control == PortControlSettings(enabled=False, anycast=False, third_party=True)
    assert (config.firewall.mark, config.firewall.forward_chain) == (0x2000, "inet filter forward")
    assert (config.firewall.hairpin, config.firewall.preserve_source_port, config.firewall.own_table) == (
        False,
        True,
        True,
    )
    assert config.store.path == Path("/srv/igd/leases.sqlite")
    assert (config.policy.max_lifetime, config.policy.default_lifetime, config.policy.max_mappings) == (
        86400,
        3600,
        8,
    )
    assert [str(rule) for rule in config.policy.rules] == [
        'deny 5000 10.100.0.0/16 0-65535 "^evil"',
        "allow 1024-65535 10.100.0.0/16 1024-65535",
    ]


def test_stun_servers_have_a_default_port(path: Path) -> None:
    path.write_text(
        'external_address = "stun"\nstun_servers = ["stun.example.net", "198.51.100.7:99"]', encoding="utf-8"
    )
    config = load(path)
    assert config.stun_servers == (("stun.example.net", 3478), ("198.51.100.7", 99))
    described = 'external_address = "stun"\nstun_servers = ["stun.example.net:3478", "198.51.100.7:99"]\n'
    assert described in config.describe()
    assert "stun_servers" not in Config().describe()


def test_allow_is_the_short_form(path: Path) -> None:
    path.write_text('allow = ["1024-65535 10.100.0.0/16 1024-65535"]', encoding="utf-8")
    assert load(path).policy.rules == (PortRule.parse("allow 1024-65535 10.100.0.0/16 1024-65535"),)


@pytest.mark.parametrize("text", ["rules = []", "allow = []"])
def test_an_empty_list_allows_nothing(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    assert load(path).policy.rules == ()


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[leases]\nlow = 5", "leases.low: unknown key; allowed are min, max, default"),
        ('"a.b" = 5', '"a.b": unknown key; allowed are external_interface'),
        ("http_port = 0", "http_port: 0: must be greater than or equal to 1"),
        ("http_port = 65536", "http_port: 65536: must be less than or equal to 65535"),
        ("http_port = true", "http_port: True: must be a whole number, without quotes"),
        ('http_port = "5000"', "http_port: '5000': must be a whole number, without quotes"),
        (
            "[limits]\nrequests_per_second = true",
            "limits.requests_per_second: True: must be a whole number, without quotes",
        ),
        ("[leases]\nmax = 59", "leases.max: 59: must be greater than or equal to 60"),
        ("[leases]\nmax = 3600", "leases: default (604800) must not be above max (3600)"),
        ("leases = 5", "leases: 5: must be a section, such as [leases]"),
        (
            '[firewall]\nbackend = "pf"',
            "firewall.backend: 'pf': must be 'auto', 'nftables', 'iptables' or 'pretend'",
        ),
        ("[firewall]\nmark = 3", "firewall.mark: 3: must be one bit, such as 0x10000000"),
        (
            "[firewall]\nmark = 0x100000000",
            "firewall.mark: 4294967296: must be less than or equal to 2147483648",
        ),
        ("[firewall]\nhairpin = 1", "firewall.hairpin: 1: must be true or false, without quotes"),
        (
            '[firewall]\nforward_chain = "filter forward"',
            "firewall.forward_chain: 'filter forward': must be the name of an iptables chain",
        ),
        ('external_address = "300.0.0.1"', "external_address: '300.0.0.1': must be 'auto' or 'stun'; or "),
        ('external_address = "fd00::1"', "external_address: 'fd00::1': must be 'auto' or 'stun'; or "),
        ("external_address = 5", "external_address: 5: must be 'auto' or 'stun'; or must be a string"),
        *(
            (
                f'external_address = "{value}"',
                f"external_address: '{value}': must be 'auto' or 'stun'; or must be {kind}",
            )
            for value, kind in (
                ("224.0.0.1", "the server's public address, and this is a multicast address"),
                ("127.0.0.1", "the server's public address, and this is a loopback address"),
                ("0.0.0.0", "the server's public address, and this is an unspecified address"),
                ("255.255.255.255", "the server's public address, and this is the broadcast address"),
                ("240.0.0.1", "the server's public address, and this is a reserved address"),
            )
        ),
        (
            'external_address = "stun"',
            'external_address = "stun" needs stun_servers, for example stun_servers = ["stun.example.net", ',
        ),
        ('external_address = "stun"\nstun_servers = []', 'external_address = "stun" needs stun_servers'),
        ('stun_servers = ["stun.example.net"]', 'stun_servers without external_address = "stun" asks no server'),
        ('stun_servers = "stun.example.net"', "stun_servers: 'stun.example.net': must be a list of strings"),
        ("stun_servers = [3478]", "stun_servers: must be a list of strings"),
        (
            'stun_servers = ["stun:a.example"]',
            "stun_servers: 'stun:a.example' is not a host name or IPv4 address such as",
        ),
        ('stun_servers = ["a.example", "[::1]:3478"]', "stun_servers: '[::1]:3478' is an IPv6 address: only an IPv4"),
        (
            'external_interface = "a b"',
            "external_interface: 'a b': must be 'auto'; or 'a b' is not an interface name",
        ),
        ('uuid = "x"', "uuid: 'x': must be a UUID, such as uuidgen prints"),
        ('friendly_name = ""', "friendly_name: '': String should have at least 1 character"),
        ('rules = "allow"', "rules: 'allow': must be a list of strings, such as rules = [\"allow\"]"),
        ("rules = [5]", "rules: must be a list of strings"),
        ('rules = ["permit"]', "rules: 'permit' is not of the form: allow|deny"),
        ('allow = ["1-2 10.0.0.0/8 9-8"]', "allow: '9-8' is not a range of ports"),
        (
            'allow = ["allow 1 ::/0 1"]',
            "allow: 'allow 1 ::/0 1' must not begin with allow or deny here; the list `rules",
        ),
        ('rules = ["1 ::/0 1"]', "rules: '1 ::/0 1' must begin with allow or deny; write \"allow 1 ::/0 1\""),
        (
            'rules = ["allow 0 ::/0 1", "allow 2 ::/0 2", "deny 3-1 ::/0 3"]',
            f"rules: '0' {NO_RANGE}: the lowest port is 1; write 0-65535 for all ports; and '3-1' {NO_RANGE}: it is",
        ),
        ("rules = []\nallow = []", "rules and allow exclude each other"),
        ("http_port = ", "Invalid value (at end of document)"),
    ],
)
def test_an_error_names_file_key_value_and_what_is_allowed(path: Path, text: str, reported: str) -> None:
    found = error_of(path, text)
    assert found.startswith(f"{path}: {reported}")
    assert "\n" not in found


def test_every_error_has_its_line(path: Path) -> None:
    found = error_of(path, "http_port = 0\nnonsense = 1\n[leases]\nmax = 1\n")
    assert sorted(line.split(": ")[1] for line in found.splitlines()) == ["http_port", "leases.max", "nonsense"]


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wg0\.toml: No such file or directory"):
        load(path)
    path.write_bytes(b"friendly_name = '\xff'")
    with pytest.raises(ConfigError, match=r"wg0\.toml: line 1 is not UTF-8 \(byte 0xff\)"):
        load(path)


def test_the_file_of_an_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igd.config.DIRECTORY", tmp_path)
    assert load_for("wg0") == Config(), "no file: the defaults"
    (tmp_path / "wg0.toml").symlink_to(tmp_path / "real.toml")
    with pytest.raises(ConfigError, match=r"it is a symbolic link to .*/real\.toml"):
        load_for("wg0")
    (tmp_path / "real.toml").write_text("http_port = 5000")
    assert load_for("wg0").http_port == 5000
    assert load_for("wg1", tmp_path / "real.toml").http_port == 5000
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_for("wg0", tmp_path / "none.toml")


def test_the_way_out_is_not_the_wireguard_interface(path: Path) -> None:
    path.write_text('external_interface = "wg0"')
    with pytest.raises(ConfigError) as caught:
        load_for("wg0", path)
    assert str(caught.value) == (
        f"{path}: external_interface: 'wg0': this is the WireGuard interface itself; write the interface towards the"
        ' internet, or "auto" for that of the default route'
    )
    assert load_for("wg1", path).external_interface == "wg0"


@given(
    st.builds(
        dict,
        friendly_name=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
        http_port=st.integers(1, 65535),
        external_address=st.sampled_from(["auto", "203.0.113.7"]),
        uuid=st.none() | st.uuids().map(str),
        rules=st.none()
        | st.lists(
            st.sampled_from(
                [
                    "deny 1-2 10.0.0.0/8 3",
                    'allow 1024-65535 0.0.0.0/0 0-65535 "^\\d [\u00fc\U0001f3e0\x7f]"',
                    "allow 5 10.0.0.1/32 6",
                ]
            )
        ),
        store=st.fixed_dictionaries({}, optional={"path": st.sampled_from(["/a b/\U0001f3e0", 'x"y\\z'])}),
    )
)
def test_the_described_configuration_is_equivalent(values: dict[str, object]) -> None:
    config = Config.model_validate({key: value for key, value in values.items() if value is not None})
    again = Config.model_validate(tomllib.loads(config.describe()))
    assert again.policy == config.policy
    assert again.model_dump(exclude={"rules"}) == config.model_dump(exclude={"rules"})


def test_every_key_is_described(path: Path) -> None:
    path.write_text(FULL, encoding="utf-8")
    described = tomllib.loads(load(path).describe())
    assert described == tomllib.loads(FULL)
    assert json.dumps(described)


@pytest.mark.parametrize("name", ["wg0", "a" * 15, "wg-home.1", "@!", "ü" * 7])
def test_interface_names_that_the_kernel_accepts(name: str) -> None:
    assert interface_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 16, "ü" * 8, "a b", "a/b", "a:b", ".", "..", "a\n", "a\0"])
def test_interface_names_that_the_kernel_rejects(name: str) -> None:
    with pytest.raises(ValueError, match="is not an interface name"):
        interface_name(name)


def test_the_default_path() -> None:
    assert default_path("wg0") == Path("/etc/igd/wg0.toml")
