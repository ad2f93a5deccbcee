"""Comments in wg-quick's file name peers, as set-up programs and people write them; nothing secret becomes a name."""

import timeit

import pytest

from igd.operator.wg_quick import LONGEST_COMMENT, ConfiguredPeer, configured_peers

KEY = "GLiBCyzMu7qF7JbIWShcKmJ4d3rcVnEUQDZV6LYKYDw="
OTHER = "w9Vd1mYw8f0oA7Gk9N5wYc5bq0sS8r6Y6m9tqM0Jp1E="
SECRET = "oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM="  # noqa: S105 - of no tunnel
PEER = f"PublicKey = {KEY}\nPresharedKey = {SECRET}\nAllowedIPs = 10.0.0.2/32\n"
INTERFACE = f"[Interface]\nPrivateKey = {SECRET}\nAddress = 10.0.0.1/24\n\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param(f"### Client laptop\n[Peer]\n{PEER}", "laptop", id="angristan/wireguard-install"),
        pytest.param(f"# BEGIN_PEER laptop\n[Peer]\n{PEER}# END_PEER laptop\n", "laptop", id="Nyr/wireguard-install"),
        pytest.param(f"### begin laptop ###\n[Peer]\n{PEER}### end laptop ###\n", "laptop", id="PiVPN"),
        pytest.param(
            f"# Client: my laptop (3f1c2d5e-0000-4c35-9b0d-2f6f2f1c0001)\n[Peer]\n{PEER}", "my laptop", id="wg-easy"
        ),
        pytest.param(f"# Client: laptop (7)\n[Peer]\n{PEER}", "laptop", id="wg-easy 15"),
        pytest.param(f"[Peer]\n# laptop\n{PEER}", "laptop", id="algo, linuxserver/docker-wireguard"),
        pytest.param(
            f"# ID:           cg1\n# Name:         laptop\n# Email:        a@example.net\n"
            f"# Created at:   2026-01-01 00:00:00 +0000 UTC\n[Peer]\n{PEER}",
            "laptop",
            id="wireguard-ui",
        ),
        pytest.param(
            f"# laptop / a@example.net / Updated: 2026-01-01 / Created: 2026-01-01\n[Peer]\n{PEER}",
            "laptop",
            id="wg-gen-web",
        ),
        pytest.param(f"[Peer]\n# friendly_name = laptop\n{PEER}", "laptop", id="prometheus_wireguard_exporter"),
        pytest.param(f"#+Name = laptop\n[Peer]\n{PEER}", "laptop", id="wg-meta"),
        pytest.param(f'# Name = "laptop"\n[Peer]\n{PEER}', "laptop", id="quoted"),
        pytest.param(f"#laptop\n[peer]\n{PEER.lower().replace(KEY.lower(), KEY)}", "laptop", id="lower case"),
        pytest.param(f"  # --- laptop ---\n\n  [Peer]  \n{PEER}", "laptop", id="underlined, indented, a line apart"),
        pytest.param(f"# laptop\r\n[Peer]\r\n{PEER}", "laptop", id="CRLF"),
        pytest.param(f"[Peer] # laptop\n{PEER}", "laptop", id="behind the header"),
        pytest.param(f"# laptop\n# bought in 2023\n[Peer]\n{PEER}", "laptop", id="the first of two lines"),
        pytest.param(f"# all clients\n\n# laptop\n[Peer]\n{PEER}", "laptop", id="the nearest block"),
        pytest.param(f"# of Ann\n[Peer]\n# Name = laptop\n{PEER}", "laptop", id="a program's comment first"),
        pytest.param(f"# Büro\x1b[2J\x07 \U0001f3e0\n[Peer]\n{PEER}", "Büro [2J \U0001f3e0", id="control characters"),
        pytest.param(f"[Peer]\n{PEER}# spare key\n", "", id="below"),
        pytest.param(f"[Peer]\n{PEER}", "", id="none"),
        pytest.param(f"# {SECRET}\n[Peer]\n{PEER}", "", id="a key"),
        pytest.param(f"# PresharedKey = {SECRET}\n[Peer]\n{PEER}", "", id="a setting that is commented out"),
        pytest.param(f"[Peer]\n#AllowedIPs = 10.0.0.0/8\n{PEER}", "", id="a short setting that is commented out"),
        pytest.param(f"#######\n[Peer]\n{PEER}", "", id="a line of hashes"),
        pytest.param(f"# phone\n#[Peer]\n#PublicKey = {OTHER}\n[Peer]\n{PEER}", "", id="a peer that is commented out"),
        pytest.param(f"#[Peer]\n# phone\n#PublicKey = {OTHER}\n\n[Peer]\n{PEER}", "", id="its comment below"),
        pytest.param(
            f"### begin phone ###\n#[disabled] [Peer]\n#[disabled] PublicKey = {OTHER}\n### end phone ###\n"
            f"### begin laptop ###\n[Peer]\n{PEER}### end laptop ###\n",
            "laptop",
            id="PiVPN: a disabled peer before",
        ),
        pytest.param(
            f"### end phone ###\n[Peer]\n{PEER}",
            "",
            id="PiVPN: the end of another",
        ),
    ],
)
def test_the_name_of_a_peer(text: str, name: str) -> None:
    assert configured_peers(INTERFACE + text) == [ConfiguredPeer(KEY, name)]


