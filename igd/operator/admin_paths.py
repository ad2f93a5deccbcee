"""The paths of the admin socket: what each request to the daemon is about."""

STATUS = "/status"
MAPPINGS = "/mappings"
RELOAD = "/reload"
REVOKE = "/revoke"
ADD = "/add"

ACTIONS = (RELOAD, REVOKE, ADD)
"""The paths to which a JSON value is posted, and which change something."""


class RefusedError(Exception):
    """The daemon refused what the operator asked for; the text has a line for each reason."""
