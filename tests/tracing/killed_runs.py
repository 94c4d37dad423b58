"""Trace into folders in child processes that are killed at chosen moments; prints how each child ended.

`python killed_runs.py FOLDER`: runs as a process of its own, since forking a busy test process is unsafe.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_heads import random_heads
from tracing_models import tiny_llama, workload_of

import offramp.tracing.part as part
import offramp.tracing.plan as plan
from offramp.tracing.tracer import trace

LENGTHS = (14, 9, 20, 14, 30, 12, 25, 11)
PART_ROWS = 24


def trace_into(folder: Path, **options: Any) -> None:
    """The trace whose files are compared: several parts of a tiny model."""
    plan.SMALLEST_PART = PART_ROWS
    trace(tiny_llama(), workload_of(lengths=LENGTHS), tokens=500, context=30, output=folder, **options)


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


def run_child(folder: Path, prepare: Callable[[], None], delay: float | None = None, **options: Any) -> int:
    """Signal that ended a child which traces into the folder; 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        prepare()
        trace_into(folder, **options)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    trace_into(folder / "warm-up")
    started = time.monotonic()
    trace_into(folder / "timed")
    whole = time.monotonic() - started
    ended: dict[str, int] = {}
    for number in range(1, 15):
        for after in (False, True):
            name = f"{'after' if after else 'before'}-{number}"
            ended[name] = run_child(folder / name, lambda n=number, a=after: kill_at_replace(n, after=a))
    for number in (1, 5, 9):
        name = f"within-{number}"
        ended[name] = run_child(folder / name, lambda n=number: kill_within_part(n))
    for number in range(6):
        name = f"delay-{number}"
        ended[name] = run_child(folder / name, lambda: None, delay=whole * (number + 0.5) / 6)
    for number in (2, 5, 9, 14):
        name = f"everything-{number}"
        prepare = functools.partial(kill_at_replace, number, after=True)
        ended[name] = run_child(folder / name, prepare, **everything())
    name = "everything-within-7"
    ended[name] = run_child(folder / name, lambda: kill_within_part(7), **everything())
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
