"""The journal of a study: whatever happens to its file, whole events stay and others are named."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folder_cases import task_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.errors import DiskFullError, InputError
from offramp.studies.journal import TAIL_BYTES, Event, Journal, line_of, read_lines

DETAILS = st.dictionaries(
    st.sampled_from(["what", "folder", "problems"]),
    st.text(max_size=12) | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.text(max_size=3)),
)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["started", "finished", "failed"]), DETAILS), min_size=1, max_size=6
)

WRITER = """
import sys
from pathlib import Path
from offramp.studies.journal import Journal
for number in range(25):
    Journal(Path(sys.argv[1])).append("noted", count=number)
"""


def lines_of(events: list[tuple[str, dict[str, Any]]]) -> list[bytes]:
    return [
        line_of(Event(number, event, details=details))
        for number, (event, details) in enumerate(events, start=1)
    ]


def test_events_come_back_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    journal, task = Journal(tmp_path / "journal.jsonl"), task_of("score")
    assert journal.read().events == ()
    added = [journal.append("started", task), journal.append("finished", task, seconds=2.5)]
    added.append(journal.append("stopped", what="Ctrl-C – \n and a line's end"))
    reading = journal.read()
    assert list(reading.events) == added
    assert reading.problems == ()
    assert [event.number for event in added] == [1, 2, 3]
    assert (added[1].task, added[1].kind, added[1].details) == (task.key, "score", {"seconds": 2.5})
    assert (added[2].task, added[2].kind) == ("", "")
    assert added[0].process == os.getpid()
    assert 0 <= added[1].monotonic - added[0].monotonic < 60
    assert abs(added[0].wall - time.time()) < 60


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(EVENTS, st.data())
def test_a_journal_cut_anywhere_loses_its_last_event_at_most_and_goes_on(
    tmp_path: Path, events: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    lines = lines_of(events)
    before = len(b"".join(lines[:-1]))
    cut = data.draw(st.integers(before, before + len(lines[-1])))
    whole = read_lines(b"".join(lines)).events
    assert len(whole) == len(lines)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(lines)[:cut])
    kept = Journal(path).read()
    # The last line's end may be cut off: its event is whole without it.
    complete = cut >= before + len(lines[-1]) - 1
    assert kept.events == (whole if complete else whole[:-1])
    torn = not complete and cut > before
    assert len(kept.problems) == torn

    added = Journal(path).append("resumed")
    after = Journal(path).read()
    assert after.events == (*kept.events, added)
    assert added.number == len(kept.events) + 1
    assert after.problems == kept.problems
    assert path.read_bytes().startswith(b"".join(lines)[:cut])


@settings(deadline=None)
@given(EVENTS, st.data())
def test_a_changed_byte_is_named_and_costs_the_lines_that_it_touches(
    events: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    content = bytearray(b"".join(lines_of(events)))
    whole = read_lines(bytes(content)).events
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    reading = read_lines(bytes(content))
    lost = [event for event in whole if event not in reading.events]
    assert all(event in whole for event in reading.events)
    assert 1 <= len(lost) <= 2
    assert reading.problems


def test_lines_that_were_taken_out_are_missed() -> None:
    lines = lines_of([("started", {}), ("finished", {}), ("started", {})])
    assert read_lines(lines[0] + lines[2]).problems == (
        "between events 1 and 3 of the journal events are missing",
    )


def test_processes_write_one_journal_without_losing_or_repeating_a_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(5)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 5
    reading = Journal(path).read()
    assert reading.problems == ()
    assert [event.number for event in reading.events] == list(range(1, 126))
    for writer in writers:
        counts = [event.details["count"] for event in reading.events if event.process == writer.pid]
        assert counts == list(range(25))


@pytest.mark.parametrize("size", [TAIL_BYTES - 400, 3 * TAIL_BYTES])
def test_numbers_go_on_after_an_event_longer_than_what_is_read_at_first(tmp_path: Path, size: int) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("started")
    journal.append("failed", what="x" * size)
    with journal.path.open("ab") as file:
        file.write(b"torn" * (size // 4))
    assert journal.append("started").number == 3
    assert [event.number for event in journal.read().events] == [1, 2, 3]


@pytest.mark.parametrize("part", [0, 1, 30])
def test_a_full_disk_is_told_and_leaves_a_journal_that_goes_on(
    tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("started")
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if part == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:part])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFullError, match=f"the disk is full: {part} bytes of journal.jsonl") as caught:
            journal.append("finished")
    assert caught.value.exit_code == 1
    journal.append("started")
    reading = journal.read()
    assert [(event.number, event.event) for event in reading.events] == [(1, "started"), (2, "started")]
    assert len(reading.problems) == (part > 0)


def test_who_is_stopped_with_the_journal_in_hand_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.studies.journal.PATIENCE_SECONDS", 0.05)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("started")
    with (tmp_path / "journal.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [event.event for event in journal.read().events] == ["started"]
        journal.append("finished")
    reading = journal.read()
    assert [event.number for event in reading.events] == [1, 2]
    assert reading.problems == ()


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
def test_what_stands_in_its_place_is_refused_and_never_waited_for(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / "journal.jsonl")
    journal = Journal(tmp_path / "journal.jsonl")
    for attempt in (journal.read, lambda: journal.append("started")):
        with pytest.raises(InputError, match="in the place of the journal"):
            attempt()


def test_a_journal_that_nobody_could_have_written_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"{")
    os.truncate(path, 3_000_000_000)  # a sparse file takes no room
    with pytest.raises(InputError, match="larger than 250 MB"):
        Journal(path).read()


@pytest.mark.parametrize(
    "line",
    ['{"a":' * 100_000, '{"check": NaN}', '{"check": "\\ud800"}', "[]", '{"check": ' + "9" * 5000 + "}"],
    ids=["deep", "nan", "surrogate", "list", "huge"],
)
def test_lines_that_are_no_events_are_named_once_and_the_rest_is_read(line: str) -> None:
    first, last = lines_of([("started", {}), ("finished", {})])
    reading = read_lines(first + f"{line}\n".encode() + last)
    assert [event.event for event in reading.events] == ["started", "finished"]
    assert reading.problems == ("line 2 of the journal is torn or damaged, and skipped",)
    many = read_lines(first + f"{line}\n".encode() * 9 + last)
    assert many.problems == ("9 lines of the journal are torn or damaged, and skipped: 2, 3, 4, 5, 6, ...",)


@pytest.mark.parametrize(
    "change", [{"wall": 1e20}, {"wall": -1.0}, {"details": {"seconds": "3"}}, {"number": True}]
)
def test_an_event_that_no_clock_saw_is_passed_over(change: dict[str, Any]) -> None:
    event = Event(**{"number": 1, "event": "finished", **change})
    found = read_lines(line_of(event) + line_of(Event(2, "started")))
    assert [one.number for one in found.events] == [2]
    assert len(found.problems) == 1
