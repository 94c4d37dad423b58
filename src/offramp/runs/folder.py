"""The folder of a run: whose it is, what an overwritten run leaves, and what in it commands find."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.defaults import LOCAL
from offramp.errors import DamagedFileError, InputError, OfframpError
from offramp.files import canonical_json, safe_name, sha256_of_text
from offramp.kit.output_folder import UNKNOWN, OutputFolder, OwnFiles
from offramp.kit.sealed_file import SealedFile
from offramp.models.devices import CPU
from offramp.report import POLICIES, REPORT_FILE, TRACES
from offramp.studies.folder import JOURNAL, PLAN, StudyFolder
from offramp.studies.journal import RunStart
from offramp.studies.task import TRACE

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.costs.timings import TimingsProfile
    from offramp.report.run_reading import RunReader
    from offramp.studies.task import Task


RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"


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
        if (folder / PLAN).is_file() and StudyFolder(folder).read_plan().is_run:
            return True
    with contextlib.suppress(FileNotFoundError, DamagedFileError):
        return bool(REQUEST.read(folder / RUN_FILE))
    return False


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run: its request lies there, or its journal says that it was started."""
    begun = (folder / JOURNAL).is_file()
    return (folder / RUN_FILE).is_file() or (begun and bool(_request_in_journal(folder)))


def _request_in_journal(folder: Path) -> Mapping[str, Any] | None:
    """What the run is of by its last start; None where no journal says so."""
    return RunStart.last(StudyFolder(folder).journal.read().events).request or None


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
    elsewhere=_request_in_journal,
    mends=True,
    assumed={"device": CPU},
    writes=(REPORT_FILE, SUMMARY_FILE, f"{TRACES}/...", f"{POLICIES}/..."),
)


def mended_by(path: Path, *, changed: bool = True) -> str | None:
    """The command that makes a file of a run's folder again which is gone or not as it was written, or such
    files of a folder in it; None of any other, and where no command is known.

    changed: whether one that is there counts.
    """
    conditions = ("absent", "changed") if changed else ("absent",)
    place = path.absolute()
    with contextlib.suppress(OfframpError, OSError):  # nothing is wrong but what was said already
        run = next((folder for folder in place.parents if _is_run(folder)), None)
        if run is None:
            return None
        owned, below = RUN_FOLDER.files(run), place.relative_to(run).as_posix()
        names = [name for name in owned.listed() if name == below or name.startswith(f"{below}/")]
        command = RunStart.last(StudyFolder(run).journal.read().events).command_in(run)
        if command and any(owned.condition(name) in conditions for name in names):
            return command
    return None


def find_traces(folder: Path) -> list[Path]:
    """The folder itself if it is a trace, or the traces of a run's folder, by name.

    A folder that is neither is given back, for `Trace.load` to say what is wrong with it.

    Raises InputError for a run that has none yet.
    """
    if not is_run_folder(folder):
        return [folder]
    from offramp.tracing.manifest import MANIFEST, REQUEST  # pyarrow takes a while

    places = (folder / TRACES).glob("*/*")
    traces = sorted(path for path in places if (path / MANIFEST).is_file() or (path / REQUEST).is_file())
    if not traces:
        raise InputError(
            "no trace of the run is finished yet",
            where=str(folder),
            fix=f"give its command again, which goes on where it stopped: {StudyFolder(folder).command()}",
        )
    return traces


def find_raw_traces(folder: Path) -> list[Path]:
    """Of a run with exit heads the traces of the same tokens as the model's own head reads them; else none.

    They lie among the tasks of the run's study. Raises DamagedFileError for a plan that was changed.
    """
    if not is_run_folder(folder) or not (folder / PLAN).is_file():
        return []
    study = StudyFolder(folder)
    tasks = study.read_plan().tasks
    keys = {task.needs["raw"] for task in tasks.values() if task.kind == "score" and "raw" in task.needs}
    return [study.task_folder(tasks[key]) / TRACE for key in sorted(keys) if study.is_done(tasks[key])]


def find_trace(folder: Path) -> Path:
    """The one trace that a folder names.

    Raises InputError if it is the folder of a run with several.
    """
    traces = find_traces(folder)
    if len(traces) > 1:
        raise InputError(
            f"the run has {len(traces)} traces",
            where=str(folder),
            fix="give one of them: " + ", ".join(str(path) for path in traces),
        )
    return traces[0]


