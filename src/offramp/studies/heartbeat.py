"""Signs of life: files that a living worker touches every few seconds, and how long one has been silent."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT_SECONDS = 2.0
STALL_SECONDS = 300.0
"""Without a sign of life before a worker is taken for stopped, if nothing else is said."""

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
