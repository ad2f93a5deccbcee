"""What every codec raises for bytes that it cannot read, and where the specification has an answer, with that."""


class Malformed(ValueError):  # noqa: N818 - a word of the project, not of Python
    """The bytes are not a message of this protocol; `reason` says why, in words for a log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Rejected(Malformed):
    """A request that gets no further than the codec; `answer` goes back to the source, None: nothing does."""

    def __init__(self, reason: str, answer: bytes | None = None) -> None:
        super().__init__(reason)
        self.answer = answer
