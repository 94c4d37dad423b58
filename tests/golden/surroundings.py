"""The command line in this process, in a world in which only the code can change what it says.

What is replaced here belongs to Python and the operating system wherever that is possible, so that moving
code moves nothing here. `OWN` lists the few names of offramp that are replaced.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from command_line import Here
from golden.clock import clocked

WIDTH = 160
CORES = 2
MEMORY = 8 << 30
HOST = "somewhere"
OWN = {"offramp.studies.engines.registry.ENGINES": {"local": Here()}}
"""Replaced in offramp: the engine of studies, so that their tasks run in this process, by this clock."""


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


def offramp(*words: object) -> Said:
    """Run one command line."""
    from offramp.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["offramp", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of libraries, which warn once in a process
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Said(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """Work in a folder, with a cache of its own, one thread, and a machine and a clock that are made up."""
    import psutil
    import torch
    import typer

    variables = {
        "OFFRAMP_CACHE": str(folder / "cache"),
        "HOME": str(folder),
        "COLUMNS": str(WIDTH),
        "TERM": "dumb",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    memory = SimpleNamespace(available=MEMORY, total=MEMORY, free=MEMORY, percent=0.0)
    times = psutil.cpu_times()
    disk = SimpleNamespace(total=1 << 40, used=0, free=1 << 40)
    replaced: dict[tuple[Any, str], Any] = {
        (os, "cpu_count"): lambda: CORES,
        (os, "sched_getaffinity"): lambda _: set(range(CORES)),
        (os, "getloadavg"): lambda: (0.0, 0.0, 0.0),
        (platform, "node"): lambda: HOST,
        (platform, "python_version"): lambda: "3",
        (psutil, "virtual_memory"): lambda: memory,
        (psutil, "cpu_times"): lambda *_: times,
        # It reads every signature again for each command line, which takes longer than most refusals.
        (typer.main, "get_command"): functools.cache(typer.main.get_command),
        (shutil, "disk_usage"): lambda _: disk,
    }
    threads, before = torch.get_num_threads(), Path.cwd()
    torch.set_num_threads(1)
    os.chdir(folder)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, variables))
            for (module, name), fake in replaced.items():
                stack.enter_context(mock.patch.object(module, name, fake))
            for name, values in OWN.items():
                stack.enter_context(mock.patch.dict(name, values))
            stack.enter_context(clocked())
            yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
