"""The interface names that the kernel accepts."""

import os
import re


def interface_name(name: str) -> str:
    """Return `name` if the kernel accepts it: 1 to 15 bytes without white space, `/` and `:`. ValueError."""
    if re.fullmatch(r"[^\s/:\0]+", name) and len(os.fsencode(name)) <= 15 and name not in {".", ".."}:
        return name
    raise ValueError(f"{name!r} is not an interface name: 1 to 15 bytes without spaces, '/' and ':'")
