"""The journal of a study, one line an event: added to by many processes, never written over."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from offramp.commands import RunCall
from offramp.errors import InputError
from offramp.files import (
    LARGEST_JSON,
    canonical_json,
    disk_full,
    is_disk_full,
    open_regular,
    parse_json,
    sha256_of_text,
    why_not_ours,
)
from offramp.kit.numbers import NotNegative, Whole
from offramp.kit.stays_json import Of
from offramp.kit.typed import InvalidRecordError, from_json
from offramp.studies.task import Task
from offramp.tracing.progress import say

CHECKSUM = "check"
CHECKSUM_LENGTH = 12
TAIL_BYTES = 1 << 16
LINES_NAMED = 5
PATIENCE_SECONDS, PAUSE_SECONDS = 5.0, 0.005
"""For a lock that is held while one line is written."""


Wall = Annotated[float, Ge(0), Le(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC).timestamp())]
"""A clock on the wall that has a date."""


@dataclass(frozen=True)
class _Took:
    """What is read of an event's details; all else in them is as it was written."""

    seconds: NotNegative | None = None


@dataclass(frozen=True)
class Event:
    """One thing that happened to a task, or to the whole study."""

    number: Whole
    """Counts up by one from 1, and alone says what came first."""
    event: str
    """ "started", "finished", "failed", "damaged" and the like."""
    task: str = ""
    """The task's key, "" of an event of the study."""
    kind: str = ""
    """The task's."""
    details: Annotated[Mapping[str, Any], Of(_Took)] = field(default_factory=dict)
    """What else is known, such as "seconds" that a task took."""
    wall: Wall = 0.0
    """Seconds since 1970, for people only, since a clock may be set back."""
    monotonic: NotNegative = 0.0
    """Seconds on this machine's clock that only goes forward."""
    process: Whole = 0
    """Its number on `host`."""
    host: str = ""

    @property
    def seconds(self) -> float | None:
        """That the task took, None where nothing says."""
        took: float | None = self.details.get("seconds")
        return took


@dataclass(frozen=True)
class JournalReading:
    """The whole events of a journal in the order in which they happened, and what is wrong with the rest."""

    events: tuple[Event, ...]
    problems: tuple[str, ...]


class Journal:
    """A file of one JSON object a line, each with a short checksum, so that a torn line is known for one.

    A process that is killed while it writes leaves part of a line: the next one starts a line of its own, and
    readers skip what is not whole. The file's lock is held only while one line is added or all are read; who
    is stopped meanwhile does not make others wait for ever.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, task: Task | None = None, **details: Any) -> Event:
        """Add one event, on disk before this returns.

        Raises DiskFullError if there is no room for it, InputError if something else stands in its place.
        """
        self._require_place()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "r+b", buffering=0):
                _lock(descriptor, fcntl.LOCK_EX)
                tail = _tail(descriptor)
                added = Event(
                    number=_last_number(tail) + 1,
                    event=event,
                    task=task.key if task else "",
                    kind=task.kind if task else "",
                    details=details,
                    wall=round(time.time(), 3),
                    monotonic=round(time.monotonic(), 3),
                    process=os.getpid(),
                    host=platform.node(),
                )
                torn = tail != b"" and not tail.endswith(b"\n")
                _write_whole(descriptor, self.path, (b"\n" if torn else b"") + line_of(added))
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path, 0) from error
            raise
        return added

    def read(self) -> JournalReading:
        """Every whole event; none if nothing was written yet.

        Raises InputError if something else stands in its place.
        """
        self._require_place()
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(self.path))
            except FileNotFoundError:
                return JournalReading((), ())
            _lock(file.fileno(), fcntl.LOCK_SH)
            content = file.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise InputError(
                f"the journal is larger than {LARGEST_JSON // 10**6} MB, as none is",
                where=str(self.path),
                fix="move it away: results do not depend on it",
            )
        return read_lines(content)

    def _require_place(self) -> None:
        """Refuse what is no journal, or has a second name elsewhere."""
        why = why_not_ours(self.path, lambda content: content[:1] in (b"", b"{", b"\n"))
        if why is not None:
            raise InputError(
                f"something else stands in the place of the journal: {why}",
                where=str(self.path),
                fix="move it away, then run the same command again",
            )


def line_of(event: Event) -> bytes:
    """The line that holds an event, its end included."""
    value = asdict(event)
    value[CHECKSUM] = _checksum(value)
    return canonical_json(value).encode() + b"\n"


def read_lines(content: bytes) -> JournalReading:
    """The events of a journal's bytes; a line whose checksum is wrong is skipped and named as a problem."""
    events, damaged = [], []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        event = _event(line)
        if event is None:
            damaged.append(number)
        else:
            events.append(event)
    return JournalReading(tuple(events), (*_damaged(damaged), *_missing(events)))


