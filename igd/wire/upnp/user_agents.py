"""Which clients know version 1 of InternetGatewayDevice only, by what they say in User-Agent."""

_VERSION_1_ONLY = ("microsoft", "fdssdp", "dafupnp", "xbox", "upnp/1.0; windows")
"""Parts of the names under which Windows and Xbox read descriptions, in lower case.

Microsoft-Windows/10.0 UPnP/1.0; FDSSDP (Function Discovery); DAFUPnP (Device Association Framework);
Xbox/2.0.8955.0 UPnP/1.0 Xbox/2.0.8955.0; Mozilla/4.0 (compatible; UPnP/1.0; Windows NT/5.1).
"""


def knows_version_1_only(user_agent: str) -> bool:
    """Return whether this client gives up a gateway in whose description there is more than version 1."""
    return any(part in user_agent.lower() for part in _VERSION_1_ONLY)
