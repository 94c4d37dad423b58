"""Locks between processes: one for each task, and one for each machine that timings need for themselves.

They are the operating system's (`flock`): a lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ATTEMPTS = 3
PAUSE_SECONDS = 0.002


@contextlib.contextmanager
def holding(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a lock inside the block; gives whether it is held, which it always is if `wait`.

    path: of the lock's file, made if absent and never removed. shared: beside others that share it. wait: for
    whoever holds it; else a lock that is taken is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+") as file:
        if wait:
            fcntl.flock(file, mode)
        yield wait or _taken(file, mode)


def is_held(path: Path) -> bool:
    """Whether a process holds this lock for itself."""
    if not path.exists():
        return False
    with holding(path, shared=True) as free:
        return not free


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
    host = platform.node() or "localhost"
    turn, machine = folder / f"turn-{host}", folder / f"timing-{host}"
    with contextlib.ExitStack() as held:
        # Who waits to be alone keeps the turn meanwhile, so that newcomers queue up behind it.
        with holding(turn, shared=not alone, wait=True):
            held.enter_context(holding(machine, shared=not alone, wait=True))
        yield
