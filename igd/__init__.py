"""A port-mapping gateway for WireGuard servers."""

VERSION = "0.1.0"
