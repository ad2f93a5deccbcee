"""igd's lines go into wg-quick's file and out of it, however that is written; wg-quick itself says what it reads."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.operator.setup.wg_quick_hooks import (
    DETACHED,
    START,
    STOP,
    NotWgQuicksError,
    commands,
    hooks,
    with_lines,
    without_lines,
)
from tests.lab.fixtures import needs

LINES = (START, STOP)
PEER = b"\n[Peer]\nPublicKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAllowedIPs = 10.100.0.2/32\n"

_PARSED = r"""
shopt -s extglob
die() { echo "$*" >&2; exit 1; }
PRE_UP=() POST_UP=() PRE_DOWN=() POST_DOWN=()
eval "$(sed -n '/^parse_options()/,/^}/p;/^read_bool()/,/^}/p' "$(command -v wg-quick)")"
parse_options "$1" 2>/dev/null
printf '%s\0' "${PRE_UP[@]}" -- "${POST_UP[@]}" -- "${PRE_DOWN[@]}" -- "${POST_DOWN[@]}" --
printf '%s\0' "$WG_CONFIG" "${ADDRESSES[@]}"
"""


def parsed(content: bytes, path: Path) -> list[list[bytes]]:
    """Return the four kinds of commands, and then everything else, as wg-quick's own function reads the file."""
    path.write_bytes(content)
    path.chmod(0o600)
    done = subprocess.run(["bash", "-c", _PARSED, "bash", path], capture_output=True, check=True)
    found: list[list[bytes]] = [[]]
    for word in done.stdout.split(b"\0")[:-1]:
        if word == b"--":
            found.append([])
        else:
            found[-1].append(word)
    return found


FORMS = {
    "usual": b"[Interface]\nAddress = 10.100.0.1/24\nPostUp = echo up; echo more\n" + PEER,
    "CRLF": b"[Interface]\r\nAddress = 10.100.0.1/24\r\nPostUp = echo up\r\n" + PEER.replace(b"\n", b"\r\n"),
    "no newline at the end": b"[Interface]\nAddress = 10.100.0.1/24",
    "CRLF and none at the end": b"[Interface]\r\nAddress = 10.100.0.1/24",
    "interface last": PEER + b"[interface]\naddress=10.100.0.1/24\n\n# the end\n",
    "nothing but the section": b"[Interface]\n",
    "comments": b"# server\n[Interface] # mine\n# PostUp = no\nAddress = 10.100.0.1/24 # one\n\n# laptop\n" + PEER,
    "indented": b"  [Interface]\n\tAddress=10.100.0.1/24\n\tPostUp=echo up\n" + PEER,
    "SaveConfig": b"[Interface]\nAddress = 10.100.0.1/24\nSaveConfig = true\n" + PEER,
    "two sections": b"[Interface]\nAddress = 10.100.0.1/24\n" + PEER + b"[Interface]\nPostUp = echo up\n",
    "not UTF-8": b"# b\xfcro\n[Interface]\nAddress = 10.100.0.1/24\n" + PEER,
    "U+2028 in a comment": "# a\u2028[Peer]\n[Interface]\nAddress = 10.100.0.1/24\n".encode() + PEER,
}
EVERY_FORM = pytest.mark.parametrize("content", FORMS.values(), ids=FORMS.keys())


@EVERY_FORM
def test_wg_quick_reads_the_added_lines_and_everything_else_as_before(content: bytes, tmp_path: Path) -> None:
    needs("wg-quick")
    before = parsed(content, tmp_path / "wg0.conf")
    after = parsed(with_lines(content, LINES), tmp_path / "wg0.conf")
    start, stop = (line.partition(" = ")[2].encode() for line in LINES)
    assert start in after[1]
    assert stop in after[3]
    after[1].remove(start)
    after[3].remove(stop)
    assert after[:4] == before[:4]
    assert [word.rstrip() for word in after[4]] == [word.rstrip() for word in before[4]]


