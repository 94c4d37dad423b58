"""Studies of the lab for tests: their files, and trainings that only pretend to have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offramp.files import write_json_atomically
from offramp.lab.training.recipe import KINDS, AnyRecipe, ContinuedRecipe
from offramp.lab.training.record import RECORD, Settings, TrainingRecord
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_layout import lay_out
from offramp.studies.lab_study import LabStudy
from offramp.studies.study_file import read_study
from offramp.studies.task import Plan, Task

SMOKE = """
[study]
name = "lab-smoke"

[lab]
blocks = [1]
runs = ["run-01", "run-16"]
size = "smoke"
rate = 0.004
tokens = 20_000
checkpoints = 3
dear = ["required_depth"]

[lab.text]
sources = ["standard-library", "python-reference"]
vocabulary = 512
characters = 200_000
"""
"""Two small models, on text of the standard library alone."""


def lab_study(folder: Path, lab: str, settings: str = "") -> LabStudy:
    """A study whose table [lab] says this."""
    path = folder / "STUDY.toml"
    text = '[lab.text]\nsources = ["standard-library"]\n'
    path.write_text(f'[study]\nname = "lab"\n{settings}\n[lab]\n{lab}\n{text}', encoding="utf-8")
    study = read_study(path)
    assert isinstance(study, LabStudy)
    return study


class Pretended:
    """A study's folder in which tasks end as they are told to. took: seconds, as the journal has them."""

    def __init__(
        self, study: LabStudy, path: Path, took: Callable[[Task], float] = lambda task: 100.0
    ) -> None:
        self.study, self.took = study, took
        self.folder = StudyFolder(path)
        path.mkdir()

    def plan(self) -> Plan:
        """By what has ended."""
        return lay_out(self.study, self.folder.path)

    def end(
        self, losses: Callable[[str], Sequence[float]], *, seconds: float = 100.0, rounds: int = 99
    ) -> Plan:
        """End all that the plan names, so many times or until nothing is new; the last plan.

        losses: of a training by its name, one for each kept model, nan where it diverged. seconds: that each
        says it took.
        """
        for _ in range(rounds):
            plan = self.plan()
            left = [task for task in plan.tasks.values() if not self.folder.is_done(task)]
            for task in left:
                self._end(task, plan, losses, seconds)
            if not left:
                break
        return self.plan()

    def _end(self, task: Task, plan: Plan, losses: Callable[[str], Sequence[float]], seconds: float) -> None:
        own = self.folder.start(task)
        result: dict[str, Any] = {"values": dict.fromkeys(task.recipe.get("endpoints", ()), 0.5)}
        if task.kind == "text":
            result = {"fingerprint": "of the text"}
        if task.kind == "train":
            name = next(name for name, run in plan.study["runs"].items() if run["train"] == task.key)
            result = self._train(own, task, list(losses(name)), seconds)
        write_json_atomically(own / "result.json", result)
        self.folder.finish(task, self.took(task))

    def _train(self, own: Path, task: Task, losses: list[float], seconds: float) -> dict[str, Any]:
        recipe = recipe_of(task)
        ended = [loss for loss in losses if loss == loss]
        diverged = len(ended) < len(losses)
        step = recipe.schedule[len(ended) - 1]
        record = TrainingRecord(
            recipe, "text", 512, 1, 1, 1, Settings(1, "cpu"), step, recipe.tokens, seconds, "", diverged, (),
            "", {},
        )  # fmt: skip
        (own / "model").mkdir()
        RECORD.write(own / "model" / "training.json", record)
        kept = [
            {"step": step, "tokens": step * recipe.batch * recipe.context, "loss": loss}
            for step, loss in zip(recipe.schedule, ended, strict=False)
        ]
        return {"kept": kept, "diverged": diverged, "step": step}


def recipe_of(task: Task) -> AnyRecipe:
    """The recipe of a training; where its text and its base lie is made up."""
    kind = {**KINDS, "continued": ContinuedRecipe}[task.recipe["kind"]]
    base = {"base": "base"} if kind is ContinuedRecipe else {}
    found: AnyRecipe = kind.model_validate({**task.recipe["recipe"], "text": "text", **base})
    return found


def names_of(plan: Plan, kind: str) -> list[str]:
    """Names of the cells of one kind."""
    return [cell.model for cell in plan.cells if cell.kind == kind]
