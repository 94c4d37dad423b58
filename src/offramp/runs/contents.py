"""What lies in a run's folder for the commands that are given the folder, or a trace or policy out of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.files import safe_name
from offramp.kit.defaults import LOCAL
from offramp.report import POLICIES
from offramp.runs.folder import RUN_FILE, find_trace, find_traces
from offramp.studies.folder import PLAN

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.costs.timings import TimingsProfile
    from offramp.report.run_reading import RunReader
    from offramp.studies.task import Task


@dataclass(frozen=True)
class RunContents:
    """What a run holds of one of its texts.

    heads: the file of the exit heads that the text was traced with, None without any. timings: of this
    machine, None where the run has none that are fit to decide. executions: where documents that were decoded
    for certificates lie, and new_tokens: of each, at most; None where nothing was to be decoded.
    """

    run: Path
    workload: str
    trace: Path
    heads: Path | None = None
    timings: TimingsProfile | None = None
    executions: Path | None = None
    new_tokens: int | None = None


def contents_at(path: Path | None) -> RunContents | None:
    """What the run holds of the text that a trace or a policy in its folder is of.

    path: of the trace's folder, or of the policy's file. None for one that lies in no run's folder.

    Raises DamagedFileError for a run's plan or timings that were changed.
    """
    if path is None:
        return None
    place = path.resolve()
    run = next((folder for folder in place.parents if (folder / RUN_FILE).is_file()), None)
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
    found = find_traces(folder)
    if len(found) == 1:
        return found[0]
    text = None if policy is None else text_of(policy)
    own = (place for place in found if text is not None and _is_trace_of(place, text))
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


def _is_trace_of(place: Path, text: str) -> bool:
    contents = contents_at(place)
    return contents is not None and contents.workload == text
