"""The paths of the admin socket: what each request to the daemon is about."""

STATUS = "/status"
MAPPINGS = "/mappings"
