"""Hosts out of Linux namespaces, and a small internet with a WireGuard server and two clients on it.

Nothing here outlives the process that made it, not even after kill -9, and nothing here is seen by the
machine: every host has its own network, processes, /etc, /var and /run.
"""

from .host import Host
from .namespaces import await_ipv6
from .process import PATIENCE, CommandFailed, Process, until
from .talk import Answer, answering, ask, call, put, swallows, swallows_more
from .topology import Lab

__all__ = [
    "PATIENCE",
    "Answer",
    "CommandFailed",
    "Host",
    "Lab",
    "Process",
    "answering",
    "ask",
    "await_ipv6",
    "call",
    "put",
    "swallows",
    "swallows_more",
    "until",
]
