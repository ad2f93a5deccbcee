"""Replaces a miniupnpd: its configuration, its mappings, and the connections that pass through them."""
