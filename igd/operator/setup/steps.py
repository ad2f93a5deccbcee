"""A plan: steps, each with what it does, how that is undone, and why."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

Argv = tuple[str, ...]


class Write(NamedTuple):
    """A file that gets `content`; `before` is what it had when the plan was made, None without such a file.

    `lines` are what is added to a file of the operator's. `separable`: each can be taken out again by itself, whatever
    else was changed.
    """

    path: Path
    before: bytes | None
    content: bytes
    lines: tuple[str, ...] = ()
    separable: bool = False


class Step(NamedTuple):
    """Files that are written, then commands that run; `undo` are the commands that take the commands back.

    `tracks` are files that the commands change. `makes` are directories that come into being, `fills` those that are
    removed with their contents; neither is touched by an undo if it was there before.
    """

    reason: str
    writes: tuple[Write, ...] = ()
    do: tuple[Argv, ...] = ()
    undo: tuple[Argv, ...] = ()
    tracks: tuple[Path, ...] = ()
    makes: tuple[Path, ...] = ()
    fills: tuple[Path, ...] = ()


def as_text(steps: Sequence[Step]) -> str:
    """Format a plan for the operator: do, undo and reason of each step."""
    return "\n".join(line for number, step in enumerate(steps, 1) for line in _lines(number, step))


def _lines(number: int, step: Step) -> Iterator[str]:
    yield from _row(f"{number:2}. do  ", [*_done(step), *map(shlex.join, step.do)])
    deleted = [f"delete {directory}" for directory in step.fills]
    yield from _row("    undo", [*_undone(step), *map(shlex.join, step.undo), *deleted])
    yield from _row("    why ", [step.reason])


def _row(title: str, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield f"{title}  {line}"
        title = " " * len(title)


def _done(step: Step) -> Iterator[str]:
    for write in step.writes:
        if write.lines:
            yield f"add to {write.path}:"
            yield from (f"    {line}" for line in write.lines)
        else:
            yield f"write {write.path}:"
            yield from (f"    {line}" for line in write.content.decode().splitlines() if line and line[0] != "#")


def _undone(step: Step) -> Iterator[str]:
    for write in step.writes:
        yield "take out these lines" if write.before is not None else f"delete {write.path}"
