"""The `offramp` command: assembles the commands, turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import select
import shlex
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from offramp.cli.bench import Bench, bench
from offramp.cli.command import AT_WORK, command, show_error
from offramp.cli.generate import Completion, generate
from offramp.cli.heads import exits, heads
from offramp.cli.load import load
from offramp.cli.machine import DoctorCommand, ListCommand, doctor, hardware, list_things
from offramp.cli.pages import CompareCommand, ReportCommand, compare, report, run
from offramp.cli.study import study
from offramp.cli.traces import (
    PredictCommand,
    ReplayCommand,
    ScoreCommand,
    TraceCommand,
    predict,
    replay,
    score,
    trace,
)
from offramp.cli.tune import Tuning, tune
from offramp.commands import LAB_MOVED, filled
from offramp.errors import DamagedFileError, DiskFullError, InputError, OfframpError, is_out_of_memory
from offramp.models.process import silence_torchao
from offramp.runs.request import Run
from offramp.serving.request import Load

LM_EVAL = "offramp-lm-eval --model offramp --model_args pretrained=MODEL,policy=P --tasks"
TASKS = f"{LM_EVAL} offramp-multiple-choice,offramp-reasoning (docs/harness.md)"

SCORES = "run experiments/claims/predict.py of offramp's repository on tables/ of offramp compare"

FORMER = {
    "offramp lab": LAB_MOVED,
    "offramp compare --pair": "run pairs.py DIR... --pair FIRST SECOND, in experiments/claims of offramp's "
    "repository",
    **{f"offramp predict {option}": SCORES for option in ("--from-scores", "--score", "--level", "--floor")},
    "offramp bench --task": f"lm-eval asks the questions now, with the same policies: {TASKS}",
    "offramp bench --questions": f"lm-eval asks the questions now, as many as its --limit says: {TASKS}",
    "offramp bench --allow-code": "use lm-eval's own switch, in a virtual machine: HF_ALLOW_CODE_EVAL=1 "
    f"{LM_EVAL} humaneval --confirm_run_unsafe_code",
}
"""What to do instead, by a command and the option that it had, or by a command that there was."""


def former_error(problem: Exception, command: str) -> InputError | None:
    """The error for a word that was once a command or an option, None for any other.

    problem: the parser's complaint. command: the one that it is about, "offramp bench".
    """
    option = getattr(problem, "option_name", None)
    unknown = re.search(r"No such command '([^']+)'", str(getattr(problem, "message", "")))
    word = option or (unknown[1] if unknown else "")
    instead = FORMER.get(f"{command} {word}")
    if instead is None:
        return None
    kind = "option" if option else "command"
    return InputError(f"{word} is no {kind} any more", where=command, fix=instead)


INTERRUPTED = 130
BAD_PATH = (
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EEXIST,
    errno.ELOOP,
    errno.EINVAL,
)
"""Of errors of the operating system, those that another path would not have. A disk that can only be read is
refused before the work; one that turns so meanwhile fails."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Without a file's name they are of standard output: files are written by `offramp.files`."""
STOPPING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that stop a run as Ctrl-C does."""
AGAIN_SECONDS = 0.1
"""After which a signal that was lost is sent again."""
# What the parser raises on bad usage: click's exception, which typer keeps in a place of its own.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="offramp",
    help="Would early-exit decoding pay on your model, your workload and your machine?",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import offramp

        print(f"offramp {offramp.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def offramp_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Would early-exit decoding pay on your model, your workload and your machine?"""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(InputError.exit_code)


command(app, "run", Run, run)
command(app, "trace", TraceCommand, trace)
command(app, "score", ScoreCommand, score)
command(app, "replay", ReplayCommand, replay)
command(app, "tune", Tuning, tune)
command(app, "predict", PredictCommand, predict)
command(app, "bench", Bench, bench)
command(app, "load", Load, load)
command(app, "generate", Completion, generate)
app.add_typer(study, name="study")
command(app, "compare", CompareCommand, compare)
command(app, "report", ReportCommand, report)
command(app, "list", ListCommand, list_things)
app.add_typer(hardware, name="hardware")
app.add_typer(heads, name="heads")
app.add_typer(exits, name="exits")
command(app, "doctor", DoctorCommand, doctor)


