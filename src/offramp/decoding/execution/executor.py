"""A model at hand for the tuner: reruns on the trace's texts, and documents decoded and judged."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.decoding.engine.build import engine_of
from offramp.decoding.execution.execution import (
    ROWS_TOGETHER,
    Execution,
    ExecutionStore,
    execute,
    request_of,
    rows_together,
)
from offramp.decoding.judging import Judge
from offramp.decoding.openings import Opening, Openings, choose_openings, traced_workload
from offramp.decoding.options import DecodingOptions, HeadsSource, read_heads_source
from offramp.decoding.rerun.rerunner import Rerunner
from offramp.decoding.rerun.trace_sequences import require_model, require_reference, with_maps_of
from offramp.decoding.written import answer_limit, quality_of
from offramp.defaults import SEED
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.models.model import Model, all_evaluating
from offramp.policies.binding import OF_HEADS, require_heads
from offramp.policies.decisions import task_of
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.kv import MAPPED, PROPAGATE, STRATEGIES
from offramp.policies.policy import ExitPolicy
from offramp.scoring.documents import document_rows
from offramp.scoring.text_quality import TextQuality, not_counted
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import Losses
from offramp.tuning.fixed_sequence import Rerun
from offramp.tuning.floor import REFERENCE, FloorKind
from offramp.tuning.splits import split_roles
from offramp.tuning.tune import AUTO
from offramp.workloads.shared_text import sketches_of, write_sketch
from offramp.workloads.workload import Workload

REPLAYED = "replay, exact K and V"


@dataclass(eq=False, repr=False)
class ModelExecutor:
    """An `offramp.tuning.fixed_sequence.Executor`, by a model, its openings and kept executions."""

    model: Model
    trace: Trace
    openings: Openings
    store: ExecutionStore
    _: KW_ONLY
    workload: Workload
    heads: ExitHeads | None
    strategies: tuple[str, ...]
    """K,V strategies to try."""
    prompt_tokens: int | None
    """Of an opening, None for whole prompts."""
    new_tokens: int
    reference: Model | None = None
    """Whose choices what is decoded is held against, None for the full model's own."""
    seed: int = SEED
    """Of intervals."""
    _rerunners: dict[tuple[int, ...], Rerunner] = field(init=False, default_factory=dict)
    _reruns: dict[tuple[str, str, tuple[int, ...]], Rerun] = field(init=False, default_factory=dict)
    _rows: dict[str, int | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._judge = Judge(self.reference or self.model)
        self._engine = engine_of(self.model)

    @property
    def kind(self) -> FloorKind:
        """The floor that its losses are of."""
        return "agreement" if self.reference is None else REFERENCE

    @functools.cached_property
    def _longest(self) -> int:
        """Tokens of the longest opening."""
        return max((len(opening.ids) for opening in self.openings.certify), default=1)

    @property
    def documents(self) -> int:
        """Documents at hand to certify on."""
        return len(self.openings.certify)

    @property
    def left_out(self) -> str:
        """Documents that give no opening, in words."""
        return ", ".join(f"{count} left out: {why}" for why, count in self.openings.left_out.items())

    def certified_on(self, documents: int) -> dict[str, str]:
        """The first certify documents, in the drawn order: sketches of their texts by their ids."""
        ids = [opening.document for opening in self.openings.certify[:documents]]
        return dict(zip(ids, map(write_sketch, sketches_of(self.workload, ids)), strict=True))

    def can(self, policy: ExitPolicy, kv: str) -> bool:
        """Whether the model can decode with a policy and a strategy.

        Thresholds do not matter: of policies that differ in nothing else, it is enough to ask for one.
        """
        return self._rows_of(self._options(policy, kv)) is not None

    def rerun(self, policy: ExitPolicy, kv: str, documents: NDArray[np.int64]) -> Rerun:
        """The policy on some of the trace's documents, their prompts (BOS, or what is asked) run whole.

        Kept, so that several floors share what they rerun.
        """
        places = tuple(sorted(int(place) for place in documents))
        key = (str(policy), kv, places)
        if key not in self._reruns:
            self._reruns[key] = self._rerun(policy, kv, places)
        return self._reruns[key]

    def _rerun(self, policy: ExitPolicy, kv: str, places: tuple[int, ...]) -> Rerun:
        if places not in self._rerunners:
            held = self.trace.subset(np.array(places, dtype=np.int64))
            self._rerunners[places] = Rerunner(self.model, held, heads=self.heads, workload=self.workload)
        rerunner = self._rerunners[places]
        held, found = rerunner.trace, rerunner.run(policy, kv)
        rows = np.flatnonzero(found.decided)
        reference = held.reference_top1
        return Rerun(
            trace=held.at_rows(rows),
            decisions=found.decisions.at_rows(rows),
            losses=_mean_loss(held, ~found.agrees, found.answered),
            free=found.how == REPLAYED,
            reference_losses=None
            if reference is None
            else _mean_loss(held, found.top1 != reference, found.answered),
        )

    def losses(self, policy: ExitPolicy, kv: str, first: int, last: int) -> Losses:
        """Executed losses of the certify documents number first .. last - 1: float64 [last - first]."""
        return _losses(self.executions(policy, kv, self.openings.certify, first, last))

    def exits(self, policy: ExitPolicy, kv: str, documents: int) -> list[tuple[int, ...]]:
        """Where the tokens of each answer left, of the first certify documents."""
        return [one.exits for one in self.executions(policy, kv, self.openings.certify, 0, documents)]

    def fresh_losses(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> Losses:
        """Executed losses of report documents, and of certify documents after those that were looked at."""
        report = self.executions(policy, kv, self.openings.report, 0, most)
        last = min(seen + most - len(report), self.documents)
        return _losses([*report, *self.executions(policy, kv, self.openings.certify, seen, last)])

    def text_quality(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> TextQuality | None:
        """The answers to at most so many documents against the texts that were to be written.

        Of the policy and of the full model, which decodes the same ones; None where no document says what is
        to be written, or there is none. Report documents come first, then those to certify on that were not
        looked at, then those that were. seen: how many of these.
        """
        reads = self.workload.reads
        if reads is None:
            return None
        if (unknown := not_counted(reads, self.new_tokens)) is not None:
            return unknown
        report, certify = self.openings.report, self.openings.certify
        spans = [(report, 0, len(report)), (certify, seen, len(certify)), (certify, 0, seen)]

        def decoded(policy: ExitPolicy, kv: str) -> list[Execution]:
            found: list[Execution] = []
            for openings, first, last in spans:
                last = min(last, first + most - len(found))
                found += self.executions(policy, kv, openings, first, last) if last > first else []
            return found

        # No layer is skipped: the usual strategy, so that policies share the full model's answers.
        plain = PROPAGATE.name if self.can(PLAIN_DECODING, PROPAGATE.name) else kv
        full, own = decoded(PLAIN_DECODING, plain), decoded(policy, kv)
        if not own:
            return None
        texts = {document.id: document.text for document in self.workload.documents}
        return quality_of(
            self.model,
            reads,
            [texts[execution.document] for execution in own],
            [execution.answer for execution in full],
            [execution.answer for execution in own],
            new_tokens=self.new_tokens,
            seed=self.seed,
        )

    def executions(
        self, policy: ExitPolicy, kv: str, openings: Sequence[Opening], first: int, last: int
    ) -> list[Execution]:
        """Documents number first .. last - 1 of some openings decoded, or read where that was done before.

        They are decoded in groups that do not depend on which of them are asked for.
        """
        found: list[Execution] = []
        last, options = min(last, len(openings)), self._options(policy, kv)
        for start in range(first - first % ROWS_TOGETHER, last, ROWS_TOGETHER):
            group = self._group(options, openings[start : start + ROWS_TOGETHER])
            found += group[max(first - start, 0) : last - start]
        return found

    def _group(self, options: DecodingOptions, openings: Sequence[Opening]) -> tuple[Execution, ...]:
        rows = self._rows_of(options)
        assert rows is not None, "asked whether it can"
        request = request_of(self.model, options, openings, rows=rows, reference=self.reference)
        return self.store.get_or_make(
            request,
            lambda: execute(self.model, openings, options, self._judge, rows=rows),
        )

    def _options(self, policy: ExitPolicy, kv: str) -> DecodingOptions:
        own = policy.for_task(task_of(self.trace))
        return DecodingOptions(own, kv, self.heads, new_tokens=self.new_tokens)

    def _rows_of(self, options: DecodingOptions) -> int | None:
        """Documents decoded side by side, None for what cannot be decoded."""
        key = options.name
        if key not in self._rows:
            tokens = self._longest + self.new_tokens
            try:
                self._rows[key] = rows_together(self.model, options, tokens, self._engine)
            except InputError:
                self._rows[key] = None
        return self._rows[key]


def _losses(executions: Sequence[Execution]) -> Losses:
    return np.array([execution.loss for execution in executions], dtype=np.float64)


def _mean_loss(trace: Trace, lost: NDArray[np.bool_], answered: NDArray[np.bool_]) -> Losses:
    """Share of each document's new tokens that were lost: float64 [documents], those that have any."""
    rows = document_rows(trace)
    count = rows.sums(answered)
    some = count > 0
    return np.asarray(rows.sums(lost & answered)[some] / count[some], dtype=np.float64)


@contextlib.contextmanager
def opened_executor(
    model: Model,
    trace: Trace,
    *,
    kv: str,
    heads: HeadsSource,
    workload: Workload | None,
    prompt_tokens: int,
    new_tokens: int,
    folder: Path | None,
    seed: int,
    reference: Model | None = None,
) -> Iterator[ModelExecutor]:
    """What the tuner asks a model by; arguments as `offramp.decoding.execution.tune.tune` takes them.

    Raises InputError for what does not belong to the trace, or a strategy that is unknown.
    """
    with all_evaluating(model, reference or model):
        model.require_loaded("executing policies")
        require_model(model, trace)
        if reference is not None:
            reference.require_loaded("judging what is decoded")
            require_reference(reference.identity.fingerprint, reference.dtype, trace)
        if trace.request.get("dtype") != model.dtype:
            raise InputError(
                f"the trace is of this model in {trace.request.get('dtype')}, not in {model.dtype}",
                where=f"model= for {trace.folder or 'the trace'}",
                fix="load the model in the trace's dtype, or trace again",
            )
        fitted = read_heads_source(heads)
        require_heads(trace, fitted)
        _require_facts(trace, fitted)
        trace = with_maps_of(trace, fitted)
        strategies = strategies_of(kv)
        work = traced_workload(trace, workload)
        new_tokens = answer_limit(model, work, new_tokens)
        abilities = engine_of(model).abilities  # refuses a model that cannot be driven layer by layer
        for ability in ("never_exit", *STRATEGIES, "lockstep", "rebatch"):
            abilities.reason(ability)  # tried now, and not in the seconds that are given to a floor
        openings = choose_openings(
            model,
            trace,
            work,
            split_roles(trace, seed),
            seed=seed,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            heads=fitted,
        )
        with ExecutionStore.open(folder) as store:
            yield ModelExecutor(
                model,
                trace,
                openings,
                store,
                workload=work,
                heads=fitted,
                strategies=strategies,
                prompt_tokens=None if work.decoded_whole else prompt_tokens,
                new_tokens=new_tokens,
                reference=reference,
                seed=seed,
            )


def strategies_of(kv: str) -> tuple[str, ...]:
    """The K,V strategies to choose from: all that have a price and may lose something, or the one named.

    The one that maps comes first: where there are maps it loses less than `propagate` for next to nothing,
    and reruns end when their time is used up.

    Raises InputError for a lossless one, which needs no certificate.
    """
    able = [name for name, strategy in STRATEGIES.items() if not strategy.lossless]
    if kv == AUTO:
        return tuple(sorted(able, key=lambda name: name != MAPPED.name))
    if STRATEGIES[kv].lossless:
        raise InputError(
            f"{kv} is lossless: its output is the full model's, so there is no floor to tune for",
            where="kv= (--kv)",
            fix="leave kv= (--kv) out: its best drafts are named beside the answer; offramp bench --kv "
            f"{kv} times them",
        )
    return (kv,)


def _require_facts(trace: Trace, heads: ExitHeads | None) -> None:
    """Raise InputError for a trace with facts that come with heads, where none are given."""
    needed = sorted(OF_HEADS & set(trace.fact_names))
    if heads is None and trace.request.get("heads") and needed:
        raise InputError(
            f"the trace holds {', '.join(needed[:3])}, which comes with its exit heads",
            where="heads=",
            fix="give heads=FILE (--heads FILE), the file that the trace was made with",
        )
