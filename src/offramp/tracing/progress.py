"""Progress bars on standard error: what is done, tokens per second, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


def _ignore(tokens: int) -> None:
    """Show nothing."""


@contextmanager
def token_bar(description: str, total: int, *, shown: bool, done: int = 0) -> Iterator[Advance]:
    """A bar over tokens; call what it yields with the number of tokens just finished.

    done: tokens that an earlier run finished; they do not count for the speed.
    """
    if not shown:
        yield _ignore
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
