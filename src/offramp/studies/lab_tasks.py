"""The tasks of a study of the lab: text, train and measure, and what each takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.lab.training.code import training_code
from offramp.lab.training.kinds import architecture_of
from offramp.models.devices import CPU, find_device
from offramp.models.memory import WORKING_SHARE
from offramp.studies.computing import code_of, versions_of
from offramp.studies.estimates import FLOPS_PER_THREAD, RESULT_BYTES, STARTING_SECONDS, TORCH_BYTES
from offramp.studies.found import FoundModel
from offramp.studies.lab_runs import Run
from offramp.studies.lab_study import LabStudy
from offramp.studies.task import Estimate, Task

GPU_FLOPS = 1e14
"""Products of matrices in bfloat16 that an accelerator really does in a second, of models of 100 million."""
TEXT_SECONDS = 60.0
"""Of making a text of the default size."""
EVALUATED_TOKENS = 65_536 + 16_384
"""Held-out tokens that are read at every checkpoint, at most (`offramp.lab.training.evaluation`)."""
GIVEN_TOKENS = 400_000
"""That all endpoints of a model take as many products as: traced three times, read for the lens, decoded."""
LENS_BYTES = 16
"""Of each number of a lens that is trained: itself, its gradient and two moments."""
SLOWER: Mapping[str, float] = {"mixture": 1.3, "mamba2": 2.6, "early_exit_loss": 1.4}
"""Times as long as its products say, of kinds of models and of what is done to them (docs/lab.md, speed)."""
ENDPOINT_SECONDS: Mapping[str, float] = {
    "representation": 7.0,
    "calibration": 1.0,
    "representation_lens": 10.0,
    "scores": 10.0,
    "skipped": 5.5,
    "skipped_code": 5.5,
    "skipped_lens": 43.0,
    "required_depth": 5.0,
}
"""Of one endpoint of a model of the design; training the lens counts for what is skipped through it."""
MEASURE_STARTING_SECONDS = 2.0
"""Of measuring a model so small: a worker has torch already, and there is nothing to check."""


@dataclass(frozen=True)
class Text:
    """The text of a study. fingerprint: of its tokens and its tokenizer, None where it is not made yet."""

    folder: Path
    fingerprint: str | None

    @property
    def sources(self) -> dict[str, str]:
        """As a task has them."""
        return {"text": str(self.folder)}


class LabTasks:
    """Makes the tasks of a study."""

    def __init__(self, study: LabStudy) -> None:
        self.study = study
        self.vocabulary = study.lab.text.vocabulary
        self.missing: str | None = None
        self.device = study.settings.device
        try:
            self.device = find_device(self.device, study.where("study", "device"))
        except InputError as error:
            if not error.what.startswith("there is no device"):
                raise
            self.missing = error.what  # planned all the same: for a machine that has it

    @property
    def workers(self) -> int:
        """Jobs that run side by side here."""
        return max(1, len(os.sched_getaffinity(0)) // self.study.threads) if self.device == CPU else 1

    def text(self) -> tuple[Task, dict[str, str]]:
        """The text, and what of it cannot be had here, with what brings it, by its name."""
        request = self.study.lab.text
        versions = self.study.versions
        absent = {one.name: one.fix for one in request.all_sources if versions[one.name] is None}
        asked = request.model_dump(mode="json", exclude={"folders": True, "own": {"__all__": {"path"}}})
        recipe = {"request": asked, "sources": versions, **self._common("text")}
        sources = {"request": request.model_dump_json()}
        estimate = Estimate(TEXT_SECONDS, TORCH_BYTES, 100_000_000)
        return Task("text", recipe, sources=sources, estimate=estimate), absent

    def train(self, run: Run, text: Text, base: Task | None) -> Task:
        """A training. base: that it goes on from.

        Its key holds what the text says and not how it was made, so that it outlives changes of the latter.
        Raises InputError for a recipe whose size cannot be matched.
        """
        kind = run.recipe.kind
        values = run.recipe.model_dump(mode="json", exclude={"text", "against", "factor", "base"})
        schedule = list(run.recipe.schedule)
        common = {**self._common("train"), "code": training_code(kind)}
        about = {"kind": kind, "recipe": values, "schedule": schedule, "text": text.fingerprint}
        return Task(
            "train",
            {**about, **common},
            {} if base is None else {"base": base.key},
            sources=text.sources,
            exclusive=self.device != CPU,
            estimate=self.train_estimate(run),
            blocked=self.missing,
        )

    def measure(self, train: Task, run: Run, text: Text, place: int, endpoints: Sequence[str]) -> Task:
        """Some endpoints of one kept model of a training. place: of it in the schedule."""
        schedule = run.recipe.schedule
        recipe = {
            "step": None if place == len(schedule) - 1 else schedule[place],
            "endpoints": list(endpoints),
            "text": text.fingerprint,
            "seed": self.study.settings.seed,
            **self._common("measure"),
        }
        return Task(
            "measure",
            recipe,
            {"model": train.key},
            sources=text.sources,
            exclusive=self.device != CPU,
            estimate=self.measure_estimate(run, endpoints),
            blocked=self.missing,
        )

    def measure_given(self, model: FoundModel, text: Text) -> Task:
        """All endpoints of a model that is given."""
        identity, entry, dtype = model.identity, model.entry, self.study.settings.dtype
        described: dict[str, Any] = {
            "fingerprint": None if identity is None else identity.base_fingerprint,
            "transforms": [],
        }
        described |= {"trust_remote_code": True} if entry.trust_remote_code else {}
        recipe = {
            "model": described if identity else {**described, "source": model.source},
            "dtype": dtype,
            "endpoints": list(self.study.given_endpoints),
            "text": text.fingerprint,
            "seed": self.study.settings.seed,
            **self._common("measure"),
        }
        weights = model.weight_bytes(dtype)
        lens = LENS_BYTES * (model.layers or 0) * (model.hidden or 0) ** 2
        estimate = Estimate(
            None if model.parameters is None else 2 * GIVEN_TOKENS * model.parameters / self._speed,
            None if weights is None else TORCH_BYTES + round(WORKING_SHARE * weights) + lens,
            RESULT_BYTES,
        )
        return Task(
            "measure",
            recipe,
            sources={**text.sources, "model": model.source},
            exclusive=self.device != CPU,
            estimate=estimate,
            blocked=model.missing or self.missing,
        )

    def train_estimate(self, run: Run) -> Estimate:
        """Of a training: its steps and what is read at every checkpoint."""
        recipe, model = run.recipe, run.model
        token = self.token_seconds(run)
        read = EVALUATED_TOKENS * len(recipe.schedule)
        found = architecture_of(model, self.vocabulary)
        kept = 4 * found.parameters * len(recipe.schedule)
        # Weights, gradients, two moments; activations of a step, the logits the largest of them.
        rows = recipe.batch * recipe.context
        memory = 16 * found.parameters + 4 * rows * (4 * self.vocabulary + 20 * model.layers * model.hidden)
        return Estimate(STARTING_SECONDS + (recipe.tokens + read / 3) * token, TORCH_BYTES + memory, kept)

    def token_seconds(self, run: Run) -> float:
        """Of training on one token: three times its products, and those of attention."""
        model = run.model
        products = (
            architecture_of(model, self.vocabulary).products + model.layers * model.context * model.hidden
        )
        return 6.0 * products * SLOWER.get(model.kind, 1.0) * SLOWER.get(run.arm, 1.0) / self._speed

    def measure_estimate(self, run: Run, endpoints: Sequence[str]) -> Estimate:
        """Of measuring: by endpoint, for a model of the design."""
        seconds = sum(ENDPOINT_SECONDS[one] for one in endpoints)
        share = run.model.layers * run.model.hidden / (12 * 96)
        return Estimate(MEASURE_STARTING_SECONDS + seconds * share, TORCH_BYTES, RESULT_BYTES)

    @property
    def _speed(self) -> float:
        return FLOPS_PER_THREAD * self.study.threads if self.device == CPU else GPU_FLOPS

    def _common(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "code": None if kind == "train" else code_of(kind),
            "versions": versions_of(kind, None if kind == "text" else ()),
            "threads": self.study.threads,
        }
        return found if self.device == CPU or kind == "text" else {**found, "device": self.device}
