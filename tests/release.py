"""Run a command of this checkout inside another release: `python3 -m tests.release SUITE COMMAND [ARGUMENT...]`.

The release is a tree of files that mmdebstrap makes. pivot_root enters it: the lab enters the root of its mount
namespace, which chroot does not change. It shares the machine's kernel, network, devices, certificates and pip's
configuration. Packages that the command installs there stay for the next run. The checkout is a copy; it ends together
with all processes and mounts when the command ends, or when this process is killed. The folder dist/ is the checkout's
own where there is one.
"""

import signal
import subprocess
import sys
from pathlib import Path

from tests import trees

CHECKOUT = Path(__file__).parents[1]

_PACKAGES = ("apt", "ca-certificates", "mount", "passwd", "python3")

_ENTER = r"""
set -euo pipefail
tree=$1 checkout=$2
shift 2
mount --bind "$tree" "$tree"
cd "$tree"
for file in /etc/ssl/certs/ca-certificates.crt /etc/resolv.conf /etc/pip.conf ~/.config/pip/pip.conf ~/.pip/pip.conf; do
    [ ! -e "$file" ] || install -D -m 644 "$file" "./$file"
done
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs srv
mkdir srv/igd run/lock
sed 's,/$,,' "$checkout/.gitignore" | tar -C "$checkout" --exclude=.git --exclude-from=- -c . |
    tar -C srv/igd --no-same-owner -x
[ ! -d "$checkout/dist" ] || mount --bind --mkdir "$checkout/dist" srv/igd/dist
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
pivot_root . mnt
umount --lazy /mnt
cd /srv/igd
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset XDG_CACHE_HOME
dpkg --configure --pending # what a run that was killed left
"$@" || exit # a child, so that this shell remains process 1 and reaps orphans
"""


def main(suite: str, *command: str) -> int:
    """Return the command's exit status."""
    tree = trees.system("release", suite, _PACKAGES)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the command as well: this one waits for its end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    enter = (*trees.PRIVATE, "bash", "-c", _ENTER, "bash", str(tree), str(CHECKOUT), *command)
    return subprocess.run(enter, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
