"""The page that presentationURL names: the public address, and the mappings of the peer that requests it."""

import html
from collections.abc import Iterable
from ipaddress import IPv4Address

from igd.core.request import ENDLESS, Mapped

END = b"</table>\n"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Port mappings</title>
<style>body {{ font: 1em sans-serif; margin: 2em }} td, th {{ text-align: left; padding: .2em 1em .2em 0 }}</style>
<h1>Port mappings</h1>
<p>Public address of this server: {address}. These of its ports are mapped to {peer}:</p>
<table>
<tr><th>Protocol<th>External port<th>Internal endpoint<th>Seconds left<th>Description
"""


def head(external: IPv4Address | None, name: str) -> bytes:
    """Return the page down to its rows; `name` is the peer's, or ""."""
    peer = f"you ({html.escape(name)})" if name else "you"
    return _PAGE.format(address=external or "no address yet", peer=peer).encode()


def rows(own: Iterable[Mapped]) -> bytes:
    """Return the rows of these mappings of the peer."""
    return "".join(map(_row, own)).encode()


def _row(mapped: Mapped) -> str:
    mapping = mapped.mapping
    cells = (
        mapping.protocol.name,
        mapping.external_port,
        mapping.internal,
        "static" if mapped.lifetime == ENDLESS else mapped.lifetime,
        html.escape(mapping.description),
    )
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "\n"
