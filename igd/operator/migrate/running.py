"""A miniupnpd that runs: its process, where it listens, and what it answers about its mappings."""

import http.client
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from igd.operator.migrate.mappings import Former, endpoint, port, protocol
from igd.wire.malformed import Malformed
from igd.wire.upnp import soap, xml
from igd.wire.upnp.devices import WAN_IP_CONNECTION

PROGRAM = "miniupnpd"

DEFAULT_FILES = ("/etc/miniupnpd/miniupnpd.conf", "/etc/miniupnpd.conf")
"""What a miniupnpd without -f reads: that of 2.3.7 and later, and the older one."""

SECONDS = 5.0
"""The time limit of one answer."""

MAX_BYTES = 1 << 16
"""The largest answer that is read."""

MAX_MAPPINGS = 2 * 65536

READINGS = 5
"""How often the list is read until two readings are equal."""

_ROOT_PATH = "/rootDesc.xml"
_CONTROL_PATH = "/ctl/IPConn"
_LISTENING = "0A"  # of proc_net_tcp(5)
_END_OF_LIST = "713"
_UDN = re.compile(r"<UDN>uuid:([0-9a-fA-F-]+)</UDN>")


class Service(NamedTuple):
    """Where a miniupnpd answers, and the UUID of its root device; None if it is not one."""

    port: int
    uuid: UUID | None


def process(configuration: Path) -> int | None:
    """Return the id of the miniupnpd of this network namespace that was started with this file; None if none runs."""
    own = Path("/proc/self/ns/net").readlink()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text().strip() != PROGRAM or (directory / "ns/net").readlink() != own:
                continue
            words = (directory / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        if configuration.resolve() in _files(words):
            return int(directory.name)
    return None


def _files(words: list[str]) -> set[Path]:
    """Return the configuration files that a command line of miniupnpd may mean."""
    named = [word for option, word in itertools.pairwise(words) if option == "-f"]
    return {Path(name).resolve() for name in named or DEFAULT_FILES}


def started(process_id: int) -> float:
    """Return when a process started, as a boottime; OSError."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def ports(process_id: int) -> list[int]:
    """Return the TCP ports on which a process listens; OSError."""
    links = (_link(entry) for entry in Path(f"/proc/{process_id}/fd").iterdir())
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{process_id}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_, inode = row.split()[:10]
            if state == _LISTENING and inode in inodes:
                found.add(int(local.rpartition(":")[2], 16))
    return sorted(found)


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:  # it was closed
        return ""


def service(process_id: int, address: IPv4Address) -> Service | None:
    """Return where this miniupnpd answers requests that are sent to the interface's address; None: nowhere. OSError."""
    for listening in ports(process_id):
        try:
            status, body = _get(address, listening, _ROOT_PATH)
        except (OSError, http.client.HTTPException):  # it is the port of HTTPS
            continue
        if status == http.HTTPStatus.OK and (found := _UDN.search(body.decode(errors="replace"))):
            return Service(listening, _uuid(found[1]))
    return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def mappings(address: IPv4Address, http_port: int) -> list[Former]:
    """Return all mappings of the miniupnpd that answers there; OSError if it does not, or not as miniupnpd."""
    before = list(_mappings(address, http_port))
    for _ in range(READINGS):  # one that is closed meanwhile moves those behind it
        after = list(_mappings(address, http_port))
        if [(each.key, each.internal) for each in before] == [(each.key, each.internal) for each in after]:
            return after
        before = after
    raise OSError("its mappings change faster than they can be read")


def _mappings(address: IPv4Address, http_port: int) -> Iterator[Former]:
    for index in range(MAX_MAPPINGS):
        try:
            answer = _invoke(address, http_port, "GetGenericPortMappingEntry", {"NewPortMappingIndex": str(index)})
        except (Malformed, http.client.HTTPException) as error:
            raise OSError(f"it answers otherwise than miniupnpd: {error!r}") from error
        if answer is None:
            return
        yield _former(answer)


def _former(answer: dict[str, str]) -> Former:
    try:
        remote = answer["NewRemoteHost"].strip()
        return Former(
            protocol(answer["NewProtocol"]),
            port(answer["NewExternalPort"]),
            endpoint(answer["NewInternalClient"], answer["NewInternalPort"]),
            answer["NewPortMappingDescription"],
            int(answer["NewLeaseDuration"]) or None,
            IPv4Address(remote) if remote not in {"", "*"} else None,
        )
    except (KeyError, ValueError) as error:
        raise OSError(f"it has a mapping that is none: {error!r}") from error


def _invoke(address: IPv4Address, http_port: int, action: str, arguments: soap.Arguments) -> dict[str, str] | None:
    """Invoke an action of WANIPConnection; return its results, None behind the end of the list."""
    urn = WAN_IP_CONNECTION.urn(1)
    tag = xml.Tag(f"u:{action}", {"u": urn})
    envelope = xml.Tag("s:Envelope", {"s": soap.ENVELOPE}, {"s:encodingStyle": soap.ENCODING})
    request = xml.write((envelope, (("s:Body", ((tag, tuple(arguments.items())),)),)))
    status, body = _post(address, http_port, f"{urn}#{action}", request)
    answer = _leaves(xml.parse(body))
    if status == http.HTTPStatus.OK:
        return answer
    if answer.get("errorCode") == _END_OF_LIST:
        return None
    raise OSError(f"{action}: response {status} {answer.get('errorDescription', '')}")


def _leaves(element: xml.Element) -> dict[str, str]:
    """Return the texts of the elements without children, by name."""
    if not element.children:
        return {element.name: element.text}
    return {name: text for child in element.children for name, text in _leaves(child).items()}


def _get(address: IPv4Address, http_port: int, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(str(address), http_port, timeout=SECONDS)) as connection:
        connection.request("GET", path)
        return _answer(connection)


def _post(address: IPv4Address, http_port: int, action: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": xml.CONTENT_TYPE, "SOAPAction": f'"{action}"'}
    with closing(http.client.HTTPConnection(str(address), http_port, timeout=SECONDS)) as connection:
        connection.request("POST", _CONTROL_PATH, body, headers)
        return _answer(connection)


def _answer(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    response = connection.getresponse()
    return response.status, response.read(MAX_BYTES)
