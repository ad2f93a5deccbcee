"""Writes what `nft -j` prints of a rule as nft lists it, for the log. Pure."""

_SHOWN = 6
"""How many elements of a set are written."""


def spoken(value: object) -> str:  # noqa: C901, PLR0911, PLR0912 - one line for each form of expression
    """Write an expression or a statement nearly as nft would; never fails."""
    match value:
        case {"match": {"op": op, "left": left, "right": right}}:
            return " ".join([spoken(left), *([] if op in ("==", "in") else [str(op)]), spoken(right)])
        case {"vmap": {"key": key, "data": data}}:
            return f"{spoken(key)} vmap {spoken(data)}"
        case {"jump": {"target": target}}:
            return f"jump {target}"
        case {"goto": {"target": target}}:
            return f"goto {target}"
        case {"mangle": {"key": key}}:
            return f"{spoken(key)} set"
        case {"meta": {"key": key}}:
            return str(key)
        case {"payload": {"protocol": protocol, "field": name}}:
            return f"{protocol} {name}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [low, high]}:
            return f"{spoken(low)}-{spoken(high)}"
        case {"set": [*elements]}:
            return f"{{ {', '.join(map(spoken, elements[:_SHOWN]))}{', ...' if elements[_SHOWN:] else ''} }}"
        case {"concat": [*parts]}:
            return " . ".join(map(spoken, parts))
        case {"&": [left, right]}:
            return f"{spoken(left)} & {spoken(right)}"
        case dict() if len(value) == 1:
            return str(next(iter(value)))
        case [key, dict() as verdict]:
            return f"{spoken(key)} : {spoken(verdict)}"
        case [*parts]:
            return ",".join(map(spoken, parts))
        case _:
            return str(value)
