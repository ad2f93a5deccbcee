"""What every codec raises for bytes that it cannot read."""


class Malformed(ValueError):  # noqa: N818 - a word of the project, not of Python
    """The bytes are not a message of this protocol; `reason` says why, in words for a log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
