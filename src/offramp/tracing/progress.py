"""Progress on standard error: a bar on a terminal, else a line now and then; both say what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

from offramp.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Advance = Callable[[int], None]
Counted = Callable[[int, int], None]
"""Called with what is done so far and with how much there is in all."""

SECONDS_BETWEEN_LINES = 15.0
"""Where nobody sees a bar move: more lines would fill a log."""


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Run something without a word on standard error about how far it is. quiet: whether to."""
    token = _quiet.set(quiet)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether nothing is to be said of progress."""
    return _quiet.get()


def console(stream: TextIO) -> Console:
    """A console for people: what texts of others hold that a terminal would obey is shown as its code."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Shown(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    return Shown(file=stream, highlight=False, emoji=False)


def say(line: str) -> None:
    """A plain line about what is going on, on standard error, unless quiet was asked for."""
    if not is_quiet():
        print(f"- {printable(line)}", file=sys.stderr, flush=True)


class Lines:
    """Progress where there is no terminal: a line now and then with the speed and the time that is left.

    unit: of what is counted, "" without a speed. done: by an earlier run; it does not count for the speed.
    """

    def __init__(self, description: str, unit: str = "", done: int = 0) -> None:
        self.description, self.unit, self.found = description, unit, done
        self.started = self.said = time.monotonic()

    def show(self, done: int, total: int, standing: str = "") -> None:
        """Say how far it is, if that was not said for a while. standing: said at the end of the line."""
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES or done <= self.found:
            return
        self.said = now
        speed = (done - self.found) / (now - self.started)
        more = f", {speed:,.0f} {self.unit}/s" if self.unit else ""
        self.say(done, total, f"{more}, about {max(0, total - done) / speed:.0f} s left{standing}")

    def say(self, done: int, total: int, more: str = "") -> None:
        """Say how far it is."""
        say(f"{self.description}: {done:,}/{total:,}{' ' * bool(self.unit)}{self.unit}{more}")


@contextmanager
def token_bar(description: str, total: int, *, shown: bool, done: int = 0) -> Iterator[Advance]:
    """A bar over tokens, or lines where there is no terminal; call what it yields with the tokens finished.

    shown: whether anything is. done: tokens that an earlier run finished; they do not count for the speed.
    """
    if not shown or is_quiet():
        yield lambda tokens: None
        return
    if not sys.stderr.isatty():
        lines, reached = Lines(description, "tokens", done), done
        lines.say(done, total)

        def count(tokens: int) -> None:
            nonlocal reached
            reached += tokens
            lines.show(reached, total)

        yield count
        return
    with _bar("tokens", width=28) as progress:
        task = progress.add_task(description, total=total, completed=done, speed="")

        def advance(tokens: int) -> None:
            progress.advance(task, tokens)
            speed = progress.tasks[task].speed
            progress.update(task, speed=f"{speed:,.0f} tokens/s" if speed else "")

        yield advance


@contextmanager
def step_bar(
    description: str, total: int, *, shown: bool, done: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """A bar over steps, or lines where there is no terminal.

    Call what it yields with the steps done so far, and with how it stands in words. shown, done: as
    `token_bar` takes them.
    """
    if not shown or is_quiet():
        yield lambda steps, standing: None
        return
    if not sys.stderr.isatty():
        lines = Lines(description, "steps", done)
        yield lambda steps, standing: lines.show(steps, total, f"; {standing}")
        return
    with _bar("steps", width=28) as progress:
        task = progress.add_task(description, total=total, completed=done, speed="")
        yield lambda steps, standing: progress.update(task, completed=steps, speed=standing)


def _bar(unit: str, *, width: int, shown: bool = True) -> Progress:
    """A bar of rich. width: of the description."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console(sys.stderr), disable=not shown or is_quiet())


class LayerBar:
    """A bar over layers x tokens that says whether weights are being read or used. Layers count from 0."""

    def __init__(self, progress: Progress, description: str, layers: int) -> None:
        self._progress, self._description, self._layers = progress, description, layers
        self._task = progress.add_task(description, total=0, speed="")

    def begin(self, layers: int, tokens: int) -> None:
        """So many layers are to be computed, for so many tokens each."""
        self._progress.update(self._task, total=layers * tokens)

    def at(self, layer: int, what: str) -> None:
        """What is done with a layer: "reading" its weights, or "computing"."""
        described = f"{self._description}: {what} layer {layer + 1}/{self._layers}"
        self._progress.update(self._task, description=described)

    def advance(self, tokens: int) -> None:
        """Some tokens are through the layer."""
        self._progress.advance(self._task, tokens)


@contextmanager
def layer_bar(description: str, layers: int, *, shown: bool) -> Iterator[LayerBar]:
    """A bar on standard error, or one that nobody sees. layers: L."""
    with _bar("layers x tokens", width=40, shown=shown) as progress:
        yield LayerBar(progress, description, layers)


@contextmanager
def stage(description: str, seconds: float | None = None) -> Iterator[None]:
    """Say on standard error what takes a moment: on a terminal until it is over, else in a line.

    seconds: that it is expected to take, None if that is not known.
    """
    expected = "" if seconds is None else f" (about {max(seconds, 1.0):.0f} s)"
    if is_quiet() or not sys.stderr.isatty():
        say(description + expected)
        yield
        return
    with console(sys.stderr).status(description + expected):
        yield


@contextmanager
def progress_bar(description: str, seconds: float | None = None) -> Iterator[Counted]:
    """A progress bar on standard error; where there is no terminal, a line now and then.

    seconds: that it is expected to take, None if that is not known.
    """
    expected = "" if seconds is None else f" (about {max(seconds, 1.0):.0f} s)"
    if is_quiet() or not sys.stderr.isatty():
        say(description + expected)
        yield Lines(description).show
        return
    from rich.progress import Progress as Bar

    with Bar(console=console(sys.stderr), transient=True) as bar:
        shown = bar.add_task(description + expected, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)
