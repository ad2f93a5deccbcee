"""Reads the state of the host: WireGuard, links, addresses, sockets. Decides nothing."""
