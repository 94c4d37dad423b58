"""Locks between processes: one for each task, and one for each machine that timings need for themselves.

They are the operating system's (`flock`): a lock ends with the process that holds it, however that ends. Its
file says which process that is, and is touched while that one lives (see `offramp.studies.locks`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from offramp.files import FIRST_BYTES, open_regular, require_lock
from offramp.kit.numbers import whole_number

BEAT_SECONDS = 2.0
ALIVE = "alive-"
"""What the names of files that show signs of life begin with, among the locks."""
REPORT = "report"
"""The lock of whoever writes the page."""
_NAME = re.compile(rf"[a-z_]+-[0-9a-f]{{64}}|{ALIVE}.+|{REPORT}|(turn|timing)-.+")
_HOLDER = re.compile(rb"(\d+ \S+\n)?")

_touched: set[Path] = set()


def start_beating(path: Path) -> None:
    """Touch a file, and those of every `beating` block, for as long as this process runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    _touched.add(path)
    threading.Thread(target=_beat, daemon=True).start()


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """Let a file show signs of life too inside the block, if this process shows any."""
    _touched.add(path)
    try:
        yield
    finally:
        _touched.discard(path)


def _beat() -> None:
    while True:
        for path in tuple(_touched):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                path.touch()
        time.sleep(BEAT_SECONDS)


def silent_seconds(path: Path) -> float:
    """How long ago a file showed a sign of life by the wall clock; 0 if it is not there."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


class Watch:
    """Someone's observation of a file: looks at it again and again, and trusts no clock but its own.

    A clock that is set, or a pause of the watcher itself (Ctrl-Z, a laptop asleep), is nobody's silence.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: int | None = None
        self._silence = 0.0
        self._last = time.monotonic()

    def silence(self) -> float:
        """Seconds of watching since the last sign of life, the first look counted as one.

        Of the time between two looks no more counts than two beats: in a longer one this process may have
        been stopped too.
        """
        now = time.monotonic()
        try:
            seen: int | None = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            seen = None
        if seen == self._seen:
            self._silence += min(now - self._last, 2 * BEAT_SECONDS)
        else:
            self._seen, self._silence = seen, 0.0
        self._last = now
        return self._silence


ATTEMPTS = 3
PAUSE_SECONDS = 0.002
SYSTEM_LOCKS = Path("/proc/locks")
"""Where Linux says which process holds which file."""


@contextlib.contextmanager
def holding(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a lock inside the block; gives whether it is held, which it always is if `wait`.

    path: of the lock's file, made if absent and never removed. shared: beside others that share it. wait: for
    whoever holds it; else a lock that is taken is left alone.

    Raises InputError for a file under that name that is no lock of ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    require_lock(path, _names_a_holder)
    with path.open("a+") as file:
        if wait:
            fcntl.flock(file, mode)
        held = wait or _taken(file, mode)
        if not held or shared:
            yield held
            return
        file.truncate(0)
        file.write(f"{os.getpid()} {_host()}\n")
        file.flush()
        with beating(path):
            yield True


def is_lock(path: Path) -> bool:
    """Whether a file among the locks is one, by its name and what it says of its holder."""
    if not (path.is_file() and _NAME.fullmatch(path.name)):
        return False
    with open_regular(path) as file:
        return _names_a_holder(file.read(FIRST_BYTES))


def _names_a_holder(content: bytes) -> bool:
    """Whether a lock's file says this, and nothing else."""
    return _HOLDER.fullmatch(content) is not None


def is_held(path: Path) -> bool:
    """Whether a process holds this lock for itself."""
    if not path.exists():
        return False
    with holding(path, shared=True) as free:
        return not free


def holder(path: Path) -> tuple[int, str] | None:
    """Process and host of whoever holds a lock for itself, or did last; None if nobody ever did."""
    if not path.is_file():
        return None
    with open_regular(path) as file:
        words = file.read(FIRST_BYTES).decode("utf-8", errors="replace").split()
    process = whole_number(words[0]) if len(words) == 2 else None
    return None if process is None else (process, words[1])


def end_holder(path: Path) -> str | None:
    """Kill the process that holds a lock for itself, if it surely is one of this machine.

    Returns why it was not killed, in words, None if it was.
    """
    named = holder(path)
    if named is None:
        return "a process that left no name"
    process, host = named
    if host != _host():
        return f"process {process} on {host}"
    node = path.stat().st_ino
    lines = SYSTEM_LOCKS.read_text().splitlines() if SYSTEM_LOCKS.is_file() else []
    held = {(words[4], words[5].rpartition(":")[2]) for line in lines if len(words := line.split()) > 5}
    if (str(process), str(node)) not in held:
        return f"process {process}, as far as is known"
    try:
        os.kill(process, signal.SIGKILL)
    except OSError as error:
        return f"process {process}, which cannot be ended: {error.strerror}"
    return None


def _host() -> str:
    return platform.node().replace(" ", "-") or "localhost"


def _taken(file: IO[str], mode: int) -> bool:
    """Whether a lock could be taken."""
    # Whoever looks with `is_held` has a lock for a moment, so that one look does not tell that it is taken.
    for attempt in range(1 if mode == fcntl.LOCK_SH else ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, mode | fcntl.LOCK_NB)
            return True
    return False


@contextlib.contextmanager
def machine_held(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold this machine inside the block, waiting for it: beside others, or alone, as timings need it.

    folder: of the locks. Whoever waits to be alone goes before those that come later.
    """
    turn, machine = folder / f"turn-{_host()}", folder / f"timing-{_host()}"
    with contextlib.ExitStack() as held:
        # Who waits to be alone keeps the turn meanwhile, so that newcomers queue up behind it.
        with holding(turn, shared=not alone, wait=True):
            held.enter_context(holding(machine, shared=not alone, wait=True))
        yield
