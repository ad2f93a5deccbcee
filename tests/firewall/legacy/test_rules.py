"""The rules of iptables-legacy: comments that every program reads alike, commands, and the edits of a change."""

import shlex
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.legacy.rules import LegacyRules, owner_comment
from igd.firewall.site import Site

KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
SITE = Site("eth0", "wg0", (IPv4Network("10.100.0.0/24"),), preserve_source_port=True)
ADDRESS = IPv4Address("60.60.60.1")
GAME = PortMapping(TransportProtocol.UDP, 8043, Endpoint(IPv4Address("10.100.0.2"), 9043), KEY, "a game")
SSH = Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address("2001:db8::2"), 22), KEY, "ssh")


def held(mapping: PortMapping | Pinhole) -> Entry:
    return Entry(mapping, Lease(60.0))


def commands(before: PortMapping | Pinhole | None, after: PortMapping | Pinhole | None, site: Site = SITE) -> list[str]:
    change = Change(None if before is None else held(before), None if after is None else held(after))
    return [edit.command() for edit in LegacyRules(site).edits([change], ADDRESS)]


@given(description=st.text(max_size=400))
def test_a_comment_is_plain_short_and_names_the_owner(description: str) -> None:
    comment = owner_comment(replace(GAME, description=description))
    assert comment.startswith("yAnz5TF+")
    assert all(" " <= letter <= "~" for letter in comment)
    assert set("\"'\\").isdisjoint(comment)
    assert len(comment) <= 255


def test_a_comment_has_the_key_and_the_description() -> None:
    assert owner_comment(GAME) == "yAnz5TF+, a game"
    assert owner_comment(replace(GAME, description=" \n")) == "yAnz5TF+"


def test_edits_are_logged_as_commands() -> None:
    assert commands(None, GAME) == [
        (
            "iptables-legacy -t nat -I igd_wg0 2 -p udp -m udp --dport 8043 -m comment --comment 'yAnz5TF+, a game'"
            " -j DNAT --to-destination 10.100.0.2:9043"
        ),
        (
            "iptables-legacy -t nat -A igd_wg0/out -s 10.100.0.2/32 -o eth0 -p udp -m udp --sport 9043"
            " -m comment --comment yAnz5TF+ -j SNAT --to-source 60.60.60.1:8043"
        ),
    ]
    assert commands(SSH, None) == [
        (
            "ip6tables-legacy -t nat -D igd_wg0 -d 2001:db8::2/128 -p tcp -m tcp --dport 22"
            " -m comment --comment 'yAnz5TF+, ssh' -j CONNMARK --set-xmark 0x10000000/0x10000000"
        )
    ]


@given(description=st.text(max_size=60))
def test_a_description_stays_one_word_of_the_command(description: str) -> None:
    """An operator who pastes a command must not run what a client of the VPN has written into it."""
    mapping = replace(GAME, description=description)
    (line, _) = commands(None, mapping)
    words = shlex.split(line)
    assert words[-5:] == [owner_comment(mapping), *"-j DNAT --to-destination 10.100.0.2:9043".split()]


def test_a_rule_that_stays_is_not_touched() -> None:
    """A rule that is deleted and added again would lose its place."""
    assert commands(GAME, GAME) == []
    renamed = commands(GAME, replace(GAME, description="another"))
    assert [line.split()[3:5] for line in renamed] == [["-D", "igd_wg0"], ["-I", "igd_wg0"]]
    some = replace(GAME, remotes=(Remote(IPv4Network("192.0.2.0/24")), Remote(IPv4Network("198.51.100.7/32"), 53)))
    fewer = commands(some, replace(GAME, remotes=some.remotes[:1] * 2))
    assert [
        " -D " in line and "-s 198.51.100.7/32 -p udp -m udp --sport 53 --dport 8043" in line for line in fewer
    ] == [True]


def test_a_remote_that_is_named_twice_is_one_rule() -> None:
    """Otherwise one of two equal rules would stay after a change to one remote."""
    twice = replace(GAME, remotes=(Remote(IPv4Network("192.0.2.0/24")),) * 2)
    assert ["DNAT" in line for line in commands(None, twice)] == [True, False]


def test_sources_are_chosen_only_where_that_is_wanted() -> None:
    site = replace(SITE, preserve_source_port=False, hairpin=False)
    assert LegacyRules(site).sources(ADDRESS, [held(GAME)]) is None
    assert [line.split()[4] for line in commands(None, GAME, site)] == ["igd_wg0"]
    chain = LegacyRules(SITE).sources(None, [held(GAME), held(SSH)])
    assert chain is not None
    assert [rule.target.name for rule in chain.rules] == ["MASQUERADE"]
