"""The folder of a run: whose it is, what an overwritten run leaves, and where its traces lie."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, safe_name, sha256_of_text
from offramp.kit.output_folder import UNKNOWN, OutputFolder, OwnFiles
from offramp.kit.sealed_file import SealedFile
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


def _own(folder: Path) -> dict[str, str | None] | None:
    """What a run leaves for people and machines, also one of an older offramp, and what its study does."""
    if not _is_run(folder):
        return None
    names = [RUN_FILE, REPORT_FILE, SUMMARY_FILE]
    names += [path.relative_to(folder).as_posix() for path in (folder / POLICIES).glob("*.json")]
    return {**dict.fromkeys(names, UNKNOWN), **StudyFolder(folder).own_files()}


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a run; one of its files may be gone or damaged."""
    if RUN_FILE in OwnFiles(folder).listed():
        return True
    with contextlib.suppress(InputError, DamagedFileError):
        if StudyFolder(folder).read_plan().is_run:
            return True
    with contextlib.suppress(FileNotFoundError, DamagedFileError):
        return bool(REQUEST.read(folder / RUN_FILE))
    return False


REQUEST = SealedFile(
    dict[str, Any],
    what="{name}, which says what the run is of, is damaged",
    fix="give --overwrite to make the run anew, or choose another folder with -o",
)
"""Everything that makes a run another one; its workloads do not."""

RUN_FOLDER = OutputFolder(
    what="a run",
    own=_own,
    done=RUN_FILE,
    request=REQUEST,
    request_name=RUN_FILE,
    assumed={"device": CPU},
    writes=(REPORT_FILE, SUMMARY_FILE, f"{TRACES}/...", f"{POLICIES}/..."),
)


def find_traces(folder: Path) -> list[Path]:
    """The folder itself if it is a trace, or the traces of a run's folder, by name.

    A folder that is neither is given back, for `Trace.load` to say what is wrong with it.

    Raises InputError for a run that has none yet.
    """
    if not (folder / RUN_FILE).is_file():
        return [folder]
    from offramp.tracing.trace_files import MANIFEST, REQUEST  # pyarrow takes a while

    places = (folder / TRACES).glob("*/*")
    found = sorted(path for path in places if (path / MANIFEST).is_file() or (path / REQUEST).is_file())
    if not found:
        raise InputError(
            "no trace of the run is finished yet",
            where=str(folder),
            fix=f"give its command again, which goes on where it stopped: {StudyFolder(folder).command()}",
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
