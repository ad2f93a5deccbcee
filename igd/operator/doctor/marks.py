"""Which rules of the operator's overwrite the mark of mapped flows, and the lines that keep them from it."""

import re
import shlex
from collections.abc import Iterable, Iterator

from igd.firewall.operator_rules import rule_sets
from igd.firewall.probing.rule_text import RuleText, rule_text
from igd.operator.doctor.check import Colour, Finding
from igd.operator.doctor.probe import Sent


def lost(sent: Iterable[Sent], bit: int) -> list[Finding]:
    """Return the rules by which packets have lost this bit, which all had; may block, and runs programs."""
    unmarked = [each for each in sent if each.passage.marked is False]
    if not unmarked:
        return []
    steps = dict.fromkeys(step for each in unmarked for step in each.passage.rules)
    wiping = [text for text in (*map(rule_text, steps), *_of_legacy()) if _wipes(text, bit)]
    if wiping:
        return [_finding(text, bit) for text in wiping]
    what, way = unmarked[0].what, unmarked[0].way
    return [Finding(Colour.RED, f"{what} ({way}) has lost the mark {bit:#x} of mapped flows, by an unknown rule")]


def _finding(text: RuleText, bit: int) -> Finding:
    what = f"flows lose the mark {bit:#x}, by which igd tells those of mappings from others, to this rule: {text}"
    remedy = remasked(text, bit)
    return Finding(Colour.RED, what if remedy else f"{what}; let it leave this bit as it is", remedy)


def _of_legacy() -> Iterator[RuleText]:
    """Yield the rules that iptables-legacy has before FORWARD; the kernel does not report which of them match."""
    for chain in rule_sets.chains("early").found:
        if chain.program.endswith("-legacy"):
            for name, rules in chain.rules.chains.items():
                for position, rule in enumerate(rules, start=1):
                    yield RuleText(chain.program, chain.table, name, position, 0, rule.text)


_IPTABLES = re.compile(
    r"-j CONNMARK (?:--set-xmark (?P<value>0x[0-9a-f]+)/(?P<mask>0x[0-9a-f]+)"
    r"|--save-mark --nfmask (?P<nfmask>0x[0-9a-f]+) --ctmask (?P<ctmask>0x[0-9a-f]+))"
)
_NFT_CONSTANT = re.compile(r"ct mark set (0x[0-9a-f]+)(?= |$)")
_NFT = re.compile(r"ct mark set (?!ct mark [&|^] 0x)")


def _wipes(text: RuleText, bit: int) -> bool:
    """Return whether the rule overwrites this bit of the connection mark, if it matches."""
    found = _IPTABLES.search(text.text)
    if found:
        return bool(int(found["mask"] or found["ctmask"], 16) & bit)
    return text.program == "nft" and bool(_NFT.search(text.text))


def remasked(text: RuleText, bit: int) -> str:
    """Return the line that replaces the rule by one that leaves this bit alone; "" if there is none."""
    if text.program != "nft":
        rule = _IPTABLES.sub(lambda found: _without(found, bit), text.text).removeprefix(f"-A {text.chain} ")
        return f"{text.program} -t {text.table} -R {text.chain} {text.position} {rule}"
    rule, changed = _NFT_CONSTANT.subn(
        lambda found: f"ct mark set ct mark & {bit:#010x} | {int(found[1], 16) & ~bit:#010x}", text.text
    )
    if not changed:
        return ""
    place = f"{text.table} {text.chain} handle {text.handle}"
    command = f"replace rule {place} {_COUNTED.sub('counter', rule)}"
    return f"nft {shlex.quote(command)}"


_COUNTED = re.compile(r"counter packets \d+ bytes \d+")


def _without(found: re.Match[str], bit: int) -> str:
    """Return the target with masks that leave the bit out."""
    if found["mask"]:
        value, mask = (int(found[each], 16) & ~bit for each in ("value", "mask"))
        return f"-j CONNMARK --set-xmark {value:#x}/{mask:#x}"
    nfmask, ctmask = (int(found[each], 16) & ~bit for each in ("nfmask", "ctmask"))
    return f"-j CONNMARK --save-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}"
