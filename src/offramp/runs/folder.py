"""The folder of a run: whose it is, what an overwritten run leaves, and where its traces lie."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError
from offramp.files import (
    canonical_json,
    locked_folder,
    read_sealed_json,
    require_writable,
    safe_name,
    sha256_of_text,
    sweep_temporary_files,
    write_sealed_json,
)
from offramp.kit.output_folder import UNKNOWN, OutputFolder
from offramp.models.devices import CPU
from offramp.report import POLICIES, REPORT_FILE, TRACES
from offramp.studies.folder import PLAN, StudyFolder
from offramp.studies.manifest import TRACE

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
COMBINED_PAGE = "combined.html"
"""What `offramp bench --combine -o` that folder adds, beside COMBINED_FILE."""


def default_folder(model_name: str, request: dict[str, Any]) -> Path:
    """Where a run goes if no folder is named: the same request always finds the same one."""
    key = {name: value for name, value in request.items() if (name, value) != ("device", CPU)}
    return Path("runs") / f"{safe_name(model_name)}-{sha256_of_text(canonical_json(key))[:8]}"


def require_own(folder: Path, request: dict[str, Any], *, overwrite: bool) -> None:
    """Make sure that the folder is absent, empty, that of this request, or a run to overwrite.

    request: everything that makes a run another one; its workloads do not. A run that is whole and was killed
    while it took another's place counts for that one.

    Raises InputError if not, DamagedFileError if its request cannot be believed; nothing is written.
    """
    require_writable(folder)
    owned = owned_run(folder)
    if not owned.entries():
        return
    place = owned.left_whole or folder
    if not _is_run(owned) or not ((place / RUN_FILE).is_file() or overwrite):
        raise InputError(
            "the output folder holds files that are not a run"
            + (", and --overwrite replaces runs only" if overwrite else ""),
            where=str(folder),
            fix="choose another folder with -o",
        )
    owned.require_free((REPORT_FILE, SUMMARY_FILE, f"{TRACES}/...", f"{POLICIES}/..."))
    if not overwrite and (differing := _differing(place, request)):
        raise InputError(
            f"the output folder holds another run (it differs in: {', '.join(differing)})",
            where=str(folder),
            fix="choose another folder with -o, or give --overwrite to replace it",
        )


@contextlib.contextmanager
def claimed(folder: Path, request: dict[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """The folder to do a run in, locked: that of this request, or, with `overwrite`, one inside it, whose run
    takes the place of the one that is there when the block has ended well.

    Raises what `require_own` raises, InputError if another process writes into the folder.
    """
    with locked_folder(folder):
        require_own(folder, request, overwrite=overwrite)
        sweep_temporary_files(folder)
        owned = owned_run(folder)
        whole = OutputFolder(folder, {**owned.listed(), **StudyFolder(folder).own_files()})
        done = whole.finish_replacing(RUN_FILE) and _is_of(folder, request)
        if overwrite and owned.entries() and not done:
            with whole.replaced(RUN_FILE, goes_on=lambda made: _is_of(made, request)) as made:
                if not (made / RUN_FILE).is_file():
                    write_sealed_json(made / RUN_FILE, request)
                yield made
        else:
            if not (folder / RUN_FILE).is_file():
                with owned.writing(RUN_FILE):
                    write_sealed_json(folder / RUN_FILE, request)
            yield folder
        owned.unlist(*StudyFolder(folder).own_files())


def owned_run(folder: Path) -> OutputFolder:
    """The folder of a run: what it leaves for people and machines, beside what its study does."""
    owned = OutputFolder(folder)
    if not _is_run(owned):
        return owned
    names = [RUN_FILE, REPORT_FILE, SUMMARY_FILE]  # also of an older offramp, which kept no record
    names += [path.relative_to(folder).as_posix() for path in (folder / POLICIES).glob("*.json")]
    return OutputFolder(folder, dict.fromkeys(names, UNKNOWN))


def _is_run(owned: OutputFolder) -> bool:
    """Whether a folder is that of a run; one of its files may be gone or damaged."""
    if RUN_FILE in owned.listed():
        return True
    path = owned.path
    try:
        if (path / PLAN).is_file() and StudyFolder(path).read_plan().is_run:
            return True
        return (path / RUN_FILE).is_file() and bool(read_sealed_json(path / RUN_FILE, _damaged))
    except DamagedFileError:
        return False


def _is_of(folder: Path, request: dict[str, Any]) -> bool:
    return (folder / RUN_FILE).is_file() and not _differing(folder, request)


def _differing(folder: Path, request: dict[str, Any]) -> list[str]:
    """The entries in which a run's request is another one."""
    # A run that was begun before there were devices is one on the processor.
    there = {"device": CPU, **read_sealed_json(folder / RUN_FILE, _damaged)}
    here = json.loads(canonical_json({"device": CPU, **request}))
    return [name for name in {**here, **there} if here.get(name) != there.get(name)]


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
    from offramp.tracing.manifest import MANIFEST, REQUEST  # pyarrow takes a while

    places = (folder / TRACES).glob("*/*")
    found = sorted(path for path in places if (path / MANIFEST).is_file() or (path / REQUEST).is_file())
    if not found:
        from offramp.report.run_start import command_of

        raise InputError(
            "no trace of the run is finished yet",
            where=str(folder),
            fix="give its command again, which goes on where it stopped: "
            + (command_of(StudyFolder(folder)) or "offramp run"),
        )
    return found


def find_raw_traces(folder: Path) -> list[Path]:
    """Of a run with exit heads the traces of the same tokens as the model's own head reads them; else none.

    They lie among the tasks of the run's study. Raises DamagedFileError for a plan that was changed.
    """
    if not (folder / RUN_FILE).is_file() or not (folder / PLAN).is_file():
        return []

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
