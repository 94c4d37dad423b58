"""A study's folder: its plan, its tasks' results and failures, its journal, and where locks and logs lie.

A task is done if there is a whole manifest of it (see `offramp.studies.task`), and failed if there is a
record of its failure. The journal only tells people what happened when, and how long things took.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from offramp.commands import command_line
from offramp.decoding.execution.kept import read_kept
from offramp.errors import DamagedFileError, InputError, shortened
from offramp.files import (
    remove,
    require_no_links,
    sweep_temporary_files,
)
from offramp.kit.output_folder import OwnFiles
from offramp.kit.sealed_file import SealedFile, is_laid_out
from offramp.studies.journal import Journal, RunStart
from offramp.studies.locks import ALIVE, holding, is_lock
from offramp.studies.study import StudyPlan
from offramp.studies.task import (
    APART,
    DAMAGED,
    FINGERPRINTS,
    MANIFEST,
    RESULT,
    TRACE,
    Failure,
    KeptFingerprints,
    StudyCell,
    Task,
    TaskManifest,
    check_files,
    files_of,
    read_failure,
    read_manifest,
    remove_failure,
    write_failure,
    write_manifest,
)
from offramp.studies.task import FILE as MANIFEST_FILE

if TYPE_CHECKING:
    from offramp.studies.work.work import Work

Result = TypeVar("Result")


def _lacking(plan: StudyPlan) -> Iterator[str]:
    """What a plan names and does not hold, or names twice."""
    known: set[str] = set()
    for task in plan.tasks.values():
        for need in set(task.needs.values()) - known:
            yield f"the task {task.key[:12]} needs {shortened(need)[:12]}, which does not come before it"
        known.add(task.key)
    models = {model.name for model in plan.study.models}
    tasks, names = set[str](), set[StudyCell]()
    for cell in plan.cells:
        nameless = dataclasses.replace(cell, task="")
        if cell.task in tasks or nameless in names:
            yield f"the cell {shortened(cell.name)} is in it twice"
        tasks.add(cell.task)
        names.add(nameless)
        if cell.task not in known or plan.tasks[cell.task].kind != cell.kind:
            yield f"the cell {shortened(cell.name)} names a task that is not in it, or of another kind"
        if cell.model not in models:
            yield f"the cell {shortened(cell.name)} names a model that is not in it"


FILE = SealedFile(
    StudyPlan,
    "{name}, the plan of what is done here, is damaged",
    "give the command again that made the folder: it plans anew, and keeps what is done",
    version=4,
    contradictions=_lacking,
)
PLAN = "plan.json"
JOURNAL = "journal.jsonl"
TASKS = "tasks"
EXECUTIONS = "executions"
_KEY = re.compile(r"[0-9a-f]{64}")
_LOG = re.compile(r"[0-9a-f]{16}\.log")
_EXECUTION = re.compile(r"[0-9a-f]{64}\.json")
"""The names of a task's folder, of a worker's log and of documents that were decoded: keys of what they are
of. Whatever is called otherwise beside them is somebody's."""

Condition = Literal["done", "damaged", "failed", "unfinished"]
"""What a task's files say of it, whatever is being done about it at the moment."""


