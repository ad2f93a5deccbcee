"""The rules that drop the packets of mapped flows which do not go into the tunnel. Bytes only.

The address that a flow was translated to may become the server's own or be routed elsewhere at any time. Its mappings
end soon after (igd/maintenance.py); until then nothing from the internet may reach the server, or a host behind another
of its interfaces, through them.

The rules drop what goes in a flow's original direction, was redirected, has our mark, and leads to an address in
INTERNAL. So the operator's own redirections pass, even with the same mark, and so do the flows of other instances.
Answers pass too, and hairpin flows, which leave through the tunnel.
"""

import sys

from igd.firewall import nf_tables as nf
from igd.firewall.nfnetlink import u8
from igd.firewall.nft.elements import INTERNAL
from igd.firewall.nft.expressions import (
    DROP,
    OIFNAME,
    EncodedRule,
    bitwise,
    compare,
    has_mark,
    interface,
    load_ct,
    lookup,
)
from igd.firewall.site import Site


def to_server(site: Site) -> list[EncodedRule]:
    """Return the rule for packets that the server itself would receive."""
    return [_stray(site)]


def past_tunnel(site: Site) -> list[EncodedRule]:
    """Return the rule for packets that would leave through another interface than the tunnel's."""
    return [(*interface(OIFNAME, site.wireguard, nf.NFT_CMP.NEQ), *_stray(site))]


def _stray(site: Site) -> EncodedRule:
    return (*_ORIGINAL, *_REDIRECTED, *has_mark(site.mark), *_TO_INTERNAL, DROP)


_ORIGINAL = (load_ct(nf.NFT_CT.DIRECTION), compare(bytes([nf.IP_CT_DIR.ORIGINAL])))
_REDIRECTED = (
    load_ct(nf.NFT_CT.STATUS),
    bitwise(nf.IPS_DST_NAT.to_bytes(4, sys.byteorder), bytes(4)),
    compare(bytes(4), nf.NFT_CMP.NEQ),
)
# answers come from the address that the flow was translated to
_TO_INTERNAL = (load_ct(nf.NFT_CT.SRC_IP, u8(nf.NFTA_CT.DIRECTION, nf.IP_CT_DIR.REPLY)), lookup(INTERNAL))
