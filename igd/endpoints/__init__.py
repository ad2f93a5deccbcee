"""The sockets that peers send to: receive, decode, ask the gateway, encode, send."""
