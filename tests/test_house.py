"""The imports of igd point one way: what may be imported from where is the table of this file."""

import ast
import fnmatch
from pathlib import Path

import pytest

IGD = Path(__file__).parents[1] / "igd"

# Module -> the modules of igd that it may import. The first row that fits a module is its row.
RULES: list[tuple[str, set[str]]] = [
    # The words, and then the judgement, which knows nothing but core/
    ("igd.core.mapping", set()),
    ("igd.core.request", {"igd.core.mapping"}),
    ("igd.core.peers", set()),
    ("igd.core.rate_limit", set()),
    ("igd.core.policy", {"igd.core.mapping", "igd.core.request"}),
    ("igd.core.table", {"igd.core.mapping", "igd.core.request"}),
    ("igd.core.planner", {"igd.core.mapping", "igd.core.policy", "igd.core.request", "igd.core.table"}),
    # Bytes <-> words
    ("igd.wire.malformed", set()),
    ("igd.wire.*", {"igd.core.mapping", "igd.core.request", "igd.wire", "igd.wire.*"}),
    # Deeds in the kernel: the table of ours, the chains of ours, and the rules of others do not know each other;
    # kernel.py and neighbours.py compose them
    ("igd.firewall.rules", {"igd.core.mapping"}),
    ("igd.firewall.backend", {"igd.core.mapping"}),
    ("igd.firewall.netlink", {"igd.firewall.backend"}),
    ("igd.firewall.watch", {"igd.firewall.netlink", "igd.firewall.rules"}),
    ("igd.firewall.conntrack", {"igd.core.mapping", "igd.firewall.netlink", "igd.firewall.rules"}),
    ("igd.firewall.pretend", {"igd.core.mapping", "igd.firewall.backend"}),
    ("igd.firewall.detect", {
        "igd.firewall.foreign",
        "igd.firewall.foreign.saved_rules",
        "igd.firewall.foreign.xtables",
        "igd.firewall.rules",
    }),
    ("igd.firewall.kernel", {"igd.core.mapping", "igd.firewall", "igd.firewall.*"}),
    ("igd.firewall.neighbours", {"igd.core.mapping", "igd.firewall", "igd.firewall.*"}),
    ("igd.firewall.foreign", set()),
    ("igd.firewall.foreign.saved_rules", set()),
    ("igd.firewall.foreign.native_text", set()),
    ("igd.firewall.foreign.packet", {"igd.core.mapping", "igd.firewall.rules"}),
    ("igd.firewall.foreign.conditions", {"igd.firewall.foreign.packet", "igd.firewall.foreign.saved_rules"}),
    ("igd.firewall.foreign.*", {
        "igd.core.mapping",
        "igd.firewall.backend",
        "igd.firewall.foreign",
        "igd.firewall.foreign.*",
        "igd.firewall.netlink",
        "igd.firewall.rules",
    }),
    ("igd.firewall.legacy", set()),
    ("igd.firewall.legacy.*", {
        "igd.core.mapping",
        "igd.firewall.backend",
        "igd.firewall.foreign.xtables",
        "igd.firewall.legacy.*",
        "igd.firewall.rules",
    }),
    ("igd.firewall.nft", set()),
    ("igd.firewall.nft.remotes", {"igd.core.mapping"}),
    ("igd.firewall.nft.source_ports", {"igd.core.mapping"}),
    ("igd.firewall.nft.*", {
        "igd.core.mapping",
        "igd.firewall.backend",
        "igd.firewall.netlink",
        "igd.firewall.nft",
        "igd.firewall.nft.*",
        "igd.firewall.rules",
    }),
    # What the machine tells
    ("igd.host.own_ports", {"igd.core.mapping"}),
    ("igd.host.*", {"igd.core.peers", "igd.core.request"}),
    # The counter has never heard of a protocol, nor of any firewall but its verbs
    ("igd.ledger", {"igd.core.*", "igd.firewall.backend"}),
    ("igd.gateway", {"igd.core.*", "igd.firewall.backend", "igd.ledger"}),
    ("igd.caretaker", {"igd.core.*", "igd.firewall.backend", "igd.gateway", "igd.ledger"}),
    ("igd.lease_store", {"igd.core.mapping"}),
    # Endpoints have never heard of a firewall, nor of how is decided
    ("igd.endpoints.*", {
        "igd.core.mapping",
        "igd.core.peers",
        "igd.core.request",
        "igd.endpoints",
        "igd.endpoints.page",
        "igd.gateway",
        "igd.wire",
        "igd.wire.*",
    }),
    ("igd.operator.status", {"igd.core.*"}),
    ("igd.operator.admin_client", set()),
    ("igd.operator.admin_socket", {"igd.gateway", "igd.operator.admin_client", "igd.operator.status"}),
    # What is beside all this
    ("igd.instance", set()),
    ("igd.detach", set()),
    ("igd.systemd", set()),
    ("igd.config", {"igd.core.policy", "igd.firewall.rules", "igd.instance"}),
    # What puts it together
    ("igd.surroundings", {"igd", "igd.systemd", "igd.host.external_address", "igd.host.links"}),
    ("igd.upkeep", {
        "igd.caretaker",
        "igd.endpoints.discovery",
        "igd.firewall.backend",
        "igd.firewall.watch",
        "igd.ledger",
        "igd.wire",
        "igd.wire.ssdp",
    }),
    ("igd.daemon", {"igd", "igd.*"}),
    ("igd.cli", {
        "igd",
        "igd.config",
        "igd.daemon",
        "igd.detach",
        "igd.firewall",
        "igd.firewall.backend",
        "igd.firewall.kernel",
        "igd.instance",
        "igd.lease_store",
        "igd.operator",
        "igd.operator.*",
    }),
    ("igd.__main__", {"igd.cli"}),
    ("igd", set()),
    ("igd.*", set()),  # a package itself; and a new module has no rights before it has a row
]  # fmt: skip

