"""The folder of a run: whose it is, what an overwritten run leaves, and where its traces lie."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError
from offramp.files import (
    TEMPORARY_PREFIX,
    canonical_json,
    read_sealed_json,
    remove,
    safe_name,
    sha256_of_text,
    write_sealed_json,
)
from offramp.models.devices import CPU
from offramp.report import COMBINED_FILE, REPORT_FILE, TRACES
from offramp.studies.fingerprints import FILE as FINGERPRINTS
from offramp.studies.folder import EXECUTIONS, JOURNAL, PLAN, TASKS, StudyFolder

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
POLICIES = "policies"
COMBINED_PAGE = "combined.html"
"""What `offramp bench --combine -o` that folder adds, beside COMBINED_FILE."""


def default_folder(model_name: str, request: dict[str, Any]) -> Path:
    """Where a run goes if no folder is named: the same request always finds the same one."""
    key = {name: value for name, value in request.items() if (name, value) != ("device", CPU)}
    return Path("runs") / f"{safe_name(model_name)}-{sha256_of_text(canonical_json(key))[:8]}"


def require_writable(folder: Path) -> None:
    """Make sure, without making anything, that a folder can be written or made here.

    Raises InputError if a file stands in the way or the folder may not be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        kind = "a file" if existing.exists() else "a link that leads nowhere"
        what = f"is {kind}, not a folder" if existing == folder else f"lies below {kind}"
        raise InputError(f"the output {what}", where=str(existing), fix="choose another folder with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            "the output folder may not be written"
            if existing == folder
            else "the output folder may not be made here",
            where=str(existing),
            fix="choose another folder with -o, or change its permissions",
        )


def require_only(folder: Path, own: Collection[str], what: str) -> None:
    """Make sure that the folder can be written, and that nothing is in it but what has these names.

    what: said of the folder if something else is in it.

    Raises InputError if not; nothing is written.
    """
    require_writable(folder)
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in entries if name not in own and not name.startswith(TEMPORARY_PREFIX)]
    if others:
        raise InputError(
            f"{what}: {', '.join(others[:3])}", where=str(folder), fix="choose another folder with -o"
        )


def require_own(folder: Path, request: dict[str, Any], *, overwrite: bool) -> None:
    """Make sure that the folder is absent, empty, that of this request, or a run to overwrite.

    request: everything that makes a run another one; its workloads do not.

    Raises InputError if not, DamagedFileError if its request cannot be believed; nothing is written.
    """
    require_writable(folder)
    if not folder.is_dir() or all(_is_passing(entry) for entry in folder.iterdir()):
        return
    if not (folder / RUN_FILE).is_file() and not (overwrite and _is_run_without_request(folder)):
        raise InputError(
            "the output folder holds files that are not a run"
            + (", and --overwrite replaces runs only" if overwrite else ""),
            where=str(folder),
            fix="choose another folder with -o",
        )
    if not overwrite and not _is_of(folder, request):
        raise InputError(
            "the output folder holds another run",
            where=str(folder),
            fix="choose another folder with -o, or give --overwrite to replace it",
        )


def claim(folder: Path, request: dict[str, Any], *, overwrite: bool) -> None:
    """Make the locked folder that of this request; of a run that is overwritten nothing is left, but for what
    `offramp bench --combine` added to the same one.

    Raises what `require_own` raises.
    """
    require_own(folder, request, overwrite=overwrite)
    try:
        same = _is_of(folder, request)
    except DamagedFileError:  # to be overwritten: nothing of it is believed
        same = False
    if same and not overwrite:
        return
    of_study = {PLAN, JOURNAL, TASKS, FINGERPRINTS, "locks", "logs", EXECUTIONS}
    of_run = {REPORT_FILE, SUMMARY_FILE, TRACES, POLICIES}
    of_run |= {path.name for path in folder.glob("heads-*.safetensors")}
    for name in (*of_study, *of_run, *(() if same else (COMBINED_FILE, COMBINED_PAGE))):
        remove(folder / name)
    write_sealed_json(folder / RUN_FILE, request)


def _is_run_without_request(folder: Path) -> bool:
    """Whether the plan in a folder is that of a run, whose file that says what it is of is gone."""
    try:
        return (folder / PLAN).is_file() and StudyFolder(folder).read_plan().is_run
    except DamagedFileError:
        return False


def _is_passing(entry: Path) -> bool:
    """Whether this is the lock or what a killed writer left."""
    return entry.name == ".lock" or entry.name.startswith(TEMPORARY_PREFIX)


def _is_of(folder: Path, request: dict[str, Any]) -> bool:
    path = folder / RUN_FILE
    # A run that was begun before there were devices is one on the processor.
    return path.is_file() and {"device": CPU, **read_sealed_json(path, _damaged)} == json.loads(
        canonical_json({"device": CPU, **request})
    )


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path.name}, which says what the run is of, is damaged: {why}",
        where=str(path),
        fix="give --overwrite to make the run anew, or choose another folder with -o",
    )


def find_traces(folder: Path) -> list[Path]:
    """The folder itself if it is a trace, or the traces of a run's folder, by name.

    A folder that is neither is given back, for `Trace.load` to say what is wrong with it.

    Raises InputError for a run that has none yet.
    """
    if not (folder / RUN_FILE).is_file():
        return [folder]
    found = sorted(path for path in (folder / TRACES).glob("*/*") if path.is_dir())
    if not found:
        raise InputError(
            "no trace of the run is finished yet",
            where=str(folder),
            fix="run the same command again: it goes on where it stopped",
        )
    return found


def find_raw_traces(folder: Path) -> list[Path]:
    """Of a run with exit heads the traces of the same tokens as the model's own head reads them; else none.

    They lie among the tasks of the run's study. Raises DamagedFileError for a plan that was changed.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / PLAN).is_file():
        return []
    from offramp.studies.work.inputs import TRACE  # pydantic comes with it

    study = StudyFolder(folder)
    tasks = study.read_plan().tasks
    keys = {task.needs["raw"] for task in tasks.values() if task.kind == "score" and "raw" in task.needs}
    return [study.task_folder(tasks[key]) / TRACE for key in sorted(keys) if study.is_done(tasks[key])]


def find_trace(folder: Path) -> Path:
    """The one trace that a folder names.

    Raises InputError if it is the folder of a run with several.
    """
    found = find_traces(folder)
    if len(found) > 1:
        raise InputError(
            f"the run has {len(found)} traces",
            where=str(folder),
            fix="give one of them: " + ", ".join(str(path) for path in found),
        )
    return found[0]