@dataclass(frozen=True)
class RunContents:
    """What a run holds of one of its texts."""

    run: Path
    workload: str
    trace: Path
    heads: Path | None = None
    """The file of the exit heads that the text was traced with, None without any."""
    timings: TimingsProfile | None = None
    """Of this machine, None where the run has none that are fit to decide."""
    executions: Path | None = None
    """Where documents that were decoded for certificates lie, None where nothing was to be decoded."""
    new_tokens: int | None = None
    """Of each of these, at most."""


def contents_at(path: Path | None) -> RunContents | None:
    """What the run holds of the text that a trace or a policy in its folder is of.

    path: of the trace's folder, or of the policy's file. None for one that lies in no run's folder.

    Raises DamagedFileError for a run's plan or timings that were changed.
    """
    if path is None:
        return None
    place = path.resolve()
    run = next(filter(is_run_folder, place.parents), None)
    if run is None or not (run / PLAN).is_file():
        return None
    from offramp.report.run_reading import RunReader  # pydantic comes with it

    reader = RunReader(run)
    for workload, task in reader.tasks("trace"):
        if place in (run / reader.trace_place(workload), reader.folder.task_folder(task) / "trace"):
            return _contents(reader, workload, place)
        if place.parent == run / POLICIES and _is_policy_of(workload, place):
            return _contents(reader, workload, run / reader.trace_place(workload))
    return None


def _is_policy_of(workload: str, path: Path) -> bool:
    """Whether a run gives this name to a policy of a text."""
    name = rf"{re.escape(safe_name(workload))}-(agreement|tuned)-[\d.e-]+\.json"
    return bool(re.fullmatch(name, path.name))


def _contents(reader: RunReader, workload: str, trace: Path) -> RunContents:
    from offramp.studies.work.certify import CertifyWork

    folder = reader.folder

    def done(kind: str) -> Task | None:
        tasks = (task for name, task in reader.tasks(kind) if name == workload)
        return next((task for task in tasks if folder.is_done(task)), None)

    heads, certify = done("heads"), done("certify")
    certified = None if certify is None else CertifyWork.of(certify)
    shown = folder.path / f"heads-{safe_name(workload)}.safetensors"
    return RunContents(
        run=folder.path,
        workload=workload,
        trace=trace,
        heads=None if heads is None else shown if shown.is_file() else reader.heads_path(heads),
        timings=reader.timings(),
        executions=None if certified is None else folder.executions / certified.same_text,
        new_tokens=None if certified is None else certified.new_tokens,
    )


def heads_of(policy: str) -> Path | None:
    """The exit heads that a run's text was traced with, of the file of a policy in its folder; else None."""
    contents = contents_of(policy)
    return None if contents is None else contents.heads


def contents_of(policy: str) -> RunContents | None:
    """What the run holds whose file a policy is; None of a text, and of a file that lies elsewhere."""
    return contents_at(Path(policy)) if policy.endswith(".json") else None


def machine_near(contents: RunContents | None, hardware: Any) -> Machine | Any:
    """A machine as it is asked for; "local", near a run's trace, is what the run timed of it."""
    return contents.timings if hardware == LOCAL and contents and contents.timings else hardware


def trace_for(folder: Path, policy: str | None) -> Path:
    """The one trace that a folder names; of a run with several that of the text which the policy is of.

    Raises InputError if it is the folder of a run with several, and the policy of none of their texts.
    """
    traces = find_traces(folder)
    if len(traces) == 1:
        return traces[0]
    text = None if policy is None else text_of(policy)
    near = ((place, contents_at(place)) for place in traces) if text is not None else ()
    own = (place for place, contents in near if contents is not None and contents.workload == text)
    return next(own, None) or find_trace(folder)


def text_of(policy: str) -> str | None:
    """The name of the text that the file of a policy is of, None of any other policy."""
    if not policy.endswith(".json"):
        return None
    from offramp.tuning.tuned import is_tuned_file, read_tuned

    contents = contents_of(policy)
    if contents is not None:
        return contents.workload
    return read_tuned(policy).workload.get("name") if is_tuned_file(Path(policy)) else None