class _Stopped(BaseException):
    """A signal asked for the end. Not an Exception, so that nothing that goes on after errors catches it."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


_reader_gone = threading.Event()


def _watch_pipes(ended: threading.Event) -> None:
    """Stop this process once nobody reads what it says: only its next line would tell, minutes later.

    Like a hang-up, which nohup ignores. ended: from when on nothing is to be stopped.
    """
    poller, watched = select.poll(), False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none of the system's
            if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
                poller.register(stream.fileno(), 0)  # an end without readers is told unasked
                watched = True

    def watch() -> None:
        poller.poll()
        _reader_gone.set()
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGHUP)

    if watched and signal.getsignal(signal.SIGHUP) is _stop:
        threading.Thread(target=watch, daemon=True, name="pipes").start()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let signals that end a process end the block like Ctrl-C; what ignores them (nohup) goes on to."""
    taken = [number for number in STOPPING if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _stop)
    ended, before = threading.Event(), sys.unraisablehook

    def send(number: int) -> None:
        if not ended.is_set():
            os.kill(os.getpid(), number)

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        # Raised in a destructor it goes nowhere (transformers collects garbage in one): it is sent again.
        if isinstance(lost.exc_value, (_Stopped, KeyboardInterrupt)):
            again = threading.Timer(AGAIN_SECONDS, send, (getattr(lost.exc_value, "number", signal.SIGINT),))
            again.daemon = True
            again.start()
        else:
            before(lost)

    sys.unraisablehook = unraisable
    _watch_pipes(ended)
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = before
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Run the command line.

    Exits with 0, 1 (failed), 2 (bad usage or input), 130 (interrupted), or 128 and the number of a signal
    that stopped it; SIGPIPE's where nobody reads its output any more.
    """
    # Waiting threads that spin make small products many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.stderr is None:  # closed: nobody is to be told, and no file of ours may become number 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.set_inheritable(2, True)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    # Bars of other libraries would fill a log; ours say a line now and then. Read where tqdm is imported.
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    silence_torchao()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show "×" gets its code, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    as_json = "--json" in sys.argv
    AT_WORK.set(None)
    try:
        with _stoppable():
            exit_code = _run(as_json)
    except (KeyboardInterrupt, typer.Abort):
        exit_code = show_error(_interrupted("interrupted", INTERRUPTED), as_json=as_json)
    except _Stopped as stopped:
        name, exit_code = f"stopped by {signal.Signals(stopped.number).name}", 128 + stopped.number
        if _reader_gone.is_set():
            exit_code = _end_unread()
        else:
            with contextlib.suppress(OSError):  # a hang-up takes the terminal with it
                show_error(_interrupted(name, exit_code), as_json=as_json)
    except BrokenPipeError as problem:
        unread = _reader_gone.wait(1.0)
        exit_code = _end_unread() if unread else show_error(_system_error(problem), as_json=as_json)
    sys.exit(exit_code)


def _run(as_json: bool) -> int:
    """The exit code of the command, which has said its error. What stops it, or its reader's end, is raised,
    also while an error is prepared and shown."""
    try:
        _require_text(sys.argv[1:])
        _require_surroundings()
        exit_code: int = app(standalone_mode=False, prog_name="offramp") or 0
        if exit_code == INTERRUPTED:  # the parser catches Ctrl-C, and returns this
            raise KeyboardInterrupt
    except (typer.Abort, BrokenPipeError):
        raise
    except USAGE_ERROR as problem:
        exit_code = show_error(_usage_error(problem), as_json=as_json)
    except OfframpError as error:
        error.fix = filled(error.fix, _given(sys.argv[1:]))
        if isinstance(error, DiskFullError):
            error.fix += _kept()
        exit_code = show_error(_of_a_run(error), as_json=as_json)
    except (MemoryError, RuntimeError, OSError, ImportError) as problem:
        if is_out_of_memory(problem):
            exit_code = show_error(_out_of_memory(problem), as_json=as_json)
        elif isinstance(problem, OSError):
            exit_code = show_error(_system_error(problem), as_json=as_json)
        elif _while_importing_torch(problem):
            exit_code = show_error(_no_torch(problem), as_json=as_json)
        else:
            raise
    except ValueError as problem:  # TORCH_LOGS=nonsense
        if not _while_importing_torch(problem):
            raise
        exit_code = show_error(_no_torch(problem), as_json=as_json)
    return exit_code


def _of_a_run(error: OfframpError) -> OfframpError:
    """An error about a file that a run wrote, and that is damaged or gone: damage, which the run's command
    mends. Whoever reads the file does not know whose it is. Any other error is left as it is.
    """
    damaged, path = isinstance(error, DamagedFileError), Path(error.where)
    if not damaged and not (error.where and isinstance(error, InputError) and path.parent.is_dir()):
        return error
    from offramp.runs.folder import mended_by  # numpy comes with it

    command = mended_by(path, changed=damaged)
    if command is None:
        return error
    fix = f"give the run's command again, which makes it again and keeps the rest: {command}"
    return DamagedFileError(error.what, where=error.where, fix=fix)


def _end_unread() -> int:
    """The exit code of what a closed pipe ends. What is still to be written goes nowhere, without error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    return 128 + signal.SIGPIPE


