"""Trees of files that tests run in: built once, and kept in the user's cache directory.

mmdebstrap and not debootstrap: it takes a quarter of the time.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.process import CommandFailed

PATIENCE = 600.0  # seconds; a slow mirror

# Programs in mount and process namespaces of their own, which end with the process that starts them, even if it is
# killed. No process and no mount is left behind.
PRIVATE = (
    *("setpriv", "--pdeathsig=KILL"),
    *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"),
)

# The machine's own sources of packages, whichever files and mirrors they come from, without other vendors'.
_INDEXES = ("apt-get", "indextargets", "--format=$(ORIGIN) deb $(REPO_URI) $(CODENAME) $(COMPONENT)")
_CREATED_BY = "Created-By: Packages"
_VENDORS = ("Debian ", "Ubuntu ")
_UBUNTU = {"noble"}  # releases that machines of another one test


def this_release() -> str:
    """Return the code name of the machine's own release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')


def system(kind: str, suite: str, packages: Sequence[str]) -> Path:
    """Return a tree of this release with these packages; CommandFailed with the output of apt or mmdebstrap."""
    sources = _sources(suite)
    include = ",".join(packages)

    def build(tree: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".list") as list_, tempfile.NamedTemporaryFile("w") as options:
            list_.write(sources)
            options.write(output("apt-config", "dump", "Acquire"))  # proxies and the like
            list_.flush()
            options.flush()
            output(
                *PRIVATE,
                "mmdebstrap",
                "--mode=root",
                "--variant=essential",
                f"--include={include}",
                f"--aptopt={options.name}",
                "--dpkgopt=force-unsafe-io",
                suite,
                str(tree),
                *([list_.name] if sources else []),
            )
        # An empty one means the first boot, which enables every service that is installed.
        (tree / "etc/machine-id").write_text(f"{hashlib.md5(b'igd').hexdigest()}\n")  # noqa: S324 - of that length

    return kept(f"{kind}-{suite}", f"{sources}{include}", build)


def kept(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the tree that was built for this key, or build it, and remove the others of its kind.

    No other process removes it before this one has ended.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "igd-tests"
    cache.mkdir(parents=True, exist_ok=True)
    tree = cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with _locked(cache / f"{kind}.lock"):
        if not tree.exists():
            for old in cache.glob(f"{kind}-*"):
                if _hold(old, fcntl.LOCK_EX):
                    _remove(old)
            unfinished = cache / f"{kind}-unfinished"
            build(unfinished)
            unfinished.rename(tree)
        _hold(tree, fcntl.LOCK_SH)
    return tree


def output(*argv: str) -> str:
    """Return what a command of the machine prints; CommandFailed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise CommandFailed("here", argv, f"exit status {done.returncode}", done.stdout, done.stderr)
    return done.stdout


def _sources(suite: str) -> str:
    """Return lines of sources.list: the machine's mirrors where they have this release, else none."""
    own = this_release()
    vendors = _VENDORS if suite == own else "Ubuntu " if suite in _UBUNTU else "Debian "
    lines = [line for line in output(*_INDEXES, _CREATED_BY).splitlines() if line.startswith(vendors)]
    if suite == own and not lines:
        raise OSError("apt knows no source of this distribution's packages: has apt-get update ever been run?")
    return "".join(f"{line.split(' ', 1)[1]}\n" for line in lines).replace(f" {own}", f" {suite}")


def _hold(tree: Path, kind: int) -> bool:
    """Lock a tree until the process ends; return whether nothing stood against it."""
    descriptor = os.open(tree, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def _remove(tree: Path) -> None:
    """Delete a tree, and unmount first what a build without a mount namespace of its own left in it."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{tree}/")]):
        output("umount", "--lazy", mount)
    shutil.rmtree(tree)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
