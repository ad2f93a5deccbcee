"""What keeps something from working, and the lines that mend it."""

from typing import NamedTuple


class Obstacle(NamedTuple):
    """One sentence without its full stop, and the lines of a root's shell that mend it; "" if no line can.

    `introduction` is what a line of the log says between the two, "" for nothing.
    """

    text: str
    remedy: str = ""
    introduction: str = "this helps"

    def __str__(self) -> str:
        """The remedy ends the line, so that it can be copied."""
        introduction = f"; {self.introduction}" if self.introduction else ""
        lines = " and ".join(self.remedy.splitlines())
        return f"{self.text}{introduction}: {lines}" if lines else self.text
