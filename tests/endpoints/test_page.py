"""The peer's web page shows text that others chose as text."""

from ipaddress import IPv4Address

import pytest

from igd.endpoints import page


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "mapped to you:"),
        ("laptop", "mapped to you (laptop):"),
        ("<b>{x} & Ann's</b>", "mapped to you (&lt;b&gt;{x} &amp; Ann&#x27;s&lt;/b&gt;):"),
    ],
)
def test_the_name_of_the_peer(name: str, shown: str) -> None:
    assert shown in page.head(IPv4Address("203.0.113.7"), name).decode()
