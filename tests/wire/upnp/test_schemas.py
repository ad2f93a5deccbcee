"""lxml, which reads as libxml2's other users do, validates every kind of document that is written."""

from pathlib import Path

import pytest
from lxml import etree

from igd.wire.upnp import former_paths, soap
from igd.wire.upnp.description import DEVICE_PATHS, WITHOUT_FIREWALL_PATH, Identity, documents
from igd.wire.upnp.soap import Call, UPnPError
from tests.wire.upnp.test_actions import LIST, MAPPINGS, answered, call
from tests.wire.upnp.test_description import DOCUMENTS, IDENTITY, ROOT, SERVICE_PATHS

SCHEMAS = Path(__file__).parent / "schemas"


def assert_valid(schema: str, body: bytes) -> None:
    etree.XMLSchema(file=str(SCHEMAS / f"{schema}.xsd")).assertValid(etree.fromstring(body))


@pytest.mark.parametrize("path", [*DEVICE_PATHS.values(), WITHOUT_FIREWALL_PATH, former_paths.DEVICE_PATH])
@pytest.mark.parametrize("identity", [IDENTITY, Identity(ROOT, "Müller & Söhne <wg0>\r\0", "0.1.0", "/")])
def test_device_descriptions(path: str, identity: Identity) -> None:
    assert_valid("device", documents(identity)[path])


@pytest.mark.parametrize("path", SERVICE_PATHS)
def test_service_descriptions(path: str) -> None:
    assert_valid("service", DOCUMENTS[path])


def test_what_the_schemas_refuse() -> None:
    """They are no schemas that everything is valid against."""
    device, service = DOCUMENTS["/1/device.xml"], DOCUMENTS["/1/WANIPConn1.xml"]
    for schema, body in (
        ("device", device.replace(b"<manufacturer>igd</manufacturer>", b"")),
        ("device", device.replace(b"uuid:", b"")),
        ("service", service.replace(b"<name>AddPortMapping</name>", b"<name>DeletePortMapping</name>")),
        ("service", service.replace(b"<name>RemoteHost</name>", b"<name>Remote</name>")),
    ):
        with pytest.raises(etree.DocumentInvalid):
            assert_valid(schema, body)


def test_port_listings() -> None:
    outputs = answered(call("GetListOfPortMappings", LIST, 2), MAPPINGS)
    assert_valid("listing", outputs["NewPortListing"].encode())
    response = etree.fromstring(soap.encode_response(Call("urn:x", "GetListOfPortMappings", {}), outputs))
    assert response.findtext(".//NewPortListing") == outputs["NewPortListing"]


def test_errors() -> None:
    """§3.2.5: the fields of the fault have no namespace, and those of UPnPError have UPnP's."""
    fault = etree.fromstring(soap.encode_error(UPnPError(718, "ConflictInMappingEntry")))[0][0]
    assert [element.tag for element in fault.iter()] == [
        f"{{{soap.ENVELOPE}}}Fault",
        *("faultcode", "faultstring", "detail"),
        *(f"{{{soap.CONTROL}}}{name}" for name in ("UPnPError", "errorCode", "errorDescription")),
    ]
