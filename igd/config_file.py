"""Reads the text of a configuration file, and finds files that look like one and are not read.

Each error states the cause and, where there is one, the command that helps.
"""

import codecs
import grp
import os
import pwd
import shlex
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from igd.core.obstacle import Obstacle

SERVICE_USER = "igd"
"""The user of igd@.service."""

_HOMES = (Path("/root"), Path("/home"), Path("/run/user"))
"""What igd@.service hides (ProtectHome=): no mode of a file there lets the service read it."""

_COPIES = ("~", ".bak", ".disabled", ".off", ".old", ".orig", ".save", ".swp", ".dpkg-dist", ".dpkg-new", ".dpkg-old")
"""Endings of names that somebody chose so that the file is not read."""


def is_present(path: Path) -> bool:
    """Return whether there is something of this name, be it unreadable or a symbolic link to nothing."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        pass  # it may be there; reading it fails, and says why
    return True


def read(path: Path) -> str:
    """Return the text, without a byte order mark and with LF between lines; ValueError with cause and remedy."""
    try:
        return decoded(path.read_bytes(), path)
    except FileNotFoundError as error:
        target = f" (it is a symbolic link to {path.readlink()})" if path.is_symlink() else ""
        raise ValueError(f"{error.strerror}{target}") from None
    except PermissionError as error:
        raise ValueError(str(_denial(path, _this_user()) or error.strerror)) from None
    except IsADirectoryError:
        raise ValueError("it is a directory; igd reads one file of this name") from None
    except OSError as error:
        raise ValueError(f"{error.strerror}") from None


def decoded(data: bytes, path: Path) -> str:
    """Return the text of a file's bytes; see `read`."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = shlex.quote(str(path))
        raise ValueError(f"it is UTF-16, and must be UTF-8: iconv -f UTF-16 -t UTF-8 {name} > new && mv new {name}")
    if b"\0" in data:
        raise ValueError(f"it is not a text file: line {_line(data, data.index(0))} has a byte 0x00")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = _line(error.object, error.start), error.object[error.start]
        raise ValueError(f"line {line} is not UTF-8 (byte {byte:#04x}): save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


class _User(NamedTuple):
    name: str
    number: int
    group: str
    groups: frozenset[int]


def _denial(path: Path, user: _User) -> Obstacle | None:
    """Return which file or directory keeps `user` from reading `path`, and the command that permits it."""
    file = path.resolve()
    for place in (*reversed(file.parents), file):
        verb, right, bits = ("read", "r", 0o444) if place == file else ("enter", "x", 0o111)
        found = place.stat()
        allowed = _rights(found, user) & bits != 0
        hidden = place in _HOMES and user.name == SERVICE_USER
        if allowed and not hidden:
            continue
        reason = f"user {user.name} may not {verb} {place} ({_mode(found)})"
        if hidden:
            return Obstacle(
                f"{reason}: igd@.service hides it, so put the file itself in /etc/igd, and no symbolic link"
            )
        name = shlex.quote(str(place))
        return Obstacle(reason, f"chgrp {user.group} {name} && chmod g+{right} {name}", introduction="")
    return None


def _rights(found: os.stat_result, user: _User) -> int:
    """Return the bits of the mode that hold for this user."""
    if user.number == 0:
        return 0o777
    if user.number == found.st_uid:
        return found.st_mode & 0o700
    return found.st_mode & (0o070 if found.st_gid in user.groups else 0o007)


def service_denial(path: Path) -> Obstacle | None:
    """Return why igd@.service cannot read a file that this process can read; None if it can."""
    try:
        entry = pwd.getpwnam(SERVICE_USER)
        groups = os.getgrouplist(SERVICE_USER, entry.pw_gid)
        return _denial(path, _User(SERVICE_USER, entry.pw_uid, _group_of(entry.pw_gid), frozenset(groups)))
    except (KeyError, OSError):  # the service is not installed; the file is gone
        return None


def _this_user() -> _User:
    groups = frozenset([os.getegid(), *os.getgroups()])
    return _User(_name_of(os.geteuid()), os.geteuid(), _group_of(os.getegid()), groups)


def _mode(found: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(found.st_mode):04o}, {_name_of(found.st_uid)}:{_group_of(found.st_gid)}"


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _group_of(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)


def unread(path: Path) -> list[str]:
    """Return a sentence for each file that looks like the configuration `path` of an interface, and is not read.

    If `path` does not exist, the files of other names count too, except those of interfaces that exist.
    """
    missing, read_from = not is_present(path), path.resolve()  # `path` may be a link to a file of another name
    effect = "which does not exist: the defaults are in force" if missing else "and no other file"
    others = {f"{name}.toml" for _, name in socket.if_nameindex()} - {path.name}
    found = [
        file
        for file in _entries(path.parent)
        if file != path and file.name not in others and _looks_meant(file.name, path.stem, missing)
    ]
    found += [path.parent.parent / name for name in ("igd.toml", "igd.conf", path.name)]
    return [
        f"{file} is not read: the configuration of {path.stem} is {path}, {effect}"
        for file in found
        if _is_file(file) and file.resolve() != read_from
    ]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:  # there is none, or it may be entered and not listed
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:  # a link to where this process may not look
        return True


def _looks_meant(name: str, interface: str, missing: bool) -> bool:  # noqa: FBT001 - one caller
    lower, own = name.casefold(), interface.casefold()
    if name.startswith(".") or lower.endswith(_COPIES):
        return False
    if name.endswith(".toml"):
        return missing or lower in {f"{own}.toml", "igd.toml"}
    return any(lower == word or lower.startswith(f"{word}.") for word in (own, "igd"))


def misnamed(file: Path, directory: Path) -> str | None:
    """Return a sentence if `file` lies where igd reads INTERFACE.toml of `directory` only, and has another name."""
    read = file.parent == directory and file.suffix == ".toml" and file.stem != "igd"
    if read or file.parent not in {directory, directory.parent}:
        return None
    return f"{file} is not read: `igd run INTERFACE` reads {directory}/INTERFACE.toml"
