"""python-iptables is an extra: without it the other backends work, and errors have the command that installs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from igd.firewall.backend import FirewallError
from igd.firewall.legacy import python_iptables

SOURCES = Path(__file__).parents[3]

EVERYTHING = """
import importlib, pkgutil, sys, igd
for module in pkgutil.walk_packages(igd.__path__, "igd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "igd.process.daemon" in sys.modules
assert not {name for name in sys.modules if name.partition(".")[0] == "iptc"}
"""

LIBRARY = """
from igd.firewall.legacy.python_iptables import library
assert library().Table.NAT == "nat"
"""


def python(script: str, **environment: str) -> None:
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(
        command, cwd=SOURCES, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_module_imports_it() -> None:
    python(EVERYTHING)


@pytest.mark.root
def test_compiling_its_source_warns_of_nothing(tmp_path: Path) -> None:
    """Its invalid escapes are a SyntaxWarning since Python 3.12, whenever there is no bytecode of it."""
    python(LIBRARY, PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=str(tmp_path))


def test_installed_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_iptables.installed()
    monkeypatch.setitem(sys.modules, "iptc", None)
    assert not python_iptables.installed()


def test_the_error_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iptc", None)
    line = f"{re.escape(sys.prefix)}/bin/pip install 'wg-igd\\[iptables\\]'"
    with pytest.raises(FirewallError, match=f"apt install .* && {line}$"):
        python_iptables.library.__wrapped__()
