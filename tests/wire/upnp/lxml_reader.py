"""Reads documents by lxml, as the reference for igd.wire.upnp.xml; in a process that ends, what lxml keeps is freed."""

from lxml import etree

from igd.wire.upnp.xml import DEEPEST, Element


def read_by_lxml(body: bytes) -> Element | None:
    """Return the root element, or None for what is not XML, has a DOCTYPE, or more than DEEPEST levels of elements."""
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(body, parser)
    except etree.XMLSyntaxError:
        return None
    if root.getroottree().docinfo.internalDTD is not None or _levels(root) > DEEPEST:
        return None
    return _element(root)


def _levels(element: etree._Element) -> int:
    return 1 + max(map(_levels, element), default=0)


def _element(source: etree._Element) -> Element:
    name = etree.QName(source)
    return Element(name.localname, name.namespace or "", source.text or "", tuple(map(_element, source)))
