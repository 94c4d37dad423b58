"""What every command shares: consoles, the last JSON line, and how an error is shown."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from offramp.errors import OfframpError, printable
from offramp.tracing.progress import console


class Output:
    """Human text goes to standard output, or to standard error if a machine reads the JSON there."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = console(sys.stderr if as_json else sys.stdout)

    def say(self, *lines: str) -> None:
        """Print lines as they are, however long."""
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)

    def say_page(self, page: Path) -> None:
        """Say where a page lies."""
        self.say(f"Report: {page}")

    def finish(self, value: dict[str, Any]) -> None:
        """Print one JSON object as the last line, if it was asked for; a NaN or infinity becomes null."""
        from offramp.kit.typed import finite_json

        if self.as_json:
            print(json.dumps(finite_json(value), allow_nan=False), flush=True)


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
