"""What keeps something from working, and the lines that mend it."""

from typing import NamedTuple


class Obstacle(NamedTuple):
    """One sentence without its full stop, and the lines of a root's shell that mend it; "" if no line can.

    `introduction` is what a line of the log says between the two.
    """

    text: str
    remedy: str = ""
    introduction: str = "this helps"

    def __str__(self) -> str:
        """The remedy ends the line, so that it can be copied."""
        return f"{self.text}; {self.introduction}: {self.remedy}" if self.remedy else self.text
