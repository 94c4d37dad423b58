"""Training a recipe in its folder: the models it leaves, their records, and where it goes on after a kill."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offramp.errors import InputError
from offramp.files import locked_folder, sweep_temporary_files
from offramp.lab.exits.folder import require_own
from offramp.lab.exits.model_folder import ONE_FILE, put_model
from offramp.lab.text.folder import LabText, read_text_folder
from offramp.lab.training.code import training_code
from offramp.lab.training.evaluation import Evaluation
from offramp.lab.training.folder import (
    STATE,
    goes_on,
    is_of,
    kept_model,
    key_of,
    owned_training,
    put_beside,
    require_free_beside,
    require_record_of,
    require_same,
)
from offramp.lab.training.kinds import active_parameters
from offramp.lab.training.loop import make_optimiser, take_step
from offramp.lab.training.objective import Objective, objective_of
from offramp.lab.training.recipe import AnyRecipe
from offramp.lab.training.record import RECORD, REQUEST, REQUEST_FILE, Request, Settings, TrainingRecord
from offramp.lab.training.state import Progress, put_state, read_state, write_state
from offramp.models.devices import CPU
from offramp.models.memory import available_memory, shown_size, with_threads
from offramp.models.quiet import quiet_transformers
from offramp.models.source import folder_source
from offramp.tracing.exits_folder import TRAINING_FILE
from offramp.tracing.progress import step_bar
from offramp.tracing.request import library_versions

WEIGHT_BYTES, TRAINED_BYTES, LOGIT_BYTES = 4, 16, 8
"""Of a weight in float32; with its gradient and the two moments of AdamW; of a logit and its gradient."""

STATE_SECONDS, WRITING_SHARE = 30.0, 0.05
"""Seconds between two states that are written, and the share of the time that writing may take."""


def train(
    recipe: AnyRecipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    shown: bool = False,
) -> TrainingRecord:
    """Train a recipe, go on with it where it was stopped, or give the record of one that has ended.

    The folder becomes a model; those of earlier steps lie beside it, NAME@STEP. On a processor the same
    recipe, seed and number of threads give the same weights, also after kills.

    Raises InputError for a recipe that cannot be, is not comparable with what it names or cannot go on from
    it, for folders of something else, and for too little text or memory; DamagedFileError for a text or a
    model that was changed; DiskFullError.
    """
    text = read_text_folder(recipe.text)
    objective = objective_of(recipe, text)
    evaluation = Evaluation(text, recipe.context)
    folder = Path(folder)
    if overwrite or not (folder / TRAINING_FILE).is_file():
        _require_memory(objective.architecture.parameters, recipe, text.record.vocabulary, device)
    versions = library_versions()
    code = training_code(recipe.kind)
    request = Request(recipe, text.fingerprint, device, code, versions, objective.base)
    require_own(folder, (STATE,), REQUEST)
    require_free_beside(folder, recipe.schedule[:-1])
    training = functools.partial(_Training, recipe, text, objective, evaluation, request=request, shown=shown)
    with locked_folder(folder):
        require_own(folder, (STATE,), REQUEST)  # as it is now that nobody else writes
        sweep_temporary_files(folder)
        owned = owned_training(folder)
        begun = (folder / REQUEST_FILE).is_file()
        if overwrite and not owned.finish_replacing(TRAINING_FILE) and begun and not goes_on(folder, request):
            with owned.replaced(TRAINING_FILE, goes_on=lambda made: is_of(made, request)) as made:
                record = training(folder=made).ended()
                put_beside(made, folder)
            return record
        require_same(folder, request)
        return training(folder=folder).ended()


def _require_memory(parameters: int, recipe: AnyRecipe, vocabulary: int, device: str) -> None:
    """Refuse a model that cannot be made, or trained on this processor, in the memory that is free.

    Raises InputError.
    """
    needed = WEIGHT_BYTES * parameters
    if device == CPU:
        needed = TRAINED_BYTES * parameters + LOGIT_BYTES * recipe.batch * recipe.context * vocabulary
    if needed > (free := available_memory()):
        raise InputError(
            f"training {parameters:,} weights on {recipe.batch} x {recipe.context:,} tokens at once takes "
            f"{shown_size(needed)} of memory, and {shown_size(free)} are free",
            where="recipe",
            fix="make the model smaller (parameters, layers, hidden), or the steps (batch, context)",
        )


@dataclass
class _Training:
    """One training in its folder, which is locked."""

    recipe: AnyRecipe
    text: LabText
    objective: Objective
    evaluation: Evaluation
    folder: Path
    request: Request
    shown: bool

    def ended(self) -> TrainingRecord:
        """The record of the training, which is gone on with to its end."""
        with owned_training(self.folder).writing(REQUEST_FILE):
            REQUEST.write(self.folder / REQUEST_FILE, self.request)
        if not (self.folder / TRAINING_FILE).is_file():
            return self.run()
        (self.folder / STATE).unlink(missing_ok=True)  # it was killed after its last file was written
        record = RECORD.read(self.folder / TRAINING_FILE)
        require_record_of(self.folder, record, self.request)
        for path in (self.folder, *(kept_model(self.folder, step) for step in self.recipe.schedule[:-1])):
            if path == self.folder or path.is_dir():  # those of earlier steps may have been removed
                folder_source(path)
        return record

    def run(self) -> TrainingRecord:
        """Train, or go on to the end."""
        key = key_of(self.request)
        found = read_state(self.folder / STATE, key)
        started = Settings(torch.get_num_threads(), self.request.device)
        progress = found[0] if found else Progress(started)
        with with_threads(progress.settings.threads):
            model = self._model()
            optimiser = make_optimiser(model)
            if found:
                put_state(found[1], progress.step, model, optimiser)
            record = self._train(model, optimiser, progress, key)
        (self.folder / STATE).unlink(missing_ok=True)
        return record

    def _model(self) -> Any:
        """The model with the weights that the seed gives, or its base."""
        torch.manual_seed(self.recipe.seed)
        with quiet_transformers():
            model = self.objective.make_model()
        return model.to(self.request.device).train()

    def _train(
        self, model: Any, optimiser: torch.optim.Optimizer, progress: Progress, key: str
    ) -> TrainingRecord:
        recipe, loss_of = self.recipe, self.objective.loss(model)
        written, pause = time.monotonic(), STATE_SECONDS
        with step_bar(self.folder.name, recipe.steps, shown=self.shown, done=progress.step) as show:
            while not progress.stopped:
                began = time.perf_counter()
                loss = take_step(model, optimiser, loss_of, recipe, progress.step)
                if loss is None:
                    progress.diverged = True
                    progress.stopped = f"the loss was not finite at step {progress.step + 1}"
                else:
                    progress.losses += loss
                    progress.step += 1
                    if progress.step == recipe.steps:
                        progress.stopped = "the steps are done"
                progress.seconds += time.perf_counter() - began
                at_a_mark = progress.step in recipe.schedule and not progress.diverged
                if at_a_mark:
                    self._evaluate(model, progress)
                    if not progress.stopped:
                        self._keep(model, progress, kept_model(self.folder, progress.step))
                show(progress.step, _in_words(progress, loss))
                if at_a_mark or progress.stopped or time.monotonic() - written > pause:
                    before = time.monotonic()
                    write_state(self.folder / STATE, key, progress, model, optimiser)
                    written = time.monotonic()
                    pause = max(STATE_SECONDS, (written - before) / WRITING_SHARE)
        return self._keep(model, progress, self.folder)

    def _evaluate(self, model: Any, progress: Progress) -> None:
        """Held-out losses, which are kept; the end of it where one is not finite."""
        before = progress.history[-1].step if progress.history else 0
        found = self.evaluation.evaluate(
            model,
            step=progress.step,
            tokens=self._tokens(progress.step),
            seconds=progress.seconds,
            trained=progress.losses / (progress.step - before),
        )
        progress.losses = 0.0
        if math.isfinite(found.natural + found.generated):
            progress.history.append(found)
        else:
            progress.diverged = True
            progress.stopped = f"a held-out loss was not finite after step {progress.step}"

    def _tokens(self, steps: int) -> int:
        return steps * self.recipe.batch * self.recipe.context

    def _keep(self, model: Any, progress: Progress, folder: Path) -> TrainingRecord:
        """Leave the model as it is now in a folder of its own, its record last."""

        def write(made: Path) -> None:
            model.save_pretrained(made, max_shard_size=ONE_FILE)
            self.text.tokenizer.save_pretrained(made)
            (made / "README.md").write_text(_card(self.text), encoding="utf-8")

        folder.mkdir(exist_ok=True)
        architecture = self.objective.architecture
        record = TrainingRecord(
            recipe=self.recipe,
            text=self.text.fingerprint,
            vocabulary=self.text.record.vocabulary,
            width=architecture.width,
            parameters=architecture.parameters,
            products=architecture.products,
            settings=progress.settings,
            step=progress.step,
            tokens=self._tokens(progress.step),
            seconds=progress.seconds,
            stopped=progress.stopped,
            diverged=progress.diverged,
            history=tuple(progress.history),
            model=put_model(folder, write),
            versions=self.request.versions,
            documents=self.text.record.seen,
            active=active_parameters(architecture),
        )
        with owned_training(folder).writing(TRAINING_FILE):
            RECORD.write(folder / TRAINING_FILE, record)
        return record


def _in_words(progress: Progress, loss: float | None) -> str:
    last = f", held out {progress.history[-1].natural:.3f}" if progress.history else ""
    return f"loss {'not finite' if loss is None else f'{loss:.3f}'}{last}"


def _card(text: LabText) -> str:
    """Which text it was trained on, under which licences, where readers of model folders look."""
    lines = [f"- {one.name} {one.version}: {one.licence}" for one in text.record.sources]
    begin = "A small model, trained from scratch by `offramp lab train`: see `training.json`. Its text:"
    return "\n".join([begin, "", *lines, ""])
