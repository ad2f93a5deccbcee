"""The exceptions that codecs raise for bytes that they cannot decode."""


class Malformed(ValueError):  # noqa: N818 - it names the state of the input, as `raise Malformed("...")` reads
    """The bytes are not a message of this protocol; `reason` says why, for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidRequest(Malformed):
    """A datagram that is not a valid request; `response` is what its sender gets, None if it is dropped."""

    def __init__(self, reason: str, response: bytes | None = None) -> None:
        super().__init__(reason)
        self.response = response
