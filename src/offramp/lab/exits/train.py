"""`train_exits`: exits that learn to say what the full model says, in a folder that can be gone on with."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from offramp.files import (
    canonical_json,
    remove,
    sha256_of_text,
    source_fingerprint,
)
from offramp.lab.exits.checkpoint import Progress
from offramp.lab.exits.divergence import trainable_head
from offramp.lab.exits.evaluation import FLOORS, Evaluator
from offramp.lab.exits.folder import CHECKPOINT, STATES, claimed
from offramp.lab.exits.kinds import Reading
from offramp.lab.exits.recipe import Recipe, make_recipe
from offramp.lab.exits.record import (
    RECORD,
    Request,
    Rows,
    Seconds,
    TrainingRecord,
)
from offramp.lab.exits.states import CachedStates, StatesPlan, read_states, require_enough, write_states
from offramp.lab.exits.trainer import OnStep, Trainer, in_words, ridge_lens
from offramp.models.model import Model, in_evaluation
from offramp.records.typed import to_json
from offramp.tracing.exit_heads import SHORTLIST, ExitHeads
from offramp.tracing.exits_folder import EXITS_FILE, TRAINING_FILE
from offramp.tracing.fitting.documents import FittingRows, plan_rows, split_documents, without_text_of
from offramp.tracing.fitting.fit import (
    CLASSIFIER_TOKENS,
    TrainedReading,
    check_short_list,
    complete_heads,
    distinct_workloads,
)
from offramp.tracing.fitting.readings import require_one_stream
from offramp.tracing.heads_file import read_heads, write_heads
from offramp.tracing.progress import say, step_bar, token_bar
from offramp.tracing.request import LOSS_VOCABULARY, TRAINING_TOKENS, library_versions
from offramp.workloads.workload import Workload

JUDGING_SHARE = 0.2
"""Share of the documents that the classifiers get; training does not see them."""

HELD_OUT_EVERY = 6
"""One document of so many is held out from training."""

CODE = ("models", "workloads", "tracing", "lab/exits")


@dataclass(frozen=True)
class TrainedExits:
    """What a training gave. folder: where it lies, None if none was named."""

    heads: ExitHeads
    record: TrainingRecord
    folder: Path | None

    def __repr__(self) -> str:
        recipe = self.record.request.recipe
        exits = ", ".join(
            f"{exit}: {one.agreement:.2f}" for exit, one in zip(recipe.at, self.record.trained, strict=True)
        )
        return f"TrainedExits({recipe.kind}, agreement {exits}, {self.record.steps} steps)"


@in_evaluation
def train_exits(
    model: Model,
    workloads: str | Workload | Sequence[str | Workload],
    *,
    kind: str = "block",
    at: str | Sequence[int],
    minutes: float | None = None,
    steps: int | None = None,
    tokens: int = TRAINING_TOKENS,
    seed: int = 0,
    units: int | None = None,
    loss_vocabulary: int = LOSS_VOCABULARY,
    context: int | None = None,
    classifiers: bool = True,
    kv_maps: bool = True,
    short_list: int = SHORTLIST,
    precision: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    on_size: Callable[[int], object] | None = None,
) -> TrainedExits:
    """Train exits of a frozen model on its own distributions, on documents of the workloads' later half.

    kind: "lens" or "block" (see `offramp.lab.exits.kinds`). at: exits below L. minutes: of training on this
    machine, 20 by default; or steps, which give the same exits again. tokens: over all workloads. units: of a
    block. loss_vocabulary: tokens that the loss looks at, 0 for all. classifiers, kv_maps: whether they are
    fitted afterwards; the classifiers on documents that training did not see. short_list: tokens of the
    restricted vocabulary. precision: of the products with the output head while it trains. output: a folder;
    a training that was killed goes on there to the same exits, and a finished one is read. overwrite: replace
    another training there. on_size: told the bytes of hidden states on disk.

    Raises InputError for options or text that do not fit, or another training in the folder; ModelError for a
    model whose exits cannot be trained; DiskFullError.
    """
    recipe = make_recipe(
        layers=model.layers,
        hidden=model.shape.hidden_size,
        vocabulary=model.shape.vocabulary_size,
        kind=kind,
        at=at,
        tokens=tokens,
        steps=steps,
        minutes=minutes,
        seed=seed,
        units=units,
        loss_vocabulary=loss_vocabulary,
        context=context,
        precision=precision,
    )
    check_short_list(short_list, model.shape.vocabulary_size)
    require_one_stream(model)
    trainable_head(model)
    works = distinct_workloads(workloads)
    request = Request(
        recipe=recipe,
        model={
            "name": model.shown_name,
            "fingerprint": model.identity.fingerprint,
            "dtype": model.dtype,
            **model.asked_attention,
        },
        workloads=tuple({"name": work.name, "fingerprint": work.fingerprint} for work in works),
        classifiers=classifiers,
        kv_maps=kv_maps,
        short_list=short_list,
        device=model.stack.head_device.type,
        code=source_fingerprint(*CODE),
    )
    shown = sys.stderr.isatty() if progress is None else progress
    with claimed(None if output is None else Path(output), request, overwrite=overwrite) as folder:
        if (folder / TRAINING_FILE).is_file():
            heads, record = read_heads(folder / EXITS_FILE), RECORD.read(folder / TRAINING_FILE)
        else:
            heads, record = _Training(model, works, request, folder, shown, on_size).run()
    return TrainedExits(heads, record, None if output is None else folder)


@dataclass(frozen=True)
class _Training:
    """One training in its folder."""

    model: Model
    workloads: tuple[Workload, ...]
    request: Request
    folder: Path
    shown: bool
    on_size: Callable[[int], object] | None

    @property
    def recipe(self) -> Recipe:
        """How it trains."""
        return self.request.recipe

    def run(self) -> tuple[ExitHeads, TrainingRecord]:
        """Cache states, train, fit what goes with the exits, write, and clear away the rest."""
        trained_on, judged_on = self._plan()
        plan = StatesPlan.of(self.model, trained_on, self.recipe.at)
        require_enough(plan, self.recipe.batch)
        if self.on_size is not None:
            self.on_size(plan.bytes)
        started = time.perf_counter()
        states = self._states(plan)
        cached = time.perf_counter() - started
        trainer = Trainer(self.model, self.recipe, states, self.folder / CHECKPOINT, self._key(plan))
        with contextlib.ExitStack() as bars:
            progress = trainer.run(lambda found: self._bar(bars, found))
        if self.shown:
            say(f"{self._title}: {progress.stopped}; {in_words(progress.history[-1])}")
        started = time.perf_counter()
        reading = trainer.reading(progress)
        heads = self._heads(reading, progress, trained_on, judged_on)
        seconds = Seconds(cached, progress.seconds, time.perf_counter() - started)
        record = self._record(trainer, progress, reading, plan, heads, seconds)
        write_heads(heads, self.folder / EXITS_FILE)
        RECORD.write(self.folder / TRAINING_FILE, record)
        remove(self.folder / CHECKPOINT)
        remove(self.folder / STATES)
        return heads, record

    @property
    def _title(self) -> str:
        return f"{self.model.name}: {self.recipe.kind} at {','.join(map(str, self.recipe.at))}"

    def _bar(self, bars: contextlib.ExitStack, found: Progress) -> OnStep:
        bar = step_bar(self._title, found.settings.steps, shown=self.shown, done=found.step)
        return bars.enter_context(bar)

    def _plan(self) -> tuple[FittingRows, FittingRows | None]:
        """Rows to train on, and rows of other documents for the classifiers, which share no text."""
        recipe = self.recipe
        shares = [JUDGING_SHARE, 1.0 - JUDGING_SHARE] if self.request.classifiers else [1.0]
        parts = [split_documents(work, shares, recipe.seed) for work in self.workloads]
        trained_on = plan_rows(
            self.model,
            [(work, part[-1]) for work, part in zip(self.workloads, parts, strict=True)],
            recipe.tokens,
            context=recipe.context,
            shown=self.shown,
            held_out_every=HELD_OUT_EVERY,
        )
        if not self.request.classifiers:
            return trained_on, None
        apart = [
            (work, without_text_of(work, part[0], trained_on.texts))
            for work, part in zip(self.workloads, parts, strict=True)
        ]
        count = min(CLASSIFIER_TOKENS, recipe.tokens // 4)
        judged_on = plan_rows(self.model, apart, count, context=recipe.context, shown=self.shown)
        return trained_on, judged_on

    def _key(self, plan: StatesPlan) -> str:
        """Of the rows whose states are kept, and of all else that decides what they are."""
        contexts = [
            (one.document, one.start, one.first_row, len(one.ids), one.generated)
            for one in plan.rows.contexts
        ]
        asked = to_json(replace(self.request, recipe=replace(self.recipe, minutes=None)))
        parts = (asked, contexts, plan.rows.held_out.tolist(), plan.layers, library_versions())
        return sha256_of_text(canonical_json(parts))

    def _states(self, plan: StatesPlan) -> CachedStates:
        key, folder = self._key(plan), self.folder / STATES
        states = read_states(folder, key)
        if states is None:
            plan.require_room(folder)
            with token_bar(
                f"{self.model.name}: hidden states", plan.rows.tokens, shown=self.shown
            ) as advance:
                states = write_states(self.model, plan, folder, key, advance)
        return states

    def _heads(
        self,
        reading: Reading,
        progress: Progress,
        trained_on: FittingRows,
        judged_on: FittingRows | None,
    ) -> ExitHeads:
        """The exits with all that goes with them. Nothing in them says how long anything took."""
        last = self.model.layers - 1
        recipe = to_json(replace(self.recipe, minutes=None, steps=progress.settings.steps))
        return complete_heads(
            self.model,
            self.workloads,
            TrainedReading(
                reading.lens,
                reading.mlp,
                {
                    **recipe,
                    "precision": progress.settings.precision,
                    "steps_taken": progress.step,
                    "stopped": progress.stopped,
                },
            ),
            trained_on,
            judged_on,
            exits=self.recipe.at,
            kv_maps=[exit for exit in self.recipe.at if exit < last] if self.request.kv_maps else [],
            short_list=self.request.short_list,
            context=self.recipe.context,
            seed=self.recipe.seed,
            progress=self.shown,
        )

    def _record(
        self,
        trainer: Trainer,
        progress: Progress,
        reading: Reading,
        plan: StatesPlan,
        heads: ExitHeads,
        seconds: Seconds,
    ) -> TrainingRecord:
        states, rows = trainer.states, plan.rows
        as_it_is = Evaluator(self.model, states.held_out).evaluate([_unchanged] * len(self.recipe.at))
        ridge = Reading(ridge_lens(states, trainer.device))
        return TrainingRecord(
            request=self.request,
            settings=progress.settings,
            rows=Rows(
                tokens=rows.tokens,
                documents=len(rows.held_out),
                held_out_documents=int(rows.held_out.sum()),
                fit=len(states.fit),
                held_out=len(states.held_out),
                states_bytes=plan.bytes,
            ),
            steps=progress.step,
            stopped=progress.stopped,
            seconds=seconds,
            floors=FLOORS,
            logit_lens=tuple(as_it_is),
            ridge_lens=tuple(trainer.evaluate_all(ridge)),
            trained=tuple(trainer.evaluate_all(reading)),
            history=tuple(progress.history),
            heads=heads.fingerprint,
            versions=library_versions(),
        )


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
