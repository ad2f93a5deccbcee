"""Each key of a peer's section has its effect on that peer alone; each mistake names peer, key and value."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.config import Config, ConfigError, load, parse
from igd.config_peers import without_peer
from igd.core.mapping import ControlProtocol
from igd.core.peers import Peer, Peers
from igd.core.policy import ANY_UNPRIVILEGED, PortRule
from igd.core.reserved_ports import Reservation, StaticMapping

KEY = "GLiBCyzMu7qF7JbIWShcKmJ4d3rcVnEUQDZV6LYKYDw="
OTHER = "w9Vd1mYw8f0oA7Gk9N5wYc5bq0sS8r6Y6m9tqM0Jp1E="
PATH = Path("wg0.toml")


def laptop(text: str, top: str = "", phone: str | None = None) -> str:
    """Return a configuration with these keys for two peers, and above them."""
    sections = f'{top}\n[peers.laptop]\npublic_key = "{KEY}"\n{text}\n'
    return sections if phone is None else f'{sections}[peers.phone]\npublic_key = "{OTHER}"\n{phone}\n'


def test_a_section_replaces_what_it_names() -> None:
    text = """
        allow = ["3000-3999 10.100.0.2 1-65535"]
        max_mappings = 4
        leases = { min = 300, max = 3600, default = 1800 }
        protocols = ["pcp", "nat-pmp"]
        routed_hosts = false
        reserve = ["tcp 25565"]
        static = ["tcp 443 10.100.0.2 8443"]
        masquerade_inbound = true
        idle_after = 600
    """
    policies = parse(laptop(text, phone=""), PATH).policies
    own = policies.of(KEY)
    assert own.rules == (PortRule.parse("allow 3000-3999 10.100.0.2 1-65535"),)
    assert (own.max_mappings, own.min_lifetime, own.max_lifetime, own.default_lifetime) == (4, 300, 3600, 1800)
    assert own.protocols == {ControlProtocol.PCP, ControlProtocol.NAT_PMP}
    assert (own.routed_hosts, own.masquerade_inbound, own.idle_after) == (False, True, 600)
    assert own.reserved == (Reservation.parse("tcp 25565"),)
    assert own.static == (StaticMapping.parse("tcp 443 10.100.0.2 8443"),)
    assert policies.of(OTHER) == policies.default == Config().policy
    assert policies.default.rules == ANY_UNPRIVILEGED
    assert policies.names == {KEY: "laptop", OTHER: "phone"}


def test_a_section_inherits_what_it_does_not_name() -> None:
    top = """
        rules = []
        routed_hosts = false
        idle_after = 300
        leases = { min = 120, max = 7200, default = 3600 }
        limits = { mappings_per_peer = 3 }
    """
    policies = parse(laptop("", top), PATH).policies
    assert policies.of(KEY) == policies.default
    assert (policies.default.max_mappings, policies.default.min_lifetime) == (3, 120)


@pytest.mark.parametrize(
    ("text", "lifetimes"),
    [
        ("leases = { max = 3600 }", (120, 3600, 3600)),
        ("leases = { max = 60 }", (60, 60, 60)),
        ("leases = { default = 600 }", (120, 600, 7200)),
        ("leases = { default = 86400 }", (120, 86400, 86400)),
        ("leases = { min = 5000 }", (5000, 5000, 7200)),
        ("leases = { min = 10000 }", (10000, 10000, 10000)),
    ],
)
def test_lifetimes_that_are_not_set_give_way_to_those_that_are(text: str, lifetimes: tuple[int, int, int]) -> None:
    top = "leases = { min = 120, max = 7200, default = 3600 }"
    own = parse(laptop(text, top), PATH).policies.of(KEY)
    assert (own.min_lifetime, own.default_lifetime, own.max_lifetime) == lifetimes


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[peers.laptop]", "peers.laptop.public_key: is missing; it is required"),
        ("[peers.laptop]\npublic_key = 5", "peers.laptop.public_key: must be a string"),
        (f'[peers.""]\npublic_key = "{KEY}"', "peers.\"\": '': a peer's name has 1 to 64 printable characters"),
        (f'[peers."a\\u001b"]\npublic_key = "{KEY}"', r'peers."a\u001b": '),
        (f'[peers." a"]\npublic_key = "{KEY}"', 'peers." a": '),
        (f'[peers.{"a" * 65}]\npublic_key = "{KEY}"', f"peers.{'a' * 65}: "),
        (f'[peers.my.laptop]\npublic_key = "{KEY}"', 'peers.my.laptop: unknown key; write [peers."my.laptop"]'),
        (f'[peer.laptop]\npublic_key = "{KEY}"', "peer: unknown key; write [peers.laptop]"),
        ("peers = 5", "peers: 5: must be sections, such as [peers.laptop]"),
        ("[peers]\nlaptop = 5", "peers.laptop: 5: must be a section"),
        ('reserve = ["tcp 5"]', "reserve: unknown key here; write reserve in a section [peers.NAME]"),
        (laptop("max_mappings = 0"), "peers.laptop.max_mappings: 0: must be greater than or equal to 1"),
        (laptop("mappings_per_peer = 5"), "peers.laptop.mappings_per_peer: unknown key; write max_mappings"),
        (laptop("third_party = true"), "peers.laptop.third_party: unknown key; write routed_hosts"),
        (laptop("nonsense = 5"), "peers.laptop.nonsense: unknown key; allowed are public_key, rules, allow, max_map"),
        (
            laptop("lease = { max = 60 }"),
            "peers.laptop.lease: unknown key; did you mean leases? Allowed are public_key",
        ),
        (laptop("[peers.laptop.Lease]\nmax = 60"), "peers.laptop.Lease: unknown key; did you mean leases?"),
        (laptop("limits = { connections = 5 }"), "peers.laptop.limits: unknown key; write max_mappings"),
        (
            laptop("port_control = { enabled = false }"),
            "peers.laptop.port_control: unknown key in a section; write it out",
        ),
        (f'[peers.my.ruler]\npublic_key = "{KEY}"', 'peers.my.ruler: unknown key; write [peers."my.ruler"]'),
        (laptop("leases = { low = 5 }"), "peers.laptop.leases.low: unknown key; allowed are min, max, default"),
        (laptop("leases = { max = 5 }"), "peers.laptop.leases.max: 5: must be greater than or equal to 60"),
        (
            laptop("leases = { min = 100, max = 70 }"),
            "peers.laptop.leases: min (100) must not be above default (70)",
        ),
        (laptop("rules = []\nallow = []"), "peers.laptop: rules and allow exclude each other"),
        (laptop('protocols = "pcp"'), "peers.laptop.protocols: 'pcp': must be a list of strings, such as protocols"),
        (laptop('protocols = ["igd"]'), "peers.laptop.protocols: 'igd' is none of upnp, nat-pmp, pcp"),
        (laptop('reserve = ["tcp 1-0"]'), "peers.laptop.reserve: '1-0' is not a range of ports"),
        (laptop('static = ["tcp 5"]'), "peers.laptop.static: 'tcp 5' is not of the form"),
        (laptop('static = ["tcp 5 10.0.0.1 5", "tcp 5 10.0.0.2 5"]'), "peers.laptop: static has two mappings of tcp 5"),
        (laptop("idle_after = 60"), "peers.laptop.idle_after: 60: must be 0 (off) or at least 180"),
        ("idle_after = 60", "idle_after: 60: must be 0 (off) or at least 180"),
        (
            laptop('reserve = ["tcp 3000-3010"]', phone='reserve = ["udp 3005", "tcp 3005-4000"]'),
            "peers.laptop and peers.phone both reserve tcp 3005-3010",
        ),
        (
            laptop('reserve = ["tcp 1-65535", "tcp 7"]', phone='static = ["tcp 443 10.0.0.1 443"]'),
            "peers.laptop and peers.phone both reserve tcp 443",
        ),
        ("[leases]\nmin = 700000", "leases: min (700000) must not be above default (604800)"),
    ],
)
def test_a_mistake_names_peer_key_value_and_what_is_allowed(tmp_path: Path, text: str, reported: str) -> None:
    path = tmp_path / "wg0.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{path}: {reported}" in "".join(str(caught.value).splitlines(keepends=True)[-1:])


@pytest.mark.parametrize(
    "key", ["abc", KEY[:-1], KEY.replace("D", "E", 1)[:-2] + "x=", f"{KEY}\n", KEY.lower()[:-1] + "!"]
)
def test_a_key_that_is_none_is_not_repeated(key: str) -> None:
    """It may be a private key that was pasted in part."""
    with pytest.raises(ConfigError) as caught:
        parse(f"[peers.laptop]\npublic_key = {json.dumps(key)}\n", PATH)
    wrong = "these are not the base64 of a key, copy it again" if len(key) == 44 else f"not {len(key)}"
    expected = f"must be the peer's public key as `wg show INTERFACE peers` prints it: 44 characters, {wrong}"
    assert str(caught.value) == f"wg0.toml: peers.laptop.public_key: {expected}"


def test_two_names_for_one_key_are_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(laptop("", phone="").replace(OTHER, KEY), PATH)
    assert str(caught.value) == "wg0.toml: peers.laptop and peers.phone have the same public_key"


def test_a_name_is_quoted_as_in_the_file() -> None:
    text = laptop('reserve = ["tcp 5"]', phone='reserve = ["tcp 5"]').replace("[peers.laptop]", '[peers."a b"]')
    with pytest.raises(ConfigError, match=r'peers\."a b" and peers\.phone both reserve tcp 5'):
        parse(text, PATH)


def test_keys_of_wg_quick_are_named_without_their_values() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(laptop(f'private_key = "{OTHER}"\nPresharedKey = "{OTHER}"'), PATH)
    assert OTHER not in str(caught.value)
    assert str(caught.value).count("this key belongs in wg-quick's file") == 2


def test_the_key_of_the_interface_is_an_error() -> None:
    config = parse(laptop(""), PATH)
    config.reject_own_key("wg0", OTHER)
    with pytest.raises(ConfigError, match=r"^peers\.laptop\.public_key: this is the key of wg0 itself"):
        config.reject_own_key("wg0", KEY)


def test_a_section_without_a_peer_is_a_warning() -> None:
    policies = parse(laptop("", phone=""), PATH).policies
    (warning,) = without_peer(policies, "wg0", Peers([Peer(KEY, ())], []))
    assert warning.startswith("peers.phone: no peer of wg0 has this public_key; the section has no effect; ")
    assert warning.endswith("if it is the peer's private key, replace it, and delete it here")
    assert OTHER not in warning


ranges = st.tuples(st.integers(1, 60), st.integers(0, 15)).map(lambda pair: f"{pair[0]}-{sum(pair)}")
lines = st.lists(st.tuples(st.sampled_from(["tcp", "udp"]), ranges).map(" ".join), max_size=4)


@given(st.lists(lines, min_size=2, max_size=4))
def test_reservations_are_refused_if_and_only_if_two_peers_want_one_port(wanted: list[list[str]]) -> None:
    keys = [f"{letter}{KEY[1:]}" for letter in "ABCD"]
    peers = {
        f"p{number}": {"public_key": key, "reserve": each}
        for number, (key, each) in enumerate(zip(keys, wanted, strict=False))
    }
    owners: dict[tuple[str, int], set[str]] = {}
    for name, each in zip(peers, wanted, strict=True):
        for reservation in map(Reservation.parse, each):
            for port in reservation.ports:
                owners.setdefault((reservation.protocol.name, port), set()).add(name)
    try:
        Config.model_validate({"peers": peers})
        refused = False
    except ValueError:
        refused = True
    assert refused is any(len(each) > 1 for each in owners.values())


settings = st.fixed_dictionaries(
    {},
    optional={
        "rules": st.lists(st.sampled_from(["deny 1-2 10.0.0.0/8 3", 'allow 5 ::/0 6 "^\\d"'])),
        "max_mappings": st.integers(1, 65535),
        "leases": st.fixed_dictionaries({}, optional={"min": st.integers(1, 90), "max": st.integers(90, 99)}),
        "protocols": st.lists(st.sampled_from(["upnp", "nat-pmp", "pcp"])),
        "routed_hosts": st.booleans(),
        "static": st.lists(st.sampled_from(["tcp 443 10.100.0.2 8443", "udp 22 2001:db8::2 22"]), unique=True),
        "masquerade_inbound": st.booleans(),
        "idle_after": st.sampled_from([0, 180, 86400]),
    },
)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64) | st.just('a "b" c')


@given(names, settings, st.sampled_from([{}, {"routed_hosts": False, "idle_after": 180, "rules": []}]))
def test_the_described_configuration_has_the_same_policies(
    name: str, own: dict[str, object], top: dict[str, object]
) -> None:
    config = Config.model_validate({**top, "peers": {name: {"public_key": KEY, **own}}})
    again = Config.model_validate(tomllib.loads(config.describe()))
    assert again.policies.by_peer == config.policies.by_peer
    assert again.policies.names == config.policies.names == {KEY: name}
    assert again.policy == config.policy
