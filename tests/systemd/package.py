"""The package of this release, built from this checkout, and a newer version of it."""

import hashlib
import sys
from pathlib import Path

from tests import trees
from tests.systemd.tree import CHECKOUT

DEB, NEWER_DEB = "/packages/igd.deb", "/packages/newer.deb"
"""Where a machine finds both, with the tree of packages() among its layers."""
NEWER = "999.0"

_SOURCES = ("igd", "packaging", "systemd", "docs", "README.md", "CHANGELOG.md", "pyproject.toml")
_TOOLS = ("tests/constraints.txt", "tests/prepare")

# The newer one is the same, but for the version.
_MAKE = """
set -e
mkdir "$2/packages" "$2/work"
"$1/packaging/build-deb" "$2/packages"
mv "$2"/packages/igd_*.deb "$2$3"
dpkg-deb --raw-extract "$2$3" "$2/work/igd"
sed -i 's/^Version: .*/Version: '"$5/" "$2/work/igd/DEBIAN/control"
sed -i 's/^VERSION = .*/VERSION = "'"$5\\"/" "$2"/work/igd/usr/lib/igd/lib/python3*/site-packages/igd/__init__.py
dpkg-deb -Znone --build "$2/work/igd" "$2$4"
rm -r "$2/work"
"""


def packages() -> Path:
    """Return a tree with both, built by packaging/build-deb; CommandFailed with its output, lintian's included."""

    def build(tree: Path) -> None:
        tree.mkdir()
        trees.output("sh", "-c", _MAKE, "sh", str(CHECKOUT), str(tree), DEB, NEWER_DEB, NEWER)

    return trees.kept("package", sys.version + _content(), build)


def _content() -> str:
    """Return a sum of all that goes into the package."""
    named = [CHECKOUT / name for name in (*_SOURCES, *_TOOLS)]
    files = sorted(
        file for path in named for file in (path.rglob("*") if path.is_dir() else (path,)) if file.suffix != ".pyc"
    )
    contents = hashlib.sha256()
    for file in files:
        if file.is_file():
            contents.update(f"{file.relative_to(CHECKOUT)}\n".encode() + file.read_bytes())
    return contents.hexdigest()
