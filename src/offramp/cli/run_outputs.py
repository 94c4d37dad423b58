"""What a run leaves in its folder for people and machines, made from what its study has done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.cli.run_folder import POLICIES, SUMMARY_FILE
from offramp.files import TEMPORARY_PREFIX, remove, safe_name, sealed, write_json_atomically
from offramp.policies.grammar import parse_policy, write_policy
from offramp.report import TRACES
from offramp.report.page import write_report
from offramp.report.run_reading import RunReader
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise
from offramp.studies.task import Task
from offramp.studies.work.inputs import TRACE
from offramp.tracing.manifest import MANIFEST
from offramp.tuning.tuned import write_tuned


@dataclass(frozen=True)
class FinishedRun:
    """A run's result and where its page and summary lie."""

    result: RunResult
    report: Path
    summary: dict[str, Any]


def write_outputs(reader: RunReader) -> FinishedRun:
    """Page, summary and policies; traces and exit heads under names that say what they are of."""
    path, result = reader.folder.path, reader.result()
    heads = {}
    for workload, task in reader.tasks("trace"):
        if reader.folder.is_done(task):
            show_trace(reader, workload, task)
    shown = {path / reader.trace_place(workload) for workload, _ in reader.tasks("trace")}
    for other in set((path / TRACES).glob("*/*")) - shown:
        remove(other)  # of a text that the run is not of any more; its task's files stay
    for workload, task in reader.tasks("heads"):
        if reader.folder.is_done(task):
            heads[workload] = path / f"heads-{safe_name(workload)}.safetensors"
            _link(heads[workload], reader.heads_path(task))
    _write_policies(result, heads, path / POLICIES)
    report = write_report(result, path)
    summary = sealed(summarise(result))
    write_json_atomically(path / SUMMARY_FILE, summary)
    return FinishedRun(result, report, summary)


def show_trace(reader: RunReader, workload: str, task: Task) -> None:
    """Make the trace of a workload found in `traces/`."""
    traces = reader.folder.path / TRACES
    if os.path.lexists(traces) and not traces.is_dir():
        traces.unlink()
    mirror(reader.folder.path / reader.trace_place(workload), reader.folder.task_folder(task) / TRACE)


def _write_policies(result: RunResult, heads: Mapping[str, Path], folder: Path) -> None:
    """The policy of every verdict, and the tuner's answer with its certificate, one file each.

    heads: that a workload was traced through, by its name.
    """
    folder.mkdir(exist_ok=True)
    for row in result.workloads:
        name, fitted = safe_name(row.name), heads.get(row.name)
        for verdict in row.verdicts:
            write_policy(parse_policy(verdict.policy), folder / f"{name}-agreement-{verdict.floor:g}.json")
        for tuned in row.tuned:
            write_tuned(folder / f"{name}-tuned-{tuned.floor.value:g}.json", tuned, fitted)


def mirror(place: Path, source: Path) -> None:
    """Make a finished folder's files found under another name too."""
    if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    files = {path.name: path for path in source.iterdir() if path.is_file() and path.name != ".lock"}
    for path in place.iterdir():
        if path.name not in files:
            remove(path)
    for name in sorted(files, key=lambda name: (name == MANIFEST, name)):
        _link(place / name, files[name])


def _link(place: Path, file: Path) -> None:
    """Make a file found under another name too: a second copy only where there are no links."""
    if place.is_file() and place.samefile(file):
        return
    temporary = place.parent / f"{TEMPORARY_PREFIX}{place.name}"
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, temporary)
    temporary.replace(place)
