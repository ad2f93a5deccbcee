"""The library python-iptables: whether it is installed, and its import.

It is an extra of this package: the iptables backend alone needs it, and installing it takes a C compiler.
"""

import functools
import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING

from igd.firewall.backend import FirewallError
from igd.firewall.legacy import xtables_options
from igd.firewall.legacy.chain import NAT

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = f"apt install gcc libc6-dev python3-dev && {sys.prefix}/bin/pip install 'wg-igd[iptables]'"
"""The line for a shell that installs it beside this igd."""


class MissingLibraryError(FirewallError):
    """python-iptables is not installed."""

    def __init__(self) -> None:
        super().__init__(f"the iptables backend needs the extra wg-igd[iptables], which is not installed: {INSTALL}")


def problem() -> str:
    """Return why python-iptables cannot be used here, and the remedy; empty if it can. This imports it: see library."""
    try:
        if not installed():
            raise MissingLibraryError
        library()
    except FirewallError as error:
        return str(error)
    return ""


def installed() -> bool:
    """Return whether python-iptables can be found, without importing it."""
    return importlib.util.find_spec("iptc") is not None


@functools.cache
def library() -> "ModuleType":
    """Import python-iptables; raise FirewallError where that fails.

    The import takes 0.3 s and 20 MB, and runs modprobe, ldconfig and, where there is one, gcc: a host that uses another
    backend must be spared that.
    """
    if not installed():
        raise MissingLibraryError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in its source, each time that it is compiled
            import iptc  # noqa: PLC0415 - imported late, for the reasons above
        xtables_options.fix_option_tables(iptc.xtables)
        iptc.Match(iptc.Rule(), "udp").dport = "1"  # fails where it misreads the extensions' options
    except Exception as error:  # the import loads iptables' libraries, and fails in many ways
        raise FirewallError(f"python-iptables is installed and does not work here: {error}") from error
    for kind in (iptc.Table, iptc.Table6):
        kind.existing_table_names.update({name: name == NAT for name in kind.ALL})
    return iptc  # type: ignore[no-any-return]
