"""Trace layer by layer into folders in child processes that are killed; prints how each child ended.

`python killed_streams.py FOLDER`: runs as a process of its own, since forking a busy test process is unsafe.
Beside each child's folder NAME is NAME.log: the layers whose weights it asked for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from killed_runs import LENGTHS, PART_ROWS, kill_at_replace
from streamed_runs import streamed
from tracing_models import tiny_llama, workload_of

import offramp.tracing.plan as plan
import offramp.tracing.tracer as tracer

MOMENTS = 10

CODE = "stands for the code's fingerprint, so that an edit while the tests run does no harm"


def trace_into(folder: Path) -> None:
    """The trace of `killed_runs`, layer by layer."""
    plan.SMALLEST_PART = PART_ROWS
    log = folder.with_name(f"{folder.name}.log")
    log.touch()
    model, _ = streamed(tiny_llama(), log)
    tracer.trace(model, workload_of(lengths=LENGTHS), tokens=500, context=30, output=folder)


def run_child(folder: Path, prepare: Callable[[], None], delay: float | None = None) -> int:
    """Signal that ended a child which traces into the folder; 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        prepare()
        trace_into(folder)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tracer.code_fingerprint = lambda: CODE
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; only a power cut would
    trace_into(folder / "warm-up")
    started = time.monotonic()
    trace_into(folder / "timed")
    whole = time.monotonic() - started
    ended: dict[str, int] = {}
    moments = random.Random(0)
    for number in range(MOMENTS):
        name = f"delay-{number}"
        ended[name] = run_child(folder / name, lambda: None, delay=whole * moments.random())
    for number, after in ((3, False), (4, True), (6, False), (7, True), (8, True)):
        name = f"replace-{number}"
        ended[name] = run_child(folder / name, lambda n=number, a=after: kill_at_replace(n, after=a))
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
