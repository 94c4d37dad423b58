"""`fit_heads`: a linear lens and classifiers for the exits of a model, from documents of some workloads."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitClassifier, ExitHeads, LinearLens
from offramp.tracing.fitted import describe_base
from offramp.tracing.fitting.capture import require_both_sides, require_one_stream
from offramp.tracing.fitting.classifier import (
    FittedClassifier,
    Samples,
    constant_classifier,
    fit_classifier,
    stack_exits,
)
from offramp.tracing.fitting.documents import (
    CLASSIFIER_SHARE,
    FittingRows,
    plan_rows,
    split_documents,
    without_text_of,
)
from offramp.tracing.fitting.kinds import ClassifierKind, choose_kinds
from offramp.tracing.fitting.lens import fit_lens, require_memory
from offramp.tracing.fitting.provenance import describe_fitting
from offramp.tracing.fitting.readings import Readings, take_readings
from offramp.tracing.fitting.shortlist import choose_shortlist
from offramp.tracing.fitting.sizes import CLASSIFIER_TOKENS, FITTING_TOKENS
from offramp.tracing.plan import usable_context
from offramp.tracing.progress import token_bar
from offramp.tracing.request import parse_exits
from offramp.workloads.packing import require_sizes
from offramp.workloads.registry import load_workload
from offramp.workloads.shared_text import Sketch
from offramp.workloads.workload import Workload


def fit_heads(
    model: Model,
    workloads: str | Workload | Sequence[str | Workload],
    *,
    tokens: int = FITTING_TOKENS,
    exits: str | Sequence[int] = "all",
    lens: bool = True,
    classifiers: bool | Sequence[str] = True,
    candidate_exit: int | None = None,
    context: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> ExitHeads:
    """Fit a linear lens and classifiers per exit below L, on documents of the workloads' later half.

    tokens: over all workloads; with a lens and classifiers, a quarter (CLASSIFIER_TOKENS at most) is for the
    classifiers, from documents that the lens does not see. classifiers: all, none, or names of
    `offramp.tracing.facts.HEAD_FACTS`. candidate_exit: where `candidate_score` takes its tokens; by default
    the exit nearest to half of the depth. One document of three is held out: there the lens's penalty is
    picked and the classifiers are judged.
    Memory: 32 bytes x hidden^2 per exit for the lens, hidden states of the classifiers' tokens in a temporary
    file beyond 64 MB.

    Raises InputError for options that do not fit the model or the workloads, ModelError for a model whose
    layers pass on more than one hidden state.
    """
    kinds = choose_kinds(classifiers)
    if not lens and not kinds:
        raise InputError("neither a lens nor a classifier is to be fitted", fix="ask for one of them")
    require_sizes(tokens=tokens, context=context)
    below = parse_exits(exits if isinstance(exits, str) else list(exits), model.layers)[:-1]
    if not below:
        raise InputError(
            "there is no exit below the last layer to fit", where="--exits", fix="write --exits all"
        )
    candidate = _candidate_exit(candidate_exit, below, model.layers) if _wants_candidates(kinds) else None
    job = _Job(
        model=model,
        workloads=_distinct(workloads),
        exits=below,
        candidate_exit=candidate,
        context=context,
        seed=seed,
        shown=sys.stderr.isatty() if progress is None else progress,
    )
    require_one_stream(model)
    if lens:
        require_memory(model, below)
    return job.run(tokens, lens, kinds)


@dataclass(frozen=True)
class _Job:
    """Heads being fitted. exits: below L."""

    model: Model
    workloads: tuple[Workload, ...]
    exits: tuple[int, ...]
    candidate_exit: int | None
    context: int | None
    seed: int
    shown: bool

    def run(self, tokens: int, lens: bool, kinds: Sequence[ClassifierKind]) -> ExitHeads:
        """Plan, fit the lens, then the classifiers through it."""
        lens_rows, classifier_rows = self._plan(tokens, lens, bool(kinds))
        fitted_lens = None
        if lens_rows is not None:
            with self._bar("linear lens", lens_rows.tokens) as advance:
                fitted_lens = fit_lens(
                    self.model, lens_rows.contexts, lens_rows.held_out, self.exits, advance
                )
        # From documents that the classifiers do not see, where there are such.
        listed = lens_rows or classifier_rows
        assert listed is not None, "a lens or a classifier is fitted"
        shortlist = choose_shortlist(listed, self.model.shape.vocabulary_size)
        fitted: dict[str, ExitClassifier] = {}
        if classifier_rows is not None:
            fitted = self._classifiers(classifier_rows, fitted_lens, kinds, shortlist)
        used = [rows for rows in (lens_rows, classifier_rows) if rows is not None]
        return ExitHeads(
            model=describe_base(self.model),
            exits=self.exits,
            lens=fitted_lens,
            classifiers=fitted,
            shortlist=shortlist,
            candidate_exit=self.candidate_exit,
            documents={
                work.fingerprint: tuple(id for rows in used for id in rows.ids[work.fingerprint])
                for work in self.workloads
            },
            texts=self._texts(used),
            provenance={
                "seed": self.seed,
                "context": usable_context(self.model, self.context),
                **describe_fitting(self.workloads, lens_rows, classifier_rows),
            },
        )

    def _texts(self, used: Sequence[FittingRows]) -> tuple[Sketch, ...]:
        """Sketches of all documents used, in the order of `ExitHeads.documents`."""
        by_workload: dict[str, list[Sketch]] = {work.fingerprint: [] for work in self.workloads}
        for rows in used:
            texts = iter(rows.texts)
            for workload, ids in rows.ids.items():
                by_workload[workload] += itertools.islice(texts, len(ids))
        return tuple(text for texts in by_workload.values() for text in texts)

    def _plan(
        self, tokens: int, lens: bool, classifiers: bool
    ) -> tuple[FittingRows | None, FittingRows | None]:
        """Rows for the lens and rows for the classifiers, of different documents that share no text."""
        share = CLASSIFIER_SHARE if lens else 1.0
        shares = [*([share] if classifiers else []), *([1.0 - share] if lens else [])]
        parts = [split_documents(work, shares, self.seed) for work in self.workloads]
        classifier_tokens = min(CLASSIFIER_TOKENS, tokens // 4 if lens else tokens) if classifiers else 0

        def rows(place: int, count: int, others: Sequence[Sketch] = ()) -> FittingRows:
            named = [(work, part[place]) for work, part in zip(self.workloads, parts, strict=True)]
            if others:
                named = [(work, without_text_of(work, documents, others)) for work, documents in named]
            return plan_rows(self.model, named, count, context=self.context, shown=self.shown)

        lens_rows = rows(-1, tokens - classifier_tokens) if lens else None
        seen = () if lens_rows is None else lens_rows.texts
        return lens_rows, rows(0, classifier_tokens, seen) if classifiers else None

    def _classifiers(
        self,
        rows: FittingRows,
        lens: LinearLens | None,
        kinds: Sequence[ClassifierKind],
        shortlist: NDArray[np.int32],
    ) -> dict[str, ExitClassifier]:
        place = None if self.candidate_exit is None else self.exits.index(self.candidate_exit)
        with self._bar("reading exits", rows.tokens) as advance:
            tokens = torch.from_numpy(shortlist.astype(np.int64))
            readings = take_readings(self.model, rows.contexts, self.exits, lens, place, tokens, advance)
        held_out = rows.held_out[readings.document]
        require_both_sides(self.model, int((~held_out).sum()), int(held_out.sum()))
        found: dict[str, list[FittedClassifier]] = {kind.name: [] for kind in kinds}
        try:
            with self._bar("classifiers", rows.tokens) as advance:
                for index in range(len(self.exits)):
                    for kind in kinds:
                        found[kind.name].append(self._classifier(kind, readings, index, held_out))
                    advance(rows.tokens // len(self.exits))
        finally:
            readings.states.close()
        return {name: stack_exits(classifiers) for name, classifiers in found.items()}

    def _classifier(
        self, kind: ClassifierKind, readings: Readings, index: int, held_out: np.ndarray
    ) -> FittedClassifier:
        labels = kind.labels(readings, index)
        if (
            kind.after_candidates
            and readings.candidate_index is not None
            and index <= readings.candidate_index
        ):
            width = kind.width(self.model.shape.hidden_size)
            return constant_classifier(width, labels[~held_out], network=kind.network)
        samples = Samples(kind.features(readings, index), labels, readings.document)
        return fit_classifier(samples[~held_out], samples[held_out], network=kind.network, seed=self.seed)

    def _bar(self, title: str, tokens: int) -> Any:
        return token_bar(f"{self.model.name}: {title}", tokens, shown=self.shown)


def _distinct(workloads: str | Workload | Sequence[str | Workload]) -> tuple[Workload, ...]:
    """The workloads, each once."""
    named = [workloads] if isinstance(workloads, (str, Workload)) else workloads
    loaded = [load_workload(work) if isinstance(work, str) else work for work in named]
    if not loaded:
        raise InputError("there is no workload to fit on", fix="give one, such as prose")
    return tuple({work.fingerprint: work for work in loaded}.values())


def _wants_candidates(kinds: Sequence[ClassifierKind]) -> bool:
    return any(kind.after_candidates for kind in kinds)


def _candidate_exit(wanted: int | None, exits: Sequence[int], layers: int) -> int:
    """The candidate exit: the one asked for, or the one nearest to half of the depth."""
    if wanted is None:
        return min(exits, key=lambda exit: abs(exit - layers / 2))
    if wanted not in exits:
        raise InputError(
            f"the candidate exit {wanted} is not among the exits to fit",
            where="--candidate-exit",
            fix="choose among " + ", ".join(str(exit) for exit in exits),
        )
    return wanted
