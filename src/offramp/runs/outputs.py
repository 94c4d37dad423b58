"""What a run leaves in its folder for people and machines, made from what its study has done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from offramp.commands import number_text
from offramp.errors import DamagedFileError, InputError
from offramp.files import safe_name, sealed, sha256_of_file, write_atomically, write_json_atomically
from offramp.kit.output_folder import RECORD_FILE, OwnFiles
from offramp.policies.grammar import write_policy
from offramp.report import POLICIES, REPORT_FILE, TRACES
from offramp.report.page import write_report
from offramp.report.run_findings import Findings, policy_file
from offramp.report.run_reading import RunReader
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise
from offramp.runs.folder import RUN_FOLDER, SUMMARY_FILE
from offramp.studies.folder import StudyFolder
from offramp.studies.task import TRACE, Task
from offramp.tracing.manifest import MANIFEST
from offramp.tuning.tuned import write_tuned


def write_outputs(reader: RunReader) -> Findings:
    """Page, summary and policies; traces and exit heads under names that say what they are of.

    Raises InputError where something that offramp did not write stands in the place of one.
    """
    path, result = reader.folder.path, reader.result()
    owned, heads = RUN_FOLDER.files(path), {}
    for workload, task in reader.tasks("trace"):
        if reader.folder.is_done(task):
            show_trace(reader, workload, task)
    shown = {reader.trace_place(workload).as_posix() for workload, _ in reader.tasks("trace")}
    others = [name for name in owned.listed() if name.startswith(f"{TRACES}/")]
    # Of texts that the run is not of any more; their tasks' files stay.
    owned.remove(*(name for name in others if name.rpartition("/")[0] not in shown))
    for workload, task in reader.tasks("heads"):
        if reader.folder.is_done(task):
            heads[workload] = path / f"heads-{safe_name(workload)}.safetensors"
            _copy(owned, {heads[workload].name: reader.heads_path(task)})
    policies = _policies(result, heads, path / POLICIES)
    owned.require_free((REPORT_FILE, SUMMARY_FILE, *policies))
    before = [name for name in owned.listed() if name.startswith(f"{POLICIES}/")]
    owned.remove(*(name for name in before if name not in policies))
    (path / POLICIES).mkdir(exist_ok=True)
    with owned.writing(REPORT_FILE, SUMMARY_FILE, *policies):
        for write in policies.values():
            write()
        report = write_report(result, path)
        summary = sealed(summarise(result))
        write_json_atomically(path / SUMMARY_FILE, summary)
    return Findings(result, path, report, summary)


def show_trace(reader: RunReader, workload: str, task: Task) -> None:
    """Make the trace of a workload found in `traces/`."""
    place, source = reader.trace_place(workload), reader.folder.task_folder(task) / TRACE
    mirror(RUN_FOLDER.files(reader.folder.path), place.as_posix(), source)


def _policies(result: RunResult, heads: Mapping[str, Path], folder: Path) -> dict[str, Callable[[], object]]:
    """What writes the policy of every verdict, and the tuner's answer with its certificate, by their files.

    heads: that a workload was traced through, by its name.
    """
    writers: dict[str, Callable[[], object]] = {}
    for row in result.workloads:
        name, fitted = safe_name(row.name), heads.get(row.name)
        for verdict in row.verdicts:
            file = f"{name}-agreement-{number_text(verdict.floor)}.json"
            writers[file] = partial(write_policy, verdict.policy, folder / file)
        for tuned in row.tuned:
            file = policy_file(row.name, tuned.floor.value)
            writers[file] = partial(write_tuned, folder / file, tuned, fitted)
    return {f"{folder.name}/{file}": write for file, write in writers.items()}


def mirror(owned: OwnFiles, place: str, source: Path) -> None:
    """Make a finished folder's files found elsewhere in a folder of ours too, as copies that may be edited.

    Raises InputError where something that offramp did not write stands in the place of one.
    """
    files = {f"{place}/{path.name}": path for path in source.iterdir() if path.is_file()}
    for name in (".lock", RECORD_FILE):
        files.pop(f"{place}/{name}", None)
    before = [name for name in owned.listed() if name.rpartition("/")[0] == place]
    owned.remove(*(name for name in before if name not in files))
    _copy(owned, files)


def _copy(owned: OwnFiles, files: Mapping[str, Path]) -> None:
    """Copy files to places in a folder, by path there, unless the copies are there; a manifest last."""
    missing, same = {}, []
    for name, file in files.items():
        copy = owned.path / name
        if copy.is_file() and not copy.is_symlink() and copy.samefile(file):
            copy.unlink()  # an older offramp linked it: an edit would change both
        if copy.is_file() and not copy.is_symlink() and sha256_of_file(copy) == sha256_of_file(file):
            same.append(name)
        else:
            missing[name] = file
    listed = owned.listed()
    owned.adopt(*(name for name in same if name not in listed))
    if not missing:
        return
    with owned.writing(*missing):
        for name in sorted(missing, key=lambda name: (name.endswith(f"/{MANIFEST}"), name)):
            (owned.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(owned.path / name, partial(shutil.copyfile, missing[name]))


def require_done(folder: StudyFolder) -> None:
    """Refuse a run of which tasks are to do or damaged: its page would show less than its last one.

    What could not be decoded is no part of it. Raises DamagedFileError where something is damaged, else
    InputError, with what is missing.
    """
    plan = folder.read_plan()
    undone = {task.kind: folder.condition(task) for task in plan.tasks.values() if not folder.is_done(task)}
    missing = [f"{kind} ({state})" for kind, state in undone.items() if state != "failed"]
    if missing:
        refused = DamagedFileError if "damaged" in undone.values() else InputError
        raise refused(
            f"the run is not whole: {', '.join(missing)}",
            where=str(folder.path),
            fix="give its command again, which does what is missing or damaged, and writes the page: "
            + folder.command(),
        )
