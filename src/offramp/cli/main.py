"""The `offramp` command: assembles the commands, turns errors into messages and exit codes."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from offramp.cli.console import show_error
from offramp.cli.doctor_command import doctor
from offramp.cli.list_command import list_things
from offramp.cli.replay_command import replay
from offramp.cli.run_command import run
from offramp.cli.score_command import score
from offramp.cli.trace_command import trace
from offramp.errors import OfframpError

INTERRUPTED = 130

app = typer.Typer(
    name="offramp",
    help="Would early-exit decoding pay on your model, your workload and your machine?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        import offramp

        print(f"offramp {offramp.__version__}")
        raise typer.Exit


@app.callback()
def offramp_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Would early-exit decoding pay on your model, your workload and your machine?"""


app.command("run")(run)
app.command("trace")(trace)
app.command("score")(score)
app.command("replay")(replay)
app.command("list")(list_things)
app.command("doctor")(doctor)


def main() -> None:
    """Run the command line; exits with 0, 1 (failed), 2 (bad usage or input) or 130 (interrupted)."""
    # Waiting threads that spin make small products many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except OfframpError as error:
        show_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        again = shlex.join(["offramp", *sys.argv[1:]])
        print("\nofframp: interrupted; what is finished is kept", file=sys.stderr)
        print(f"  what to do: run the same command again to go on: {again}", file=sys.stderr)
        sys.exit(INTERRUPTED)
