"""Comments on elements: what nft prints of them it reads back."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.nft.elements import comment
from igd.firewall.nft.nftables import Nftables
from tests.firewall.listings import SITE, listing
from tests.firewall.three_hosts import EXTERNAL, PEER, new_namespace, run

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def mapping(description: str, peer: str = KEY) -> PortMapping:
    return PortMapping(TransportProtocol.UDP, 7, Endpoint(PEER, 7), peer, description)


def test_it_names_the_peer_and_says_what_for() -> None:
    assert comment(mapping("Torrent 6881")) == "xTIBA5rb Torrent 6881"
    assert comment(mapping("")) == "xTIBA5rb"
    assert comment(mapping('a"b\\c\nd\x7fé')) == "xTIBA5rb a?b?c?d??"


@given(st.text(), st.text())
def test_it_is_short_and_printable(description: str, peer: str) -> None:
    said = comment(mapping(description, peer))
    assert len(said) <= 127
    assert said.isascii()
    assert said.isprintable() or not said
    assert not set('"\\') & set(said)


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200) | st.text("#;{}@$*'` abc\"\\\n", max_size=200))
def test_whatever_the_description_a_saved_listing_loads_again(description: str) -> None:
    with new_namespace(), contextlib.closing(Nftables(SITE)) as backend:
        backend.replace_all([EXTERNAL], [Entry(mapping(description), Lease(100))], now=0)
        before = listing()
        backend.remove_all()
        run("nft", "-f", "-", text=before)
        assert listing() == before
        assert f'comment "{comment(mapping(description))}"' in before
