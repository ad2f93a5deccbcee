"""The rules for PCP's anycast addresses, as nft prints and loads them; test_anycast.py has what they do."""

import contextlib
from dataclasses import replace

import pytest

from igd.firewall.nft.nftables import Nftables
from tests.firewall.entries import entry
from tests.firewall.listings import ANYCAST, HAIRPIN, HEAD, LEADING, LISTING, NOT_LED, SITE, TAIL, listing
from tests.firewall.three_hosts import EXTERNAL, new_namespace, run

pytestmark = pytest.mark.root

ADDRESSES, ENTRIES = [EXTERNAL, EXTERNAL + 2], [entry(8043, 80, "tcp")]


@pytest.mark.parametrize(
    ("hairpin", "rules"),
    [(True, ANYCAST + LEADING + HAIRPIN), (False, ANYCAST + NOT_LED + LEADING)],
    ids=["hairpin", "no hairpin"],
)
def test_they_come_first_load_again_and_go(hairpin: bool, rules: str) -> None:
    site = replace(SITE, hairpin=hairpin, anycast=True)
    with new_namespace(), contextlib.closing(Nftables(site)) as backend:
        backend.replace_all(ADDRESSES, ENTRIES, now=0)
        saved = listing()
        assert saved == HEAD + rules + TAIL
        backend.remove_all()
        assert listing() == ""
        run("nft", "-f", "-", text=saved)
        assert listing() == saved


def test_the_option_comes_and_goes_with_the_next_start() -> None:
    with new_namespace():
        for anycast in (False, True, False):
            with contextlib.closing(Nftables(replace(SITE, anycast=anycast))) as backend:
                backend.replace_all(ADDRESSES, ENTRIES, now=0)
            assert listing().count("redirect") == 2 * anycast
        assert listing() == LISTING
