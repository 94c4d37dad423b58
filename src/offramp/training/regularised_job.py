"""A training of the model itself in its folder: what comes of it is a model folder, loaded as any other."""

from __future__ import annotations

import time

import torch

from offramp.errors import InputError
from offramp.heads.file import TRAINING_FILE
from offramp.heads.trained_model import trained_on
from offramp.kit.numbers import shown_size
from offramp.models.process import available_memory
from offramp.tracing.fitting.seen import seen_by_all
from offramp.tracing.request import library_versions
from offramp.training.evaluation import FLOORS
from offramp.training.folder import require_room
from offramp.training.job import Job, sides
from offramp.training.model_folder import write_model
from offramp.training.record import RECORD, Rows, Seconds, TrainingRecord
from offramp.training.regularised import EVALUATED_TOKENS, RegularisedModel
from offramp.training.regularised_text import row_count
from offramp.training.trainer import Beside
from offramp.workloads.shared_text import write_sketch

ALL_EVALUATED = 4096
"""Held-out tokens of the figures before and after."""

CHECKPOINT_COPIES, MEMORY_COPIES = 8, 11
"""Of what is trained: two checkpoints (weights, two moments, the best), the next beside the last; in memory
these, their gradients, the trained weights with theirs, and a pilot's copies."""


class RegularisedJob(Job):
    """Trains the model's own weights, and leaves a model."""

    def run(self) -> tuple[None, TrainingRecord]:
        """Train, write the model, then the record."""
        began = time.perf_counter()
        rows = self.plan()
        fit, held_out = sides(rows)
        objective = RegularisedModel(self.model, self.recipe, fit, held_out)
        self._require_enough(objective)
        first = trained_on(self.model)  # of a model that was trained before
        documents, texts = seen_by_all((first.documents, first.texts), (rows.ids, rows.texts))
        beside = Beside(time.perf_counter() - began, evaluations=2 * ALL_EVALUATED / EVALUATED_TOKENS)
        progress = self.train(objective, self.key(rows, self.recipe.at), beside)
        started = time.perf_counter()
        best = progress.weights[0].best
        with torch.no_grad():
            values = objective.weights.values(best)
            before, after = (
                objective.held_out.evaluate(one, ALL_EVALUATED) for one in (objective.weights.weights, values)
            )
            fingerprint = write_model(self.model, values, self.folder)
        record = TrainingRecord(
            request=self.request,
            settings=progress.settings,
            rows=Rows.of(rows, sum(map(row_count, fit)), objective.held_out.tokens),
            steps=progress.step,
            stopped=progress.stopped,
            seconds=Seconds(rows.answering, progress.seconds, time.perf_counter() - started),
            floors=FLOORS,
            logit_lens=(),
            before=tuple(before),
            trained=tuple(after),
            history=tuple(progress.history),
            heads=fingerprint,
            versions=library_versions(),
            earlier=self.earlier,
            documents=documents,
            texts=tuple(map(write_sketch, texts or ())),
        )
        RECORD.write(self.folder / TRAINING_FILE, record)
        return None, record

    def _require_enough(self, objective: RegularisedModel) -> None:
        """Refuse too little text, disk or memory before anything is trained. Raises InputError."""
        rows = sum(map(row_count, objective.fit))
        if rows < self.recipe.batch:
            raise InputError(
                f"there are {rows:,} tokens to train on, beside the half of the text left for tuning and "
                f"documents held out; one step takes {self.recipe.batch:,}",
                where="workloads= (--workload)",
                fix="give more text or raise --tokens",
            )
        trained = objective.weights.parameter_bytes
        stored = sum(weight.nbytes for weight in self.model.hf.parameters())
        fix = "train a low rank instead of all weights (--lora 16)"
        needed = CHECKPOINT_COPIES * trained + stored
        require_room(self.folder, needed, "the trained model and its checkpoint", fix)
        free = available_memory()
        if MEMORY_COPIES * trained > free:
            raise InputError(
                f"training {shown_size(trained)} of weights takes {shown_size(MEMORY_COPIES * trained)} of "
                f"memory, and {shown_size(free)} are free",
                where=self.model.name,
                fix=fix,
            )
