"""What the codecs of requests in datagrams raise, with the answer that the specification has for it."""

from igd.wire.malformed import Malformed


class Rejected(Malformed):
    """A request that gets no further than the codec; `answer` goes back to the source, None: nothing does."""

    def __init__(self, reason: str, answer: bytes | None = None) -> None:
        super().__init__(reason)
        self.answer = answer
