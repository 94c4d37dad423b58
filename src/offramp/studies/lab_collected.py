"""The tasks of a study of the lab as they are laid out, and how those that are trainings have ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.lab.design import GPT2_LIKE, LLAMA_LIKE, run_name
from offramp.lab.training.architecture import make_architecture, require_matched
from offramp.lab.training.recipe import Recipe, require_one_factor
from offramp.records.given_file import did_you_mean
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_runs import Outcome, Run, designed, in_order
from offramp.studies.lab_study import LabStudy
from offramp.studies.lab_tasks import LabTasks, Text
from offramp.studies.study import placed
from offramp.studies.task import Cell, Job, Task
from offramp.studies.work.text import TEXT
from offramp.studies.work.train import model_folder

CORNERS = (run_name(GPT2_LIKE), run_name(LLAMA_LIKE))


class Collected:
    """Tasks, cells and jobs, the text's first.

    ahead: whether what is added now rests on what is not known yet, so that it is only an outline. absent:
    what of the text cannot be had here, with what brings it.
    """

    def __init__(self, study: LabStudy, folder: StudyFolder | None) -> None:
        self.study, self.folder = study, folder
        self.lab = study.lab
        self.blocks = [str(block) for block in study.lab.blocks]
        self.make = LabTasks(study)
        self.tasks: dict[str, Task] = {}
        self.to_come: dict[str, Task] = {}
        self.cells: dict[str, Cell] = {}
        self.jobs: dict[str, list[Task]] = {}
        self.runs: dict[str, Run] = {}
        self.trained: dict[str, Task] = {}
        self.ahead = False
        task, self.absent = self.make.text()
        self.add("text of the lab", Cell("text", "", "text"), task)
        self.text_task, self.text = task, Text(Path(TEXT), None)
        if folder is not None:
            made = folder.result(task)["fingerprint"] if folder.is_done(task) else None
            self.text = Text(folder.task_folder(task).absolute() / TEXT, made)
        self.ahead = self.text.fingerprint is None

    def design(self, tokens: int, rate: float) -> dict[str, Run]:
        """Every run that was written down before, by name, in the study's size."""
        lab = self.lab
        with placed(self.study, "lab", "size"):
            return designed(lab.size, self.make.vocabulary, lab.checkpoints, tokens=tokens, rate=rate)

    def wanted(self, runs: Mapping[str, Run]) -> dict[str, Run]:
        """Those that are asked for, and the corners that the gate needs, in the order of running.

        Raises InputError for a name that there is not, and for two that are to be compared and do not match.
        """
        for place, name in enumerate(self.lab.runs):
            where = self.study.where("lab", "runs", place)
            if name not in runs:
                raise InputError(f"there is no run {name!r}", where=where, fix=did_you_mean(name, runs))
            if runs[name].block not in self.blocks and not ("gate" in self.blocks and name in CORNERS):
                what = f"{name} is of block {runs[name].block}, which is not among the blocks"
                raise InputError(what, where=where, fix="add the block, or leave the run out")
        names = self.lab.runs or tuple(runs)
        chosen = {
            name: run
            for name, run in runs.items()
            if run.block in self.blocks and (run.block == "gate" or name in names)
        }
        if "gate" in self.blocks:
            chosen |= {corner: runs[corner] for corner in CORNERS}
        chosen |= {run.base: runs[run.base] for run in chosen.values() if run.base}
        for run in chosen.values():
            self.require_comparable(run, runs)
        return {run.name: run for run in in_order(list(chosen.values()))}

    def require_comparable(self, run: Run, runs: Mapping[str, Run]) -> None:
        """Hold a recipe against what it names, if anything. Raises InputError."""
        ours = run.recipe
        if not isinstance(ours, Recipe) or ours.against is None:
            return
        other = runs[ours.against.removesuffix(".toml")]
        theirs = other.recipe
        assert isinstance(theirs, Recipe), "dense models are compared with dense ones"
        with placed(self.study, "lab", "size"):
            require_one_factor(ours, theirs, other.name)
            sizes = [make_architecture(one, self.make.vocabulary) for one in (ours, theirs)]
            require_matched(sizes[0], sizes[1], other.name)

    def added(self, runs: Iterable[Run]) -> list[Outcome | None]:
        """Add trainings; how each ended."""
        runs = list(runs)
        for run in runs:
            self.add_run(run)
        return [self.outcome(run) for run in runs]

    def add_run(self, run: Run) -> None:
        """Add a training, unless it is there. Raises InputError, with the line, for a size that cannot be."""
        if run.name in self.trained:
            return
        with placed(self.study, "lab", "size"):
            base = self.trained[run.base] if run.base else None
            self.trained[run.name] = self.make.train(run, self.text, base)
        self.runs[run.name] = run
        self.add(f"train {run.name}", Cell("train", "", run.name), self.trained[run.name])

    def add(self, job: str, cell: Cell, task: Task) -> None:
        """Keep a task, its cell and its job; of what is ahead only the task, for the time that it takes."""
        if self.ahead:
            self.to_come[task.key] = task
        elif task.key not in self.tasks:
            self.tasks[task.key] = task
            self.cells[task.key] = replace(cell, task=task.key)
            self.jobs.setdefault(job, []).append(task)

    def outcome(self, run: Run) -> Outcome | None:
        """How a training ended, None if it has not."""
        task = self.trained[run.name]
        if task.key not in self.tasks or self.folder is None:
            return None
        condition = self.folder.condition(task)
        if condition == "failed":
            return Outcome(failed=True)
        if condition != "done":
            return None
        result = self.folder.result(task)
        return Outcome(tuple(one["loss"] for one in result["kept"]), result["diverged"])

    def model_of(self, run: Run) -> Path:
        """The model that a training left in the end."""
        assert self.folder is not None, "asked for once it has ended"
        return model_folder(self.folder.task_folder(self.trained[run.name]), None)

    def described(self) -> dict[str, Any]:
        """The study as its folder keeps it: what its file says."""
        value = self.study.to_json()
        value["file"] = {"path": str(self.study.path.absolute()), "sha256": self.study.file_fingerprint}
        return value

    def made_jobs(self) -> tuple[Job, ...]:
        """Each training alone, and together what is measured of one, as they were added."""
        return tuple(self._job(name, tasks) for name, tasks in self.jobs.items())

    def _job(self, name: str, tasks: Sequence[Task]) -> Job:
        needs = {self.text_task.key: None} | {key: None for one in tasks for key in one.needs.values()}
        return Job(
            name=name,
            tasks=tuple(tasks),
            needs=tuple(key for key in needs if key not in {task.key for task in tasks}),
            threads=self.study.threads,
            exclusive=any(task.exclusive for task in tasks),
            memory_bytes=max(task.estimate.memory_bytes or 0 for task in tasks),
        )
