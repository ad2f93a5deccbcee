"""Sockets towards the peers: receive, decode, ask the gateway, encode, send."""
