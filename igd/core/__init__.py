"""Mappings, requests and the decisions on them; pure: no clock, socket, file, log or event loop."""
