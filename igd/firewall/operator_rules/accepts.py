"""Conditions of rules that let mapped flows pass, as data, as iptables' options and as nft's words. Pure.

By the mark, which both directions of a flow share and only flows of mappings carry; "--ctstate DNAT" would also let in
redirections that the operator has not accepted. Into and out of the tunnel only, and not from one peer to another
where the operator closes that: no other network of the host becomes reachable.
"""

from collections.abc import Sequence

from igd.firewall.operator_rules.openings import Classes, Conditions
from igd.firewall.operator_rules.packet import Packet, Version, between_peers, packets
from igd.firewall.operator_rules.saved_rules import Condition
from igd.firewall.site import Site


def mapped_flows(site: Site, versions: Sequence[Version]) -> Classes:
    """Return the packets of mapped flows of these IP versions, and the rules that accept them."""
    return Classes(
        [packet for version in versions for packet in packets(site, version)],
        lambda only, hairpin: accepts(site, only, hairpin=hairpin),
        [packet for version in versions for packet in between_peers(site, version) if site.hairpin],
    )


def accepts(site: Site, only: Packet | None = None, *, hairpin: bool = False) -> list[Conditions]:
    """Return the conditions of the rules of one opening: for one class of packets, or for all."""
    mark = Condition("connmark", "--mark", f"{site.mark:#x}/{site.mark:#x}", negated=False)
    if only is not None:
        return [(*class_conditions(site, only), mark)]
    come, go = (Condition("", option, site.wireguard, negated=False) for option in ("-i", "-o"))
    ways = [(come._replace(negated=True), go), (come, go._replace(negated=True)), *([(come, go)] if hairpin else [])]
    return [(*way, mark) for way in ways]


def class_conditions(site: Site, only: Packet) -> Conditions:
    """Return the conditions that tell a class of packets between the internet and peers from the others."""
    into = only.out_interface == site.wireguard
    return (
        Condition("", "-i", site.wireguard, negated=into),
        Condition("", "-o", site.wireguard, negated=not into),
        Condition("", "-p", only.protocol, negated=False),
        Condition("conntrack", "--ctstate", "NEW" if "NEW" in only.states else "ESTABLISHED", negated=False),
    )


def as_iptables(conditions: Conditions, comment: str) -> str:
    """Write conditions as iptables-save does; the comment comes before those on marks."""
    words = ""
    for module, option, value, negated in conditions:
        if module == "connmark":
            words += f'-m comment --comment "{comment}" '
        words += (f"-m {module} " if module else "") + ("! " if negated else "") + f"{option} {value} "
    return words


def as_nft(conditions: Conditions) -> str:
    """Write conditions as nft lists them."""
    return " ".join(_as_nft(condition) for condition in conditions)


def _as_nft(condition: Condition) -> str:
    value, negated = condition.value, "!= " if condition.negated else ""
    match condition.option:
        case "-i" | "-o":
            return f'{condition.option[1:]}ifname {negated}"{value}"'
        case "-p":
            return f"meta l4proto {value}"
        case "--ctstate":
            return f"ct state {value.lower()}"
        case _:  # --mark
            mark = f"{int(value.partition('/')[0], 0):#010x}"
            return f"ct mark & {mark} == {mark}"
