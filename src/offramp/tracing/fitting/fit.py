"""`fit_heads`: a linear lens, classifiers and K,V maps for the exits of a model, from some workloads.

`complete_heads` does the same for exits whose reading was trained: all but the lens.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.defaults import CANDIDATES, SEED, SHORTLIST
from offramp.errors import InputError
from offramp.heads.at_work import describe_base
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.parts import Classifier, ExitReading, Lens, Weights, stacked
from offramp.kit.arguments import checked
from offramp.kit.code import code_of
from offramp.kit.numbers import Count, FittingSeed
from offramp.kit.rules import Beside
from offramp.models.model import Model, in_evaluation
from offramp.tracing.fitting.classifiers import (
    KINDS,
    ClassifierKind,
    ClassifierName,
    Samples,
    choose_kinds,
    constant_classifier,
    fit_classifier,
)
from offramp.tracing.fitting.fitting_documents import (
    CLASSIFIER_SHARE,
    FittingRows,
    plan_rows,
    seen_by_all,
    split_documents,
    without_text_of,
)
from offramp.tracing.fitting.fitting_inputs import (
    FIRST_POSITION,
    Readings,
    add_up,
    require_both_sides,
    require_one_stream,
    take_readings,
)
from offramp.tracing.fitting.maps import (
    AUTO,
    FittingMemory,
    fitting_memory,
    map_sums,
    parse_map_exits,
    solve_maps,
)
from offramp.tracing.fitting.ridge import lens_sums, solve_lens
from offramp.tracing.plan import usable_context
from offramp.tracing.progress import token_bar
from offramp.tracing.request import FITTING_TOKENS, MODEL_CODE, Rank, library_versions, parse_exits
from offramp.workloads.packing import Context
from offramp.workloads.registry import distinct_workloads
from offramp.workloads.shared_text import Sketch
from offramp.workloads.workload import Workload

CLASSIFIER_TOKENS = 4096
"""Tokens for the classifiers at most: every exit is read out for them, and their states are kept."""


@checked
@in_evaluation
def fit_heads(
    model: Model,
    workloads: str | Workload | Sequence[str | Workload],
    *,
    tokens: Count = FITTING_TOKENS,
    exits: str | Sequence[int] = "all",
    lens: Annotated[
        bool,
        Beside(
            lambda lens, given: lens or given.classifiers or given.kv_maps is not None,
            "on where neither classifiers nor K,V maps are fitted",
            "ask for one of them",
        ),
    ] = True,
    classifiers: bool | Sequence[ClassifierName] = True,
    candidate_exit: Count | None = None,
    kv_maps: Sequence[int] | None = None,
    kv_rank: Rank = AUTO,
    short_list: Count = SHORTLIST,
    context: Count | None = None,
    seed: FittingSeed = SEED,
    progress: bool | None = None,
    on_memory: Callable[[FittingMemory], object] | None = None,
) -> ExitHeads:
    """Fit a linear lens, classifiers and K,V maps, on documents of the workloads' later half.

    tokens: over all workloads; with a lens or maps, and classifiers, a quarter (CLASSIFIER_TOKENS at most) is
    for the classifiers, from documents that the others do not see. exits: of lens and classifiers.
    classifiers: all, none, or names of `offramp.tracing.facts.HEAD_FACTS`. candidate_exit: where
    `candidate_score` takes its tokens; by default the exit nearest to half of the depth. kv_maps: exits that
    get K,V maps, for the KV strategy "mapped". kv_rank: of these, "full" for whole maps, "auto" for the
    smallest rank that explains nearly as much (see `offramp.tracing.fitting.maps.solve_maps`). short_list: of
    how many tokens, those that follow most often: fewer make a cheaper head, more keep more answers. One
    document of three is held out: there penalties and ranks are picked and the classifiers are judged.
    Sums are taken on the output head's device, and solved on the processor. They take 32 bytes x hidden^2 per
    exit for the lens, 16 x hidden^2 per mapped exit and each of its deeper layers for the maps; hidden states
    of the classifiers' tokens lie in a temporary file beyond 64 MB (of an accelerator: a quarter of its own).
    on_memory: told what lens and maps take before anything is fitted.

    Raises InputError for options that do not fit the model or the workloads, or sums that do not fit into
    memory; ModelError for a model whose layers pass on more than one hidden state.
    """
    kinds = choose_kinds(classifiers)
    check_short_list(short_list, model.shape.vocabulary_size)
    below = parse_exits(exits if isinstance(exits, str) else list(exits), model.layers)[:-1]
    if not below:
        raise InputError(
            "there is no exit below the last layer to fit",
            where="exits= (--exits)",
            fix='write exits="all" (--exits all)'
            if model.layers > 1
            else "choose a model of two layers at least: one layer has no exit",
        )
    candidate = (
        _candidate_exit(candidate_exit, below, model.layers)
        if any(kind.after_candidates for kind in kinds)
        else None
    )
    job = _Job(
        model=model,
        workloads=distinct_workloads(workloads),
        exits=below if lens or kinds else (),
        lens=lens,
        kinds=kinds,
        map_exits=() if kv_maps is None else parse_map_exits(kv_maps, model.layers),
        candidate_exit=candidate,
        how=_How(kv_rank, short_list, context, seed, progress),
    )
    require_one_stream(model)
    job.memory.require(model.name, model.stack.head_device)
    if on_memory is not None:
        on_memory(job.memory)
    return job.run(tokens)


@dataclass(frozen=True)
class TrainedReading:
    """How the exits of some heads are read, and how that was trained: `ExitHeads.provenance["trained"]`."""

    reading: ExitReading[Weights]
    trained: Mapping[str, Any]


@in_evaluation
def complete_heads(
    model: Model,
    workloads: Sequence[Workload],
    reading: TrainedReading,
    trained_on: FittingRows,
    judged_on: FittingRows | None,
    *,
    exits: Sequence[int],
    kv_maps: Sequence[int] = (),
    kv_rank: Rank = AUTO,
    short_list: Count = SHORTLIST,
    context: Count | None = None,
    seed: FittingSeed = SEED,
    progress: bool | None = None,
) -> ExitHeads:
    """Heads of exits that are read through what was trained: with classifiers, a short list and K,V maps.

    trained_on: rows that training read; the K,V maps are fitted on them. judged_on: rows of other documents,
    for the classifiers; None for no classifiers. exits: below L, the first axis of the reading's arrays.

    Raises what `fit_heads` raises.
    """
    kinds = tuple(KINDS.values()) if judged_on is not None else ()
    if len(exits) == 1:  # candidates of the only exit say nothing of a later one
        kinds = tuple(kind for kind in kinds if not kind.after_candidates)
    with_candidates = any(kind.after_candidates for kind in kinds)
    job = _Job(
        model=model,
        workloads=tuple(workloads),
        exits=tuple(exits),
        lens=False,
        kinds=kinds,
        map_exits=tuple(kv_maps),
        candidate_exit=_candidate_exit(None, exits, model.layers) if with_candidates else None,
        how=_How(kv_rank, short_list, context, seed, progress),
        trained=reading,
    )
    job.memory.require(model.name, model.stack.head_device)
    return job.finish(trained_on, judged_on)


class _How(NamedTuple):
    """How heads are fitted, whichever exits they are of; `fit_heads` says what each means."""

    kv_rank: Rank
    short_list: int
    context: int | None
    seed: int
    progress: bool | None

    @property
    def shown(self) -> bool:
        """Whether progress is."""
        return sys.stderr.isatty() if self.progress is None else self.progress


@dataclass(frozen=True)
class _Job:
    """Heads being fitted. exits: below L, of lens and classifiers. map_exits: of the K,V maps. trained: a
    reading that the exits have already, in the place of a lens.
    """

    model: Model
    workloads: tuple[Workload, ...]
    exits: tuple[int, ...]
    lens: bool
    kinds: tuple[ClassifierKind, ...]
    map_exits: tuple[int, ...]
    candidate_exit: int | None
    how: _How
    trained: TrainedReading | None = None

    @property
    def memory(self) -> FittingMemory:
        """What the sums of lens and maps take."""
        shape = self.model.shape
        return fitting_memory(
            shape.hidden_size,
            self.model.layers,
            len(self.exits) * self.lens,
            self.map_exits,
            self.how.kv_rank,
        )

    def run(self, tokens: int) -> ExitHeads:
        """Plan, fit the lens and the maps, then the classifiers through the lens."""
        return self.finish(*self._plan(tokens))

    def finish(self, linear_rows: FittingRows | None, classifier_rows: FittingRows | None) -> ExitHeads:
        """Fit on rows that are planned: for lens and maps, and for the classifiers."""
        lens, maps = (None, None) if linear_rows is None else self._linear(linear_rows)
        reading = ExitReading(lens) if self.trained is None else self.trained.reading
        lens_rows = linear_rows if reading.lens is not None else None
        # From documents that the classifiers do not see, where there are such.
        listed = lens_rows or classifier_rows
        vocabulary = self.model.shape.vocabulary_size
        shortlist = (
            None if listed is None else frequent_tokens(listed.contexts, vocabulary, self.how.short_list)
        )
        fitted: dict[str, Classifier[Weights]] = {}
        if classifier_rows is not None and shortlist is not None:
            fitted = self._classifiers(classifier_rows, reading, shortlist)
        used = [rows for rows in (lens_rows, classifier_rows) if rows is not None]
        documents, texts = seen_by_all(*((rows.ids, rows.texts) for rows in used))
        return ExitHeads(
            model=describe_base(self.model),
            exits=self.exits,
            lens=reading.lens,
            classifiers=fitted,
            shortlist=shortlist,
            candidate_exit=self.candidate_exit,
            documents=documents,
            texts=texts,
            provenance=self._provenance(lens=lens_rows, classifiers=classifier_rows)
            | ({} if self.trained is None else {"trained": dict(self.trained.trained)}),
            kv_maps=maps,
            mlp=reading.mlp,
        )

    def _linear(self, rows: FittingRows) -> tuple[Lens[Weights] | None, KeyValueMaps | None]:
        """The lens and the maps, from one pass over the same rows."""
        hidden, layers = self.model.shape.hidden_size, self.model.layers
        device = self.model.stack.head_device
        of_lens = lens_sums(hidden, layers, self.exits, device) if self.lens else None
        of_maps = map_sums(hidden, layers, self.map_exits, device) if self.map_exits else None
        sums = [of_part for of_part in (of_lens, of_maps) if of_part is not None]
        if not sums:
            return None, None
        title = " and ".join([*["linear lens"] * self.lens, *["K,V maps"] * bool(self.map_exits)])
        with self._bar(title, rows.tokens) as advance:
            add_up(self.model, rows, sums, advance)
        maps = None
        if of_maps is not None:
            documents, texts = seen_by_all((rows.ids, rows.texts))
            maps = KeyValueMaps(
                maps=solve_maps(of_maps, self.how.kv_rank),
                documents=documents,
                texts=texts,
                provenance=self._provenance(kv_maps=rows) | {"rank": self.how.kv_rank},
            )
        return None if of_lens is None else solve_lens(of_lens), maps

    def _provenance(self, **rows: FittingRows | None) -> dict[str, Any]:
        return {
            "seed": self.how.seed,
            "context": usable_context(self.model, self.how.context),
            **describe_fitting(self.workloads, rows),
        }

    def _plan(self, tokens: int) -> tuple[FittingRows | None, FittingRows | None]:
        """Rows for lens and maps, and rows for the classifiers, of different documents that share no text."""
        linear, classifiers = self.lens or bool(self.map_exits), bool(self.kinds)
        share = CLASSIFIER_SHARE if linear else 1.0
        shares = [*([share] if classifiers else []), *([1.0 - share] if linear else [])]
        parts = [split_documents(work, shares, self.how.seed) for work in self.workloads]
        classifier_tokens = min(CLASSIFIER_TOKENS, tokens // 4 if linear else tokens) if classifiers else 0

        def rows(place: int, count: int, others: Sequence[Sketch] = ()) -> FittingRows:
            named = [(work, part[place]) for work, part in zip(self.workloads, parts, strict=True)]
            if others:
                named = [(work, without_text_of(work, documents, others)) for work, documents in named]
            return plan_rows(self.model, named, count, context=self.how.context, shown=self.how.shown)

        linear_rows = rows(-1, tokens - classifier_tokens) if linear else None
        seen = () if linear_rows is None else linear_rows.texts
        return linear_rows, rows(0, classifier_tokens, seen) if classifiers else None

    def _classifiers(
        self,
        rows: FittingRows,
        reading: ExitReading[Weights],
        shortlist: NDArray[np.int32],
    ) -> dict[str, Classifier[Weights]]:
        place = None if self.candidate_exit is None else self.exits.index(self.candidate_exit)
        with self._bar("reading exits", rows.tokens) as advance:
            tokens = torch.from_numpy(shortlist.astype(np.int64))
            readings = take_readings(self.model, rows.contexts, self.exits, reading, place, tokens, advance)
        held_out, decided = rows.held_out[readings.document], readings.position >= FIRST_POSITION
        sides = decided & ~held_out, decided & held_out
        require_both_sides(self.model, int(sides[0].sum()), int(sides[1].sum()))
        found: dict[str, list[Classifier[Weights]]] = {kind.name: [] for kind in self.kinds}
        try:
            with self._bar("classifiers", rows.tokens) as advance:
                for index in range(len(self.exits)):
                    for kind in self.kinds:
                        found[kind.name].append(self._classifier(kind, readings, index, sides))
                    advance(rows.tokens // len(self.exits))
        finally:
            readings.states.close()
        return {name: stacked(classifiers) for name, classifiers in found.items()}

    def _classifier(
        self, kind: ClassifierKind, readings: Readings, index: int, sides: tuple[np.ndarray, np.ndarray]
    ) -> Classifier[Weights]:
        """One classifier at one exit. sides: bool [rows], those to fit on and those to judge on."""
        samples = Samples(kind.features(readings, index), kind.labels(readings, index), readings.document)
        candidate = readings.candidate_index
        if kind.after_candidates and candidate is not None and index <= candidate:
            fit = samples[sides[0]]
            return constant_classifier(fit.x.shape[1], fit.y, network=kind.network)
        return fit_classifier(samples[sides[0]], samples[sides[1]], network=kind.network, seed=self.how.seed)

    def _bar(self, title: str, tokens: int) -> Any:
        return token_bar(f"{self.model.name}: {title}", tokens, shown=self.how.shown)


def describe_fitting(workloads: Sequence[Workload], rows: Mapping[str, FittingRows | None]) -> dict[str, Any]:
    """Tokens, documents and workloads that fitting read; code, threads and libraries that it ran with.

    rows: that each part was fitted on, by its name; None for a part that is not there.
    """
    keys = ("name", "fingerprint", "mode", "licence", "source")
    return {
        **{part: _describe_rows(of_part) for part, of_part in rows.items()},
        "workloads": [{key: getattr(work, key) for key in keys} for work in workloads],
        "threads": torch.get_num_threads(),
        "code": code_of(__name__, MODEL_CODE),
        "versions": library_versions()
        | {name: importlib.metadata.version(name) for name in ("scikit-learn", "scipy")},
    }


def _describe_rows(rows: FittingRows | None) -> dict[str, int] | None:
    if rows is None:
        return None
    return {
        "tokens": rows.tokens,
        "documents": len(rows.held_out),
        "held_out_documents": int(rows.held_out.sum()),
    }


def check_short_list(listed: int, vocabulary: int) -> None:
    """Refuse a short list that is none. Raises InputError."""
    if listed != SHORTLIST and not CANDIDATES <= listed <= vocabulary:
        raise InputError(
            f"a short list of {listed:,} tokens is not possible",
            where="short_list= (--short-list)",
            fix=f"give {CANDIDATES} to {vocabulary:,}, the model's vocabulary",
        )


def _candidate_exit(wanted: int | None, exits: Sequence[int], layers: int) -> int:
    """The candidate exit: the one asked for, or the one nearest to half of the depth."""
    if wanted is None:
        return min(exits, key=lambda exit: abs(exit - layers / 2))
    if wanted not in exits:
        raise InputError(
            f"the candidate exit {wanted} is not among the exits to fit",
            where="candidate_exit= (--candidate-exit)",
            fix="choose among " + ", ".join(str(exit) for exit in exits),
        )
    return wanted


def frequent_tokens(
    contexts: Sequence[Context], vocabulary_size: int, listed: int = SHORTLIST
) -> NDArray[np.int32]:
    """Those that follow most often in some contexts, for heads to bring: int32, ascending. listed: how
    many.

    Tokens that never follow fill it up from the lowest id: a BPE vocabulary gives the frequent ones low ids.
    """
    followed = [token for context in contexts for token in context.next_tokens]
    counts = np.bincount(np.array(followed, dtype=np.int64), minlength=vocabulary_size)
    frequent = np.argsort(-counts, kind="stable")[: min(listed, vocabulary_size)]
    return np.sort(frequent).astype(np.int32)
