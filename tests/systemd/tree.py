"""The files that test machines boot: this host's own distribution, and igd in /opt/igd as the README installs it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import trees

CHECKOUT = Path(__file__).parents[2]

_PACKAGES = (
    "systemd-sysv",
    "wireguard-tools",
    "wireguard-go",
    "nftables",
    "iptables",
    "iproute2",
    "python3",
    "kmod",
    "passwd",
    "libstdc++6",
)

# The overlay lets /opt/igd, which stands in the scripts' first lines, be made without touching the machine's /opt.
_MAKE_VENV = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/opt /mnt/work
mount -t overlay -o lowerdir=/opt,upperdir=/mnt/opt,workdir=/mnt/work overlay /opt
/usr/bin/python3 -m venv --clear /opt/igd
cd "$1"
PIP_CONSTRAINT=tests/constraints.txt /opt/igd/bin/pip install --quiet ".[iptables]"
mkdir -p "$2"
cp -a /mnt/opt/igd "$2"
"""


def layers() -> tuple[Path, Path]:
    """Return what lies over / (with igd in opt/igd), and / itself; CommandFailed with the output of apt or pip."""
    with ThreadPoolExecutor() as pool:
        without_igd = pool.submit(system)
        venv = pool.submit(_venv)
        return venv.result(), without_igd.result()


def system() -> Path:
    """Return / without igd; CommandFailed with the output of apt."""
    return trees.system("machine", trees.this_release(), _PACKAGES)


def _venv() -> Path:
    files = sorted([CHECKOUT / "pyproject.toml", CHECKOUT / "tests/constraints.txt", *(CHECKOUT / "igd").rglob("*.py")])
    files += sorted((CHECKOUT / "systemd").iterdir())
    content = "".join(f"{file.relative_to(CHECKOUT)}\n{file.read_text()}" for file in files)

    def build(tree: Path) -> None:
        trees.output(*trees.PRIVATE, "sh", "-c", _MAKE_VENV, "sh", str(CHECKOUT), f"{tree}/opt")

    return trees.kept("installed", trees.output("/usr/bin/python3", "-VV") + content, build)
