"""The files that test machines boot: this host's own distribution, and igd in /opt/igd as the README installs it.

Both are made once and kept in the user's cache directory; what belongs to an older igd or other packages goes.
mmdebstrap and not debootstrap: it takes a quarter of the time.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.lab.process import CommandFailed

CHECKOUT = Path(__file__).parents[2]
_CONSTRAINTS = CHECKOUT / "tests/constraints.txt"
PATIENCE = 600.0  # seconds; a slow mirror

_PACKAGES = ("systemd-sysv", "wireguard-tools", "wireguard-go", "nftables", "iptables", "iproute2", "python3", "kmod")

# The machine's own sources of packages, whichever files and mirrors they come from, without other vendors'.
_INDEXES = ("apt-get", "indextargets", "--format=$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)")
_CREATED_BY = "Created-By: Packages"
_VENDORS = ("Debian ", "Ubuntu ")

# The overlay lets /opt/igd, which stands in the scripts' first lines, be made without touching the machine's /opt.
_MAKE_VENV = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/opt /mnt/work
mount -t overlay -o lowerdir=/opt,upperdir=/mnt/opt,workdir=/mnt/work overlay /opt
/usr/bin/python3 -m venv --clear /opt/igd
/opt/igd/bin/pip install --quiet --constraint "$2" "$1[iptables]"
cp -a /mnt/opt/igd "$3"
"""


def layers() -> tuple[Path, Path]:
    """Give what lies over / (with igd in opt/igd), and / itself; CommandFailed with what apt or pip said."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "igd-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache), ThreadPoolExecutor() as pool:
        system = pool.submit(_system, cache)
        venv = pool.submit(_venv, cache)
        return venv.result(), system.result()


def _system(cache: Path) -> Path:
    suite = _os_release("VERSION_CODENAME")
    lines = _output(*_INDEXES, _CREATED_BY).splitlines()
    sources = "".join(f"{line.split(' ', 1)[1]}\n" for line in lines if line.startswith(_VENDORS))
    if not sources:
        raise OSError("apt knows no source of this distribution's packages: has apt-get update ever been run?")

    def build(tree: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".list") as list_, tempfile.NamedTemporaryFile("w") as options:
            list_.write(sources)
            options.write(_output("apt-config", "dump", "Acquire"))  # proxies and the like
            list_.flush()
            options.flush()
            _output(
                "mmdebstrap",
                "--mode=root",
                "--variant=essential",
                f"--include={','.join(_PACKAGES)}",
                f"--aptopt={options.name}",
                "--dpkgopt=force-unsafe-io",
                suite,
                str(tree),
                list_.name,
            )
        # An empty one means the first boot, which enables every service that is installed.
        (tree / "etc/machine-id").write_text(f"{hashlib.md5(b'igd').hexdigest()}\n")  # noqa: S324 - of that length

    return _kept(cache, "system", f"{suite}\n{sources}{_PACKAGES}", build)


def _venv(cache: Path) -> Path:
    files = sorted([CHECKOUT / "pyproject.toml", _CONSTRAINTS, *(CHECKOUT / "igd").rglob("*.py")])
    content = "".join(f"{file.relative_to(CHECKOUT)}\n{file.read_text()}" for file in files)

    def build(tree: Path) -> None:
        (tree / "opt").mkdir(parents=True)
        _output("unshare", "--mount", "sh", "-c", _MAKE_VENV, "sh", str(CHECKOUT), str(_CONSTRAINTS), f"{tree}/opt")

    return _kept(cache, "venv", _output("/usr/bin/python3", "-VV") + content, build)


def _kept(cache: Path, kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Give the tree that was built for this key, or build it, in place of the last one of its kind."""
    tree = cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not tree.exists():
        for old in cache.glob(f"{kind}-*"):
            shutil.rmtree(old)
        unfinished = cache / f"{kind}-unfinished"
        build(unfinished)
        unfinished.rename(tree)
    return tree


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise CommandFailed("here", argv, f"exit status {done.returncode}", done.stdout, done.stderr)
    return done.stdout


def _os_release(key: str) -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)[key].strip('"')