PURE = ("igd.core.*", "igd.wire.*")
IMPURE = {
    "asyncio",
    "logging",
    "os",
    "pydantic",
    "secrets",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}

VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}


def name_of(path: Path) -> str:
    parts = path.relative_to(IGD.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(IGD.rglob("*.py"))}


def imports(source: str) -> set[str]:
    """Give what a module imports, wherever in it; of `from package import module`, the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import says in full what it imports"
            assert node.module
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULES.keys()) or {node.module}
    return found


def allowed(module: str) -> set[str]:
    return next(allowed for pattern, allowed in RULES if fnmatch.fnmatchcase(module, pattern))


def forbidden(module: str, source: str) -> set[str]:
    own = {name for name in imports(source) if name.split(".")[0] == "igd"}
    return {name for name in own if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed(module))}


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_points_up(module: str) -> None:
    assert forbidden(module, MODULES[module].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("module", [name for name in MODULES if any(fnmatch.fnmatchcase(name, each) for each in PURE)])
def test_the_pure_parts_touch_nothing(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(MODULES[module].read_text(encoding="utf-8"))}
    assert outside & IMPURE == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_name_that_says_something(module: str) -> None:
    assert VAGUE.isdisjoint(module.split("."))


def test_only_who_builds_reads_the_configuration() -> None:
    readers = {name for name, path in MODULES.items() if "igd.config" in imports(path.read_text(encoding="utf-8"))}
    assert readers == {"igd.daemon", "igd.cli"}


def test_every_row_is_of_use() -> None:
    unused = {pattern for pattern, _ in RULES} - {
        next(pattern for pattern, _ in RULES if fnmatch.fnmatchcase(module, pattern)) for module in MODULES
    }
    assert unused == set()


def test_there_are_modules() -> None:
    assert {"igd.gateway", "igd.core.table", "igd.wire.soap"} <= MODULES.keys()


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("igd.gateway", "from igd.wire import soap", {"igd.wire.soap"}),
        ("igd.gateway", "def late():\n    import igd.firewall.nftables", {"igd.firewall.nftables"}),
        ("igd.gateway", "from igd.firewall.backend import Backend", set()),
        ("igd.endpoints.page", "from igd.core.table import Table", {"igd.core.table"}),
        ("igd.endpoints.new", "from igd.firewall import kernel", {"igd.firewall.kernel"}),
        ("igd.core.table", "from igd import gateway", {"igd.gateway"}),
        ("igd.firewall.legacy.iptables", "from igd.firewall.nft import nftables", {"igd.firewall.nft.nftables"}),
        ("igd.firewall.nft.nftables", "from igd.firewall.conntrack import Conntrack", {"igd.firewall.conntrack"}),
        ("igd.new", "from igd.core.mapping import Lease", {"igd.core.mapping"}),
    ],
)
def test_an_arrow_that_points_up_is_found(module: str, source: str, found: set[str]) -> None:
    assert forbidden(module, source) == found
