"""UPnP clients that leave out what they need not send, and clients that share a host with others."""

import re
from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, PUBLIC, REMOTE, mappings, serving
from tests.lab import Answer, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """A lab with igd in it; every test has ports of its own."""
    needs("nft")
    with Lab() as lab, serving(lab):
        yield lab


def test_a_client_that_sends_only_what_it_must(served: Lab) -> None:
    """No Host, as TinyUPnP (ESP8266), and no argument that has a default."""
    content = control.body("AddPortMapping", {"ExternalPort": 9001, "Protocol": "tcp", "InternalPort": 9001})
    head = control.head("AddPortMapping", {"Host": None, "Content-Length": len(content)})
    assert control.exchange(served.c1, head + content).status == 200
    (mapping,) = (mapping for mapping in mappings(served) if mapping["external_port"] == 9001)
    assert (mapping["internal_address"], mapping["internal_port"]) == (C1, 9001)
    with answering(served.c1, 9001, "tcp"):
        assert ask(served.net, PUBLIC, 9001, "tcp") == Answer(REMOTE, "who am I?")
    delete = control.body("DeletePortMapping", {"ExternalPort": 9001, "Protocol": "tcp"})
    head = control.head("DeletePortMapping", {"Host": None, "Content-Length": len(delete)})
    assert control.exchange(served.c1, head + delete).status == 200
    with pytest.raises(ConnectionRefusedError):
        ask(served.net, PUBLIC, 9001, "tcp")


def test_any_port_leaves_another_program_its_port(served: Lab) -> None:
    def any_port(internal_port: int) -> int:
        """Invoke AddAnyPortMapping for the external port 23001, and return the port that it grants."""
        wish = {"ExternalPort": 23001, "Protocol": "TCP", "InternalPort": internal_port, "InternalClient": C1}
        response = control.post(served.c1, "AddAnyPortMapping", control.body("AddAnyPortMapping", wish))
        found = re.search(rb"<NewReservedPort>(\d+)</NewReservedPort>", response.rest)
        assert found, response
        return int(found[1])

    assert any_port(8001) == 23001
    other = any_port(8004)
    assert other != 23001
    with answering(served.c1, 8001, "tcp"):
        assert ask(served.net, PUBLIC, 23001, "tcp") == Answer(REMOTE, "who am I?")
    with answering(served.c1, 8004, "tcp"):
        assert ask(served.net, PUBLIC, other, "tcp") == Answer(REMOTE, "who am I?")
    assert [any_port(8001), any_port(8004)] == [23001, other]