class StudyFolder:
    """The folder that a study is run into. Nothing is made in it before it is written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal(path / JOURNAL)

    @property
    def locks(self) -> Path:
        """Where the locks lie (see `offramp.studies.locks`)."""
        return self.path / "locks"

    @property
    def logs(self) -> Path:
        """Where workers leave what they print."""
        return self.path / "logs"

    @property
    def executions(self) -> Path:
        """Where documents that were decoded for certificates are kept."""
        return self.path / EXECUTIONS

    def task_folder(self, task: Task) -> Path:
        """Where a task's files lie, whether or not it was begun."""
        return self.path / TASKS / task.kind / task.key

    def lock_path(self, task: Task) -> Path:
        """The lock that whoever works on a task holds."""
        return self.locks / f"{task.kind}-{task.key}"

    def alive_path(self, worker: str) -> Path:
        """What a worker touches while it lives. worker: a name that no other has."""
        return self.locks / f"{ALIVE}{worker}"

    # --- what is there

    @property
    def is_begun(self) -> bool:
        """Whether a study or a run was begun here: something lies here as only they write it."""
        records = {PLAN: StudyPlan, FINGERPRINTS: KeptFingerprints}
        return (
            any(
                is_laid_out(self.path / name, [field.name for field in dataclasses.fields(record)])
                for name, record in records.items()
            )
            or bool(self.journal.read().events)
            or any(name not in (*records, JOURNAL) for name in self.own_files())
        )

    def command(self) -> str:
        """The command that goes on with what lies here: of a run that which it was last started with, into
        the folder where it lies now; of one that was killed while another took its place, that of the other,
        which puts the rest in its place. Of a study, and where the journal says nothing, that of a study, of
        which only people know where they keep its file.
        """
        left = OwnFiles(self.path).left_whole
        newest = self if left is None or not (left / JOURNAL).is_file() else StudyFolder(left)
        return RunStart.last(newest.journal.read().events).command_in(self.path) or self._study_run

    @property
    def _study_run(self) -> str:
        return command_line("study run", "STUDY.toml", output=self.path)

    def condition(self, task: Task) -> Condition:
        """What a task's files say of it."""
        manifest, problems = self._examine(task.kind, task.key, whole=False)
        if problems:
            return "damaged"
        if manifest is not None:
            return "done"
        if self.failure(task) is not None:
            return "failed"
        return "damaged" if self.was_damaged(task) else "unfinished"

    def is_done(self, task: Task) -> bool:
        """Whether the task's result is there and whole."""
        return self.condition(task) == "done"

    def was_damaged(self, task: Task) -> bool:
        """Whether the task was once done, was found damaged, and was not yet done again."""
        return (self.task_folder(task) / DAMAGED).exists()

    def failure(self, task: Task) -> Failure | None:
        """Why a task failed, None if it did not."""
        return read_failure(self.task_folder(task))

    def result(self, kind: type[Work[Result]], task: Task) -> Result:
        """The result of a task that is done, of its kind of work.

        Raises InputError if it is not done, or leaves no such file; DamagedFileError if its bytes changed, or
        that kind leaves something else, or the answer to something else.
        """
        manifest, problems = self._examine(task.kind, task.key, whole=False)
        folder = self.task_folder(task)
        if problems:
            raise MANIFEST_FILE.damaged(folder / RESULT, problems[0])
        if manifest is None or RESULT not in manifest.files:
            raise InputError(
                f"there is no result of this {task.kind} task",
                where=str(folder / RESULT),
                fix=f"give its command again: {self.command()}",
            )
        result = kind.result_in(folder)
        if (why := kind.unlike(result, task)) is not None:
            raise MANIFEST_FILE.damaged(folder / RESULT, why)
        return result

    def finished(self) -> list[tuple[str, str]]:
        """Kind and key of every task that left a manifest here, whether or not a plan names it."""
        manifests = sorted((self.path / TASKS).glob(f"*/*/{MANIFEST}"))
        return [(path.parent.parent.name, path.parent.name) for path in manifests]

    def folder_of_done(self, key: str) -> Path | None:
        """The folder of the task with this key if it is done, None if it is not, or is damaged."""
        for path in (self.path / TASKS).glob(f"*/{key}/{MANIFEST}"):
            if not self._examine(path.parent.parent.name, key, whole=False)[1]:
                return path.parent
        return None

    def _examine(self, kind: str, key: str, *, whole: bool) -> tuple[TaskManifest | None, list[str]]:
        """A task's manifest, if there is one, and what is wrong with it or with the files that it names."""
        folder = self.path / TASKS / kind / key
        try:
            manifest = read_manifest(folder)
        except DamagedFileError as error:
            return None, [error.what]
        if manifest is None:
            return None, []
        if manifest.key != key:
            return manifest, [f"{MANIFEST} is that of another task"]
        return manifest, check_files(folder, manifest, whole=whole)

    def own_files(self) -> dict[str, str | None]:
        """What of the folder the study wrote: SHA-256 by path, None where its name alone tells.

        Of a finished task that is what its manifest lists; what others put beside it is not ours.
        """
        places = [self.path / name for name in (PLAN, JOURNAL, FINGERPRINTS)]
        places += [path for path in self.locks.glob("*") if is_lock(path)]
        places += [path for path in self.logs.glob("*.log") if _LOG.fullmatch(path.name)]
        places += self._execution_files()
        places += self.executions.rglob(".lock")
        found: dict[str, str | None] = {
            path.relative_to(self.path).as_posix(): None for path in places if path.is_file()
        }
        for folder in (self.path / TASKS).glob("*/*"):
            if not _KEY.fullmatch(folder.name):
                continue
            place = folder.relative_to(self.path).as_posix()
            found |= {f"{place}/{name}": seal for name, seal in self._own_of(folder).items()}
        return found

    def _execution_files(self) -> list[Path]:
        """Files of documents that were decoded, by their names."""
        paths = self.executions.rglob("*.json")
        return [path for path in paths if path.is_file() and _EXECUTION.fullmatch(path.name)]

    def _own_of(self, folder: Path) -> dict[str, str | None]:
        """What of a task's folder is its own, as in `own_files`; until it is done, told by names.

        In the folder of a trace its own seals tell.
        """
        own: dict[str, str | None] = dict.fromkeys(APART)
        own |= {path.relative_to(folder).as_posix(): None for path in folder.rglob(".lock")}
        for name in (MANIFEST, DAMAGED):
            try:
                manifest = MANIFEST_FILE.read(folder / name)
            except (OSError, DamagedFileError):
                continue
            written: dict[str, str | None] = {name: file.sha256 for name, file in manifest.files.items()}
            break
        else:
            written = {path.relative_to(folder).as_posix(): None for path in files_of(folder)}
        if (folder / TRACE).is_dir():
            from offramp.tracing.folder import files_of_trace  # arrow comes with it

            traced = files_of_trace(folder / TRACE)
            below, inside = f"{TRACE}/", {f"{TRACE}/{name}": seal or None for name, seal in traced.items()}
            written = {name: seal for name, seal in written.items() if not name.startswith(below)} | inside
        return own | written

    # --- changing it, holding the task's lock

    def start(self, task: Task) -> Path:
        """Make a task's folder ready for a try, and return it.

        What an earlier try left at its top is removed. What lies deeper stays, since it may be gone on with:
        a killed trace, or, where `was_damaged`, one whose damaged parts are to be traced again.
        """
        folder = self.task_folder(task)
        _require_places(folder)
        folder.mkdir(parents=True, exist_ok=True)
        own = self._own_of(folder)
        problems = self._examine(task.kind, task.key, whole=False)[1]
        if problems:
            self._withdraw(task, problems)
        sweep_temporary_files(folder)
        remove_failure(folder)
        for name in own:
            if "/" not in name and name != DAMAGED:
                (folder / name).unlink(missing_ok=True)
        self.journal.append("started", task)
        return folder

    def finish(self, task: Task, seconds: float) -> None:
        """Vouch for what a task left in its folder: from now on it is done. seconds: it took."""
        write_manifest(self.task_folder(task), task)
        self.journal.append("finished", task, seconds=round(seconds, 3))

    def fail(self, task: Task, failure: Failure, seconds: float | None = None) -> None:
        """Record that a task failed. seconds: until then, None if nobody knows."""
        write_failure(self.task_folder(task), failure)
        self.journal.append("failed", task, seconds=seconds, what=failure.what)

    def forget_failure(self, task: Task) -> None:
        """Let a failed task be tried again."""
        remove_failure(self.task_folder(task))

    def _withdraw(self, task: Task, problems: list[str]) -> None:
        """Take the manifest away from a task with damaged files, so that it is done again."""
        folder = self.task_folder(task)
        _require_places(folder)
        remove(folder / DAMAGED)
        (folder / MANIFEST).replace(folder / DAMAGED)
        self.journal.append("damaged", task, problems=problems)

    def verify(self, task: Task) -> list[str]:
        """Read every byte of a task that is done; what is wrong with it, one sentence a file.

        A damaged task is not done any more. One that somebody works on is left to them.
        """
        problems = self._examine(task.kind, task.key, whole=True)[1]
        if not problems:
            return []
        with holding(self.lock_path(task)) as held:
            # Whoever held the lock a moment ago may have done the task again.
            problems = self._examine(task.kind, task.key, whole=True)[1] if held else []
            if problems:
                self._withdraw(task, problems)
        return problems

    def verify_executions(self) -> list[str]:
        """Read every byte of what was decoded for certificates; what is wrong with it, one sentence a file.

        A damaged file is removed: whoever needs it decodes it again, as where there is none.
        """
        problems = []
        for path in sorted(self._execution_files()):
            try:
                read_kept(path)
            except DamagedFileError as error:
                problems.append(f"{path.parent.relative_to(self.path).as_posix()}/{error.what}")
                path.unlink()
        if problems:
            self.journal.append("damaged", problems=problems)
        return problems

    # --- the plan

    def write_plan(self, plan: StudyPlan) -> None:
        """Keep a plan for whoever reads the folder later.

        Raises InputError if the folder cannot be made or written.
        """
        for place in (self.path / TASKS, self.locks, self.logs):
            if os.path.lexists(place) and not place.is_dir():
                raise InputError(
                    "something else stands where the study keeps a folder of its own",
                    where=str(place),
                    fix="move it away, or choose another folder with -o",
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            FILE.write(self.path / PLAN, plan)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"the study's folder cannot be made or written: {error.strerror}",
                where=str(self.path),
                fix="choose another folder with -o, or change its permissions",
            ) from error

    def read_plan(self) -> StudyPlan:
        """The plan that was last written here.

        Raises InputError if nothing was planned, and where a link lies in the folder; DamagedFileError if it
        is gone, its bytes changed, or it is that of another program or version.
        """
        require_no_links(self.path)
        path = self.path / PLAN
        if path.is_file():
            try:
                return FILE.read(path)
            except DamagedFileError as error:
                error.fix = f"{error.fix}: {self.command()}"
                raise
        if not self.path.is_dir():
            what = "this is no folder" if self.path.exists() else "there is no such folder"
            fix = "check the path: give the folder of a study or of a run"
        elif self.journal.read().events or self.finished():
            raise DamagedFileError(
                f"the folder's {PLAN} is missing", where=str(self.path), fix=f"{FILE.fix}: {self.command()}"
            )
        elif self.is_begun:
            what, fix = "nothing has run here yet, it was only planned", f"run it: {self._study_run}"
        elif is_trace(self.path):
            what = "this is a trace, and there is no page of one alone"
            replay = command_line("replay", self.path, policy="static:exit=N")
            fix = f"score it: {command_line('score', self.path)}; or replay a policy on it: {replay}"
        else:
            what = "there is no study or run here"
            fix = "give the folder of offramp study run or offramp run: it holds plan.json"
        raise InputError(what, where=str(self.path), fix=fix)


def is_trace(folder: Path) -> bool:
    """Whether a folder is that of a trace alone."""
    from offramp.tracing.folder import TRACE_FOLDER  # arrow comes with it

    return TRACE_FOLDER.own(folder) is not None


def _require_places(folder: Path) -> None:
    """Refuse what stands in the place of a task's folder or of its files. Raises InputError."""
    files = [name for name in (RESULT, *sorted(APART)) if (folder / name).is_dir()]
    if files or (os.path.lexists(folder) and not folder.is_dir()):
        raise InputError(
            "something else stands where a task keeps its files",
            where=str(folder.joinpath(*files[:1])),
            fix="move it away, then run the same command again",
        )