def _damaged(lines: list[int]) -> Iterator[str]:
    """One sentence for all lines that are not whole, by their numbers."""
    if len(lines) == 1:
        yield f"line {lines[0]} of the journal is torn or damaged, and skipped"
    elif lines:
        shown = ", ".join(map(str, lines[:LINES_NAMED])) + (", ..." if len(lines) > LINES_NAMED else "")
        yield f"{len(lines)} lines of the journal are torn or damaged, and skipped: {shown}"


def _missing(events: list[Event]) -> Iterator[str]:
    """A problem for every gap in the numbers: lines that were there and are gone or unreadable."""
    for before, after in itertools.pairwise(events):
        if after.number > before.number + 1:
            yield f"between events {before.number} and {after.number} of the journal events are missing"


def _checksum(value: Mapping[str, Any]) -> str:
    return sha256_of_text(canonical_json(value))[:CHECKSUM_LENGTH]


def _event(line: bytes) -> Event | None:
    """The event of a line, None if the line is not what was written."""
    try:
        value = parse_json(line)
        checksum = value.pop(CHECKSUM)
        written = canonical_json({**value, CHECKSUM: checksum}).encode()
        return from_json(Event, value) if line == written and checksum == _checksum(value) else None
    except (ValueError, KeyError):
        return None


def _tail(descriptor: int) -> bytes:
    """The end of the file: all of it, or enough to hold a whole event."""
    size = os.fstat(descriptor).st_size
    length = min(size, TAIL_BYTES)
    while True:
        tail = os.pread(descriptor, length, size - length)
        if length == size or _last_number(tail):
            return tail
        length = min(size, 2 * length)


def _last_number(tail: bytes) -> int:
    """The number of the last whole event, 0 if there is none."""
    events = (_event(line) for line in reversed(tail.split(b"\n")) if line)
    return next((event.number for event in events if event is not None), 0)


def _lock(descriptor: int, mode: int) -> None:
    """Take the file's lock; after a while go on without it, since its holder must have been stopped.

    A line is added by one write at the end of the file, so that the worst of it is a number given twice.
    """
    for _ in range(round(PATIENCE_SECONDS / PAUSE_SECONDS)):
        try:
            return fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE_SECONDS)
    return None


def _write_whole(descriptor: int, path: Path, line: bytes) -> None:
    """Write a line at the end of the file and flush it to disk; part of a line means a full disk."""
    written = os.write(descriptor, line)
    if written < len(line):
        raise disk_full(path, written)
    os.fsync(descriptor)


STARTED = "run"
"""The event of a run's journal whose details are a `RunStart`."""


@dataclass(frozen=True)
class RunStart:
    """One start of a run: by which command, with which software, on which machine."""

    NOT_KEPT = ("wall",)

    command: str = ""
    """That repeats it."""
    folder: str | None = None
    """Where it was made, as it was named; None by an older offramp."""
    call: RunCall | None = None
    """What it was asked for; None by an older offramp."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """What makes the run another one, as its own file has it; nothing by an older offramp."""
    software: Mapping[str, Any] = field(default_factory=dict)
    """JSON values by name."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """JSON values by name."""
    wall: float = 0.0
    """Seconds since 1970."""

    @classmethod
    def last(cls, events: Sequence[Event]) -> RunStart:
        """That of a run's last start by its journal; one that says nothing where the journal does not."""
        event = next((event for event in reversed(events) if event.event == STARTED), Event(0, STARTED))
        try:
            return replace(from_json(cls, event.details), wall=event.wall)
        except InvalidRecordError as error:
            say(f"the journal does not say how the run was called: {error}")
            return cls(wall=event.wall)

    def call_in(self, folder: Path) -> RunCall | None:
        """How the run is asked for into the folder where it lies now, maybe moved or copied there."""
        if self.call is None or (self.folder or self.call.options.get("output")) in (None, str(folder)):
            return self.call
        return replace(self.call, options={**self.call.options, "output": str(folder)})

    def command_in(self, folder: Path) -> str:
        """The command that does so; "" if it is not known. Never the text in the journal, which says anything
        in a folder that somebody sent."""
        call = self.call_in(folder)
        return "" if call is None else call.again()


def date_of(wall: float) -> str:
    """Date and time (UTC) of seconds since 1970."""
    return datetime.datetime.fromtimestamp(wall, datetime.UTC).isoformat(timespec="seconds")
