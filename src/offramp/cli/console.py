"""What every command shares: consoles, the last JSON line, and how an error is shown."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from offramp.errors import OfframpError, printable
from offramp.tracing.progress import Lines, console, is_quiet, say

Progress = Callable[[int, int], None]
"""Called with what is done so far and with how much there is in all."""


class Output:
    """Human text goes to standard output, or to standard error if a machine reads the JSON there."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = console(sys.stderr if as_json else sys.stdout)

    def finish(self, value: dict[str, Any]) -> None:
        """Print one JSON object as the last line, if it was asked for; a NaN or infinity becomes null."""
        from offramp.records.typed import finite_json

        if self.as_json:
            print(json.dumps(finite_json(value), allow_nan=False), flush=True)


@contextlib.contextmanager
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


@contextlib.contextmanager
def progress_bar(description: str, seconds: float | None = None) -> Iterator[Progress]:
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


def show_error(error: OfframpError, *, as_json: bool) -> int:
    """Say what is wrong, where, what to do: on standard error, and as JSON if a machine reads.

    Gives the exit code.
    """
    print(f"offramp: {error.what}", file=sys.stderr)
    if error.where:
        # A text with a caret below it begins on its own line.
        print(f"  where:{'' if error.where.startswith(chr(10)) else ' '}{error.where}", file=sys.stderr)
    if error.fix:
        print(f"  what to do: {printable(error.fix)}", file=sys.stderr)
    if as_json:
        what = {"what": error.what, "where": error.where.strip("\n"), "fix": error.fix}
        # Where nothing can be written any more, what is said on standard error is all there is.
        with contextlib.suppress(OSError):
            print(json.dumps({"error": {**what, "exit_code": error.exit_code}}), flush=True)
    return error.exit_code
