"""A subprocess for code that a model wrote: its own folder, limits on time and memory, no network."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from offramp.errors import InputError, OfframpError

INSIDE = Path(__file__).with_name("sandboxed.py")
SHOWN_BYTES = 4096
"""How much of the end of a program's output is read."""


@dataclass(frozen=True)
class SandboxLimits:
    """What a program may use.

    seconds: of wall time, and of processor time. file_bytes: of each file, and of the output.
    """

    seconds: int = 10
    memory_bytes: int = 512 * 1024**2
    file_bytes: int = 1024**2


@dataclass(frozen=True)
class SandboxResult:
    """finished: the program ran to its end without an exception. reason: why not, "" if it did.

    output: the end of what it printed, errors included.
    """

    finished: bool
    reason: str
    output: str


def run_program(program: str, limits: SandboxLimits | None = None) -> SandboxResult:
    """Run a Python program in a sandbox and see whether it reaches its end.

    It runs with `python -I -S` (no third-party packages) in a new empty folder that is deleted afterwards,
    with an empty environment, no open files of ours and no standard input, as a process group that is killed
    as a whole. Limits: wall and processor time, memory (address space), size of each file and of the output,
    no new processes (root is exempt from that limit, not from the hook), no core file. A hook within Python
    refuses processes, sockets, foreign functions and changes of files outside the folder. Where the system
    allows it, namespaces of its own take the network away and end every process it may have left, and
    Landlock refuses such changes and new programs whatever the program does (see `isolation`). Reaching the
    end is told by a random word that is printed after the last line; leaving early with exit code 0 is not
    enough.

    **It does not protect from** reading files that this user may read, many files that fill the disk
    within the time, programs that look for the random word in their own process, and code made to break out
    of Python where neither namespaces nor Landlock are at hand. Run what may be hostile in a virtual machine.

    Raises InputError on a system without POSIX process groups.
    """
    if os.name != "posix":
        raise InputError(
            "programs of a model can be run on POSIX systems only", where=sys.platform, fix="use Linux"
        )
    limits = limits or SandboxLimits()
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="offramp-sandbox-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "inside"
        folder.mkdir()
        job, output = Path(place) / "job.json", Path(place) / "output"
        job.write_text(json.dumps({"program": program, "word": word, **asdict(limits)}), encoding="utf-8")
        status = _run(job, output, folder, limits.seconds)
        shown, printed = _end_of(output), output.stat().st_size
    if shown.endswith(word):
        return SandboxResult(True, "", shown[: -len(word)].rstrip("\n"))
    if printed >= limits.file_bytes:
        return SandboxResult(False, f"it printed more than {limits.file_bytes:,} bytes", shown)
    return SandboxResult(False, _reason(status, shown, limits), shown)


def code_refused(task: str) -> InputError:
    """The error for a task that runs code which was not allowed: what allowing it means."""
    return InputError(
        f"scoring {task!r} runs code that the model wrote",
        where=f"task {task}",
        fix="allow it with allow_code=True (--allow-code) on a machine where that may go wrong: the code can "
        "read every file that you can, and one that searches its own process for the word that a finished "
        "program prints could forge its success",
    )


def require_sandbox() -> None:
    """Raise OfframpError if not even an empty program reaches its end: every answer would look wrong."""
    tried = run_program("")
    if not tried.finished:
        raise OfframpError(
            f"the sandbox cannot run a program on this system: {tried.reason}",
            where=sys.executable,
            fix="leave out tasks that run code, or use Linux",
        )


def isolation() -> str:
    """What the system adds to the limits: "namespaces" or why there are none."""
    return "namespaces" if _namespaces() else "no namespaces: this system does not let this user make any"


def _run(job: Path, output: Path, folder: Path, seconds: int) -> int | None:
    """Run a job: its exit status, None if it ran out of time. Nothing of it is left running."""
    command = [*_namespaces(), sys.executable, "-I", "-S", "-X", "utf8", str(INSIDE)]
    with job.open("rb") as given, output.open("wb") as printed:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={},
            stdin=given,
            stdout=printed,
            stderr=subprocess.STDOUT,
            close_fds=True,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty; EPERM on macOS
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@functools.cache
def _namespaces() -> tuple[str, ...]:
    """The command that takes network and process tree apart, empty if this user may not."""
    tool = shutil.which("unshare")
    if tool is None:
        return ()
    own = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    command = (tool, *own, "--net", "--ipc", "--pid", "--fork", "--kill-child")
    try:
        tried = subprocess.run(
            [*command, sys.executable, "-I", "-S", "-c", ""], capture_output=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return ()
    return command if tried.returncode == 0 else ()


def _end_of(output: Path) -> str:
    data = output.read_bytes()[-SHOWN_BYTES:]
    return data.decode("utf-8", errors="replace")


def _reason(status: int | None, shown: str, limits: SandboxLimits) -> str:
    if status is None or status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return f"it did not end within {limits.seconds} s"
    if status == 0:
        return "it left before its end"
    if status < 0 or status > 128:
        return f"it was ended by signal {abs(status) % 128}"
    lines = shown.strip().splitlines()
    return lines[-1][:200] if lines else f"it left with exit code {status}"
