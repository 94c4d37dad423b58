"""One training in its folder, of any kind: what it reads, how it is gone on with, what it leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.files import canonical_json, sha256_of_text
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import EXITS_FILE, TRAINING_FILE, write_heads
from offramp.kit.typed import to_json
from offramp.models.model import Model
from offramp.tracing.fitting.fitting_documents import FittingRows, plan_rows, split_documents
from offramp.tracing.progress import say, step_bar
from offramp.tracing.request import library_versions
from offramp.training.folder import CHECKPOINT
from offramp.training.loop import OnStep, Overhead, Problem, Progress, TrainingLoop
from offramp.training.recipe import Recipe
from offramp.training.record import RECORD, Left, ReadRows, Seconds, Spent, TrainingIdentity, TrainingRecord
from offramp.workloads.packing import Context
from offramp.workloads.workload import Workload

HELD_OUT_EVERY = 6
"""One document of so many is held out from training."""

KEPT_BYTES = 1 << 30
"""States of sequences that are kept in memory."""


@dataclass(frozen=True)
class Prepared:
    """A problem whose text is read."""

    problem: Problem
    rows: FittingRows
    layers: Sequence[int]
    """At which the rows were read."""
    counted: ReadRows
    """The rows as the record has them."""
    reading: float
    """Seconds that this took, so far as it is part of what the training takes."""
    beside: Overhead
    """What its minutes go to beside steps."""
    finish: Callable[[Progress], tuple[ExitHeads | None, Left]]
    """Makes of where it ended what it leaves: heads, None where the model itself was trained and written."""


@dataclass(frozen=True)
class Job:
    """One training in its folder."""

    model: Model
    workloads: tuple[Workload, ...]
    request: TrainingIdentity
    folder: Path
    shown: bool
    """Whether progress is."""
    on_size: Callable[[int], object] | None
    """Told the bytes of hidden states on disk."""
    start: ExitHeads | None = None
    """The heads that it starts from, None for those that need none."""

    @property
    def recipe(self) -> Recipe:
        """How it trains."""
        return self.request.recipe

    @property
    def title(self) -> str:
        """In words, for progress bars."""
        return f"{self.model.name}: {self.recipe.kind} at {','.join(map(str, self.recipe.at))}"

    def plan(self, shares: Sequence[float] = (1.0,), tokens: int | None = None) -> FittingRows:
        """Sequences to train on, and held-out ones, of the last part of the documents that are for it.

        tokens: to read, all that are asked for if not given.
        """
        recipe = self.recipe
        return plan_rows(
            self.model,
            [(work, split_documents(work, shares, recipe.seed)[-1]) for work in self.workloads],
            recipe.tokens if tokens is None else tokens,
            context=recipe.context,
            shown=self.shown,
            held_out_every=HELD_OUT_EVERY,
            folder=self.folder,
        )

    def key(self, rows: FittingRows, layers: Sequence[int]) -> str:
        """Of the rows and layers that are read, and of all else that decides what is trained."""
        contexts = [
            (
                context.document,
                context.start,
                context.first_row,
                context.ids,
                context.next_token,
                context.generated,
            )
            for context in rows.contexts
        ]
        asked = to_json(replace(self.request, recipe=replace(self.recipe, minutes=None)))
        parts = (asked, contexts, rows.held_out.tolist(), layers, library_versions())
        return sha256_of_text(canonical_json(parts))

    def train(self, prepared: Prepared, earlier: Spent | None) -> tuple[ExitHeads | None, TrainingRecord]:
        """Train, or go on to the end; write what came of it, and the record last.

        earlier: what the trainings took that it began from. The heads are None where the model itself was
        trained.
        """
        key = self.key(prepared.rows, prepared.layers)
        loop = TrainingLoop(
            prepared.problem, self.recipe, self.model.name, self.folder / CHECKPOINT, key, prepared.beside
        )
        with contextlib.ExitStack() as bars:
            bars.enter_context(_frozen(self.model.hf))
            progress = loop.run(lambda progress: self._bar(bars, progress))
        if self.shown:
            last = prepared.problem.in_words(progress.history[-1].exits)
            say(f"{self.title}: {progress.stopped}; {last}")
        started = time.perf_counter()
        heads, left = prepared.finish(progress)
        seconds = Seconds(prepared.reading, progress.seconds, time.perf_counter() - started)
        record = TrainingRecord(
            **vars(left),
            request=self.request,
            settings=progress.settings,
            rows=prepared.counted,
            steps=progress.step,
            stopped=progress.stopped,
            seconds=seconds,
            history=tuple(progress.history),
            versions=library_versions(),
            earlier=earlier,
        )
        if heads is not None:
            write_heads(heads, self.folder / EXITS_FILE)
        RECORD.write(self.folder / TRAINING_FILE, record)
        return heads, record

    def _bar(self, bars: contextlib.ExitStack, progress: Progress) -> OnStep:
        bar = step_bar(self.title, progress.settings.steps, shown=self.shown, done=progress.step)
        return bars.enter_context(bar)

    def provenance(self, progress: Progress) -> dict[str, Any]:
        """What heads say of it: nothing that depends on how long anything took."""
        return {
            **to_json(replace(self.recipe, minutes=None, steps=progress.settings.steps)),
            "precision": progress.settings.precision,
            "steps_taken": progress.step,
            "stopped": progress.stopped,
        }


@contextlib.contextmanager
def _frozen(hf: Any) -> Iterator[None]:
    """No weight of the model takes a gradient for a while."""
    trained = [weight for weight in hf.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def sides(rows: FittingRows) -> tuple[list[Context], list[Context]]:
    """The sequences to train on, and those of held-out documents."""
    apart = [bool(rows.held_out[context.document]) for context in rows.contexts]
    fit, held_out = (
        [context for context, held in zip(rows.contexts, apart, strict=True) if held is side]
        for side in (False, True)
    )
    return fit, held_out


def first_row(context: Context) -> int:
    """The first position that is looked at: not that which decoding never lets leave."""
    return max(1, context.first_row)


def row_count(context: Context) -> int:
    """Positions that are looked at."""
    return len(context.ids) - first_row(context)


class KeptStates:
    """States of sequences, computed when first asked for; what there is no room for, each time again."""

    def __init__(self, compute: Callable[[int], tuple[Tensor, ...]], most_bytes: int = KEPT_BYTES) -> None:
        self._compute, self._left = compute, most_bytes
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def of(self, place: int) -> tuple[Tensor, ...]:
        """Those of the sequence at a place."""
        if place in self._kept:
            return self._kept[place]
        states = self._compute(place)
        size = sum(tensor.nbytes for tensor in states)
        if size <= self._left:
            self._kept[place] = states
            self._left -= size
        return states
