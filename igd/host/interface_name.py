"""Which names the kernel accepts for a network interface."""

import os
import re


def interface_name(name: str) -> str:
    """Return a name that the kernel accepts (1 to 15 bytes without white space, `/` and `:`); ValueError."""
    if re.fullmatch(r"[^\s/:\0]+", name) and len(os.fsencode(name)) <= 15 and name not in {".", ".."}:
        return name
    raise ValueError(f"{name!r} is not an interface name: 1 to 15 bytes without spaces, '/' and ':'")
