"""The calling thread without a right that root has."""

import contextlib
import ctypes
from collections.abc import Iterator

_CAP_NET_ADMIN = 12
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of each of effective, permitted, inheritable

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def without_net_admin() -> Iterator[None]:
    """Take CAP_NET_ADMIN from the calling thread for a while; programs that it starts have it all the same."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    before = (ctypes.c_uint32 * 6)()
    assert _libc.capget(header, before) == 0
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~(1 << _CAP_NET_ADMIN)
    assert _libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert _libc.capset(header, before) == 0
