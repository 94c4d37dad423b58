"""Where the `offramp` command begins: says that memory ran out where nothing else can any more."""

from __future__ import annotations

import sys

from offramp.errors import is_out_of_memory


def main() -> None:
    """Run the command line (see `offramp.cli.main`); exits with 1 where memory is too short to say more."""
    try:
        from offramp.cli.main import main as run

        run()
    except (MemoryError, ImportError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"offramp: out of memory: {str(error) or 'no more can be had'}\n"
            "  what to do: allow this process more memory (ulimit -v, the container's limit)",
            file=sys.stderr,
        )
        sys.exit(1)