@EVERY_FORM
def test_added_lines_are_found_and_taken_out_again(content: bytes) -> None:
    changed = with_lines(content, LINES)
    assert hooks(changed, "wg0") == ((START,), (STOP,), True, ())
    assert commands(changed)[-2:] != commands(content)[-2:]
    restored = without_lines(changed, LINES)
    assert restored in {content, content + b"\n", content + b"\r\n"}


@EVERY_FORM
def test_the_lines_around_keep_their_ends(content: bytes) -> None:
    changed = with_lines(content, LINES)
    mixed = b"\r\n" in changed and changed.replace(b"\r\n", b"").count(b"\n")
    assert not mixed


settings = st.sampled_from(
    [b"Address = 10.100.0.1/24", b"PostUp = echo", b"# x", b"", b"[Peer]", b"[Interface]", b"\tMTU=1420"]
)


@given(st.lists(st.tuples(settings, st.sampled_from([b"\n", b"\r\n"]))), st.booleans())
def test_whatever_the_file_is_like_only_our_lines_come_and_go(rows: list[tuple[bytes, bytes]], ended: bool) -> None:
    content = b"[Interface]\n" + b"".join(map(b"".join, rows)) + (b"" if ended else b"MTU = 1400")
    assert without_lines(with_lines(content, LINES), LINES).strip() == content.strip()


@pytest.mark.parametrize(
    "content",
    [b"", PEER, b"\xef\xbb\xbf[Interface]\n", "[Interface]\n".encode("utf-16"), b"# [Interface]\n", b"[Interfaces]\n"],
    ids=["empty", "peers", "byte order mark", "UTF-16", "commented out", "another section"],
)
def test_a_file_that_wg_quick_would_not_read_is_refused(content: bytes) -> None:
    with pytest.raises(NotWgQuicksError, match=r"no section \[Interface\]"):
        with_lines(content, LINES)


@pytest.mark.parametrize(
    ("lines", "starts", "stops", "service"),
    [
        (LINES, 1, 1, True),
        (DETACHED, 1, 1, False),
        (("PostUp=systemctl start igd@wg0",), 1, 0, True),
        (("postup = sleep 1; /bin/systemctl --no-block start 'igd@%i.service' # mine",), 1, 0, True),
        (("PreDown = systemctl stop igd@%i || true",), 0, 1, True),
        (("PostUp = /opt/igd/bin/igd run --verbose wg0 --detach",), 1, 0, False),
        (("PostUp = systemctl start igd@wg1", "# PostUp = systemctl start igd@wg0", "PostUp = echo igd"), 0, 0, False),
        (("PostUp = systemctl start igd@wg01", "PostUp = systemctl start migd@wg0"), 0, 0, False),
        (("PostDown = systemctl start igd@wg0", "MTU = 1420"), 0, 0, False),
    ],
)
def test_lines_that_somebody_wrote_by_hand_are_recognised(
    lines: Sequence[str], starts: int, stops: int, service: bool
) -> None:
    found = hooks(("[Interface]\n" + "\n".join(lines) + "\n").encode() + PEER, "wg0")
    assert (len(found.starts), len(found.stops), found.service) == (starts, stops, service)


def test_lines_that_make_wg_quick_fail_without_igd_are_named() -> None:
    old = "PostUp = systemctl start --no-block igd@%i"
    assert hooks(f"[Interface]\n{old}\n{STOP}\n".encode(), "wg0").unguarded == (old,)


def test_a_line_of_the_operators_that_is_equal_to_ours_stays() -> None:
    """Of two equal lines, the operator's was there first."""
    mine = f"[Interface]\n{START}\n# below\n".encode()
    assert without_lines(mine + f"{START}\n".encode(), [START]) == mine


@pytest.mark.parametrize("written", ["PostUp=systemctl start --no-block igd@%i || true # igd", f"  {START}  "])
def test_a_line_of_ours_that_was_tidied_up_is_taken_out(written: str) -> None:
    assert without_lines(f"[Interface]\n{written}\nMTU = 1420\n".encode(), [START]) == b"[Interface]\nMTU = 1420\n"


def test_a_line_of_ours_that_was_commented_out_stays() -> None:
    content = f"[Interface]\n# {START}\n".encode()
    assert without_lines(content, [START]) == content
