"""Trace into folders in child processes that are killed at chosen moments; prints how each child ended.

`python killed_runs.py FOLDER in-memory|streamed`: runs as a process of its own, since forking a busy test
process is unsafe. Beside the folder NAME of a streamed child is NAME.log: the layers whose weights it asked
for.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_heads import random_heads
from tracing_models import tiny_llama, workload_of

import offramp.tracing.plan as plan
import offramp.tracing.sealed_parts as part
import offramp.tracing.tracer as tracer
from offramp.models.model import Model

LENGTHS = (14, 9, 20, 14, 30, 12, 25, 11)
PART_ROWS = 24
RANDOM_MOMENTS = 5


def trace_into(folder: Path, model: Model | None = None, **options: Any) -> None:
    """The trace whose files are compared: several parts of a tiny model."""
    plan.SMALLEST_PART = PART_ROWS
    work = workload_of(lengths=LENGTHS)
    tracer.trace(model or tiny_llama(), work, tokens=500, context=30, output=folder, **options)


def stream_into(folder: Path) -> None:
    """The same trace, layer by layer."""
    from streamed_runs import streamed

    log = folder.with_name(f"{folder.name}.log")
    log.touch()
    trace_into(folder, streamed(tiny_llama(), log)[0])


def everything() -> dict[str, Any]:
    """Options that add every fact there is."""
    return {"signals": "all", "heads": random_heads(tiny_llama(), [1, 2])}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_replace(number: int, *, after: bool) -> None:
    """Die right before or right after the n-th finished file is put in place."""
    real, seen = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == number and not after:
            kill()
        real(source, target)
        if seen == number:
            kill()

    os.replace = replace  # type: ignore[assignment]


def kill_within_part(number: int) -> None:
    """Die when half of the n-th Parquet file is written."""
    real, seen = part._write, 0

    def write(table: Any, path: Path) -> None:
        nonlocal seen
        seen += 1
        real(table, path)
        if seen == number:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    part._write = write


def run_child(work: Callable[[], None], prepare: Callable[[], None], delay: float | None = None) -> int:
    """Signal that ended a child which does the work; 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        prepare()
        work()
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_in_memory(folder: Path, seconds: float) -> dict[str, int]:
    """Killed around each kind of file, of the first part and of later ones, within files, and at any time."""
    ended: dict[str, int] = {}
    for number in (1, 3, 5, 14):
        for after in (False, True):
            name = f"{'after' if after else 'before'}-{number}"
            prepare = functools.partial(kill_at_replace, number, after=after)
            ended[name] = run_child(functools.partial(trace_into, folder / name), prepare)
    for number in (1, 9):
        name = f"within-{number}"
        prepare = functools.partial(kill_within_part, number)
        ended[name] = run_child(functools.partial(trace_into, folder / name), prepare)
    for number in range(2):
        name = f"delay-{number}"
        work = functools.partial(trace_into, folder / name)
        ended[name] = run_child(work, lambda: None, delay=seconds * (number + 0.5) / 2)
    for number in (2, 9):
        name = f"everything-{number}"
        work = functools.partial(trace_into, folder / name, **everything())
        ended[name] = run_child(work, functools.partial(kill_at_replace, number, after=True))
    name = "everything-within-7"
    work = functools.partial(trace_into, folder / name, **everything())
    ended[name] = run_child(work, lambda: kill_within_part(7))
    return ended


def kill_streamed(folder: Path, seconds: float) -> dict[str, int]:
    """Killed at random moments, and around files that are put in place."""
    ended: dict[str, int] = {}
    moments = random.Random(0)
    for number in range(RANDOM_MOMENTS):
        name = f"delay-{number}"
        work = functools.partial(stream_into, folder / name)
        ended[name] = run_child(work, lambda: None, delay=seconds * moments.random())
    for number, after in ((3, False), (4, True), (6, False), (7, True), (8, True), (10, True), (13, False)):
        name = f"replace-{number}"
        prepare = functools.partial(kill_at_replace, number, after=after)
        ended[name] = run_child(functools.partial(stream_into, folder / name), prepare)
    return ended


def main(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; only a power cut would
    into, kill_all = (stream_into, kill_streamed) if kind == "streamed" else (trace_into, kill_in_memory)
    into(folder / "warm-up")
    started = time.monotonic()
    into(folder / "timed")
    print(json.dumps(kill_all(folder, time.monotonic() - started)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
