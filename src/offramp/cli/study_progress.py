"""How a running study is shown: a live picture on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from offramp.cli.study_table import (
    AHEAD,
    STYLES,
    count_cells,
    counts_text,
    lasting,
    left_text,
    state_shown,
    task_names,
    tasks_text,
)
from offramp.errors import printable
from offramp.tracing.progress import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from offramp.studies.status import Status
    from offramp.studies.study import Plan

SECONDS_BETWEEN_PICTURES = 0.5
SHARE_OF_TIME = 0.03
"""Of one core, that drawing may take at most: reading where a thousand cells stand takes a while."""
SECONDS_BETWEEN_LINES = 30.0
MOST_TASKS_SHOWN = 8

OnChange = Callable[[], None]
"""What an engine calls whenever something may have changed, and at least once a second."""


@contextlib.contextmanager
def study_progress(plan: Plan, read: Callable[[], Status]) -> Iterator[OnChange]:
    """Show on standard error how a study goes on. read: gives where it stands."""
    if not sys.stderr.isatty():
        yield Lines(plan, read).changed
        return
    from rich.live import Live

    with Live(console=console(sys.stderr), transient=True, auto_refresh=False) as live:
        yield Picture(plan, read, lambda shown: live.update(shown, refresh=True)).changed


class Lines:
    """A line when it begins, a line when a task failed, and a line now and then."""

    def __init__(self, plan: Plan, read: Callable[[], Status]) -> None:
        self._plan, self._read = plan, read
        self._names = task_names(plan)
        self._next = 0.0
        self._failed = set(read().failures)
        self._started = time.monotonic()

    def changed(self) -> None:
        """Say what is new, and once in a while how far it is."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SECONDS_BETWEEN_LINES
        status = self._read()
        for key, failure in status.failures.items():
            if key not in self._failed:
                print(printable(f"failed: {self._names[key]}: {failure.what}"), file=sys.stderr, flush=True)
        self._failed |= set(status.failures)
        running = [name for key, name in self._names.items() if status.states[key] == "running"]
        doing = f"; now {', '.join(running[:3])}" if running else ""
        print(
            f"after {lasting(now - self._started)}: {counts_text(count_cells(self._plan, status))}; "
            f"{tasks_text(status)}, {left_text(status)}{doing}",
            file=sys.stderr,
            flush=True,
        )


class Picture:
    """Counts with a bar, time left, and what runs at the moment."""

    def __init__(
        self, plan: Plan, read: Callable[[], Status], show: Callable[[RenderableType], None]
    ) -> None:
        self._plan, self._read, self._show = plan, read, show
        self._names = task_names(plan)
        self._since: dict[str, float] = {}
        self._next = 0.0
        self._started = time.monotonic()

    def changed(self) -> None:
        """Draw it again, unless that was done just now."""
        now = time.monotonic()
        if now >= self._next:
            self._show(self.picture(self._read(), now))
            ended = time.monotonic()
            self._next = ended + max(SECONDS_BETWEEN_PICTURES, (ended - now) / SHARE_OF_TIME)

    def picture(self, status: Status, now: float) -> RenderableType:
        """What is shown at `now`, in seconds of a clock that only goes forward."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        counts = count_cells(self._plan, status)
        head = Text()
        for state, count in counts.items():
            head.append(("" if not head else ", ") + f"{count:,} {state}", STYLES[state])
        told = (tasks_text(status), f"{lasting(now - self._started)} so far", left_text(status))
        head.append(f" · {', '.join(told)}", "dim")
        ended = sum(state_shown(key, status) not in AHEAD for key in status.states)
        bar = ProgressBar(total=max(1, len(status.states)), completed=ended, width=60)
        return Group(head, bar, *(Text(line) for line in self._running(status, now)))

    def _running(self, status: Status, now: float) -> list[str]:
        """What is worked on, the longest first, each with how long it was seen to be."""
        running = [key for key, state in status.states.items() if state == "running"]
        self._since = {key: self._since.get(key, now) for key in running}
        running.sort(key=self._since.__getitem__)
        lines = [
            f"  {self._names.get(key, key[:12])}  ({lasting(now - self._since[key])})"
            for key in running[:MOST_TASKS_SHOWN]
        ]
        more = len(running) - len(lines)
        return [*lines, f"  and {more:,} more"] if more else lines