def _given(words: list[str]) -> dict[str, Any]:
    """What a command was given, by the names of arguments and options; nothing of what cannot be read."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("offramp", [], resilient_parsing=True)
    try:
        while hasattr(command, "resolve_command"):
            name, command, words = command.resolve_command(context, words)
            context = command.make_context(name, list(words), parent=context, resilient_parsing=True)
    except USAGE_ERROR:
        return {}
    return {_name_of(parameter): context.params.get(parameter.name) for parameter in command.params}


def _name_of(parameter: Any) -> str:
    """An option's name on the command line, "_" for "-"; an argument's own."""
    long = (word.removeprefix("--") for word in parameter.opts if word.startswith("--"))
    return next(long, str(parameter.name)).replace("-", "_")


def _require_surroundings() -> None:
    """Refuse a folder that is gone, in which libraries crash, and a closed standard output."""
    if sys.stdout is None:
        raise OfframpError("standard output is closed", fix="redirect it, to /dev/null if nobody reads it")
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError(
            "the current folder does not exist any more", fix="go into a folder that does"
        ) from error


def _require_text(words: list[str]) -> None:
    """Refuse an argument that is no text: names of files are kept in JSON, which is UTF-8. And a file or an
    output that has no name, which would be taken for the current folder."""
    for option, word in itertools.pairwise(["", *words]):
        nameless = option if not word else word.removesuffix("=") if word.endswith("=") else ""
        if nameless in ("-o", "--output"):
            raise InputError("the output has no name", where="-o", fix="name one, . for the current folder")
        if nameless in ("--image", "--audio", "--heads", "--executions"):
            raise InputError("the file has no name", where=nameless, fix="name one")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                "an argument is not UTF-8",
                where=ascii(word),
                fix="rename the file or folder, or set PYTHONUTF8=1 where it is: the locale is not",
            ) from error


def _usage_error(problem: Exception) -> InputError:
    """The parser's complaint in the form of all other errors."""
    context = getattr(problem, "ctx", None)
    command = "offramp" if context is None else context.command_path
    former = former_error(problem, command)
    if former is not None:
        return former
    what = str(getattr(problem, "format_message", problem.__str__)()).strip().rstrip(".")
    return InputError(what, where=command, fix=f"{command} --help shows how it is used")


def _system_error(problem: OSError) -> OfframpError:
    """What the operating system refused: a path that cannot be one (bad input), or a disk that fails."""
    bad_path = problem.errno in BAD_PATH
    kind = InputError if bad_path else OfframpError
    return kind(
        f"the operating system says: {problem.strerror or problem}",
        where=str(problem.filename or ("standard output" if problem.errno in NO_ROOM else "")),
        fix="check the path and its permissions"
        if bad_path
        else "raise the limit on open files (ulimit -n), then run the same command again"
        if problem.errno in (errno.EMFILE, errno.ENFILE)
        else "check the disk and the space on it, then run the same command again",
    )


def _while_importing_torch(problem: BaseException) -> bool:
    """Whether an error came out of torch's own beginnings, which read the environment."""
    frames = (frame for frame, _ in traceback.walk_tb(problem.__traceback__))
    return any(
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "torch" for frame in frames
    )


def _no_torch(problem: BaseException) -> OfframpError:
    return OfframpError(
        f"torch cannot be imported: {problem}",
        fix="look at the environment variables that it reads (TORCH_..., PYTORCH_...), or install it anew",
    )


def _out_of_memory(problem: BaseException) -> OfframpError:
    """Memory ran out: how much there is, and what takes less."""
    from offramp.kit.numbers import shown_size
    from offramp.models.process import available_memory, machine_memory

    free, total = shown_size(available_memory()), shown_size(machine_memory())
    said = str(problem).partition("\n")[0] or "no more can be had"
    return OfframpError(
        f"out of memory: {said}; {free} of {total} are free on this machine, less where a limit is set",
        fix="use a smaller model, --dtype bfloat16, fewer --tokens or a shorter --context; tracing with "
        f"--stream holds two layers at a time{_kept()}",
    )


def _kept() -> str:
    """That what is finished is kept, where it is."""
    asked = AT_WORK.get()
    return "; what is finished is kept" if asked is not None and asked.resumes else ""


def _interrupted(how: str, exit_code: int) -> OfframpError:
    kept = _kept()
    error = OfframpError(f"{how}{kept}")
    # Whole, however long: it is to be run.
    again = shlex.join(["offramp", *sys.argv[1:]])
    error.fix = f"run the same command again{' to go on' if kept else ''}: {again}"
    error.exit_code = exit_code
    return error
