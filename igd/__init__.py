"""A port-mapping gateway for WireGuard servers."""