def test_each_peer_has_its_own_comment() -> None:
    text = f"### Client a\n[Peer]\n{PEER}\n### Client b\n[Peer]\nAllowedIPs = 10.0.0.3/32\nPublicKey={OTHER} # b's\n"
    assert configured_peers(INTERFACE + text) == [ConfiguredPeer(KEY, "a"), ConfiguredPeer(OTHER, "b")]


def test_a_comment_that_ends_one_peer_does_not_name_it() -> None:
    text = f"[Peer]\n{PEER}# b\n[Peer]\nPublicKey = {OTHER}\n"
    assert configured_peers(text) == [ConfiguredPeer(KEY, ""), ConfiguredPeer(OTHER, "b")]


def test_the_interface_has_no_name() -> None:
    assert configured_peers(f"# server\n{INTERFACE}") == []


def test_a_peer_without_a_key() -> None:
    assert configured_peers("# laptop\n[Peer]\nAllowedIPs = 10.0.0.2/32\n[Peer]\n# b\nPublicKey =\n") == [
        ConfiguredPeer("", "laptop"),
        ConfiguredPeer("", "b"),
    ]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_a_name_cannot_begin_a_section(end: str) -> None:
    """wg-quick's lines end in line feeds: what else ends a line for Python is part of a comment."""
    comment = end.join(["# Client: laptop", "[Peer]", f"PublicKey = {OTHER}"])
    assert [peer.public_key for peer in configured_peers(f"{comment}\n[Peer]\n{PEER}")] == [KEY]
    assert configured_peers(f"# laptop\r\n[Peer]\r\nPublicKey = {KEY}\r\n") == [ConfiguredPeer(KEY, "laptop")]


@pytest.mark.parametrize(
    "comment",
    ["## begin " + " " * 20_000 + "x", "# a / " + "/ " * 10_000, "#" * 20_000, "#" + " / " * 10_000 + "Updated"],
    ids=["spaces", "slashes", "hashes", "fields"],
)
def test_a_long_comment_names_nobody(comment: str) -> None:
    """The first one would take hours to compare with the comments of set-up programs."""
    assert configured_peers(f"{comment}\n# laptop\n[Peer]\n{PEER}") == [ConfiguredPeer(KEY, "laptop")]
    assert configured_peers(f"{comment}\n[Peer]\n{PEER}") == [ConfiguredPeer(KEY, "")]


def test_the_longest_comment_is_compared_in_no_time() -> None:
    comment = ("## begin " + " " * 300)[: LONGEST_COMMENT - 1] + "x"
    assert len(comment) == LONGEST_COMMENT
    assert min(timeit.repeat(lambda: configured_peers(f"{comment}\n[Peer]\n"), number=1, repeat=3)) < 1
