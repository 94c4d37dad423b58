"""Progress on standard error: a bar on a terminal, else a line now and then; both say what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]

SECONDS_BETWEEN_LINES = 15.0
"""Where nobody sees a bar move: more lines would fill a log."""


def _ignore(tokens: int) -> None:
    """Show nothing."""


@contextmanager
def token_bar(description: str, total: int, *, shown: bool, done: int = 0) -> Iterator[Advance]:
    """A bar over tokens, or lines where there is no terminal; call what it yields with the tokens finished.

    shown: whether anything is. done: tokens that an earlier run finished; they do not count for the speed.
    """
    if not shown:
        yield _ignore
        return
    if not sys.stderr.isatty():
        yield _Lines(description, total, done).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr, emoji=False)) as progress:
        task = progress.add_task(description, total=total, completed=done, speed="")

        def advance(tokens: int) -> None:
            progress.advance(task, tokens)
            speed = progress.tasks[task].speed
            progress.update(task, speed=f"{speed:,.0f} tokens/s" if speed else "")

        yield advance


class _Lines:
    """A line when it begins, and one now and then with the time that is left."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done = description, total, done
        self.found_done = done
        self.started = self.said = time.monotonic()
        self._say("")

    def advance(self, tokens: int) -> None:
        """Count tokens, and say how far it is if that was not said for a while."""
        self.done += tokens
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES or self.done <= self.found_done:
            return
        self.said = now
        speed = (self.done - self.found_done) / (now - self.started)
        self._say(f", {speed:,.0f} tokens/s, about {(self.total - self.done) / speed:.0f} s left")

    def _say(self, more: str) -> None:
        print(f"- {self.description}: {self.done:,}/{self.total:,} tokens{more}", file=sys.stderr, flush=True)
