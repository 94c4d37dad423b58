"""`offramp.rerun`: what a policy does to given texts when later tokens read the K and V that it leaves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.loop import check_decodable
from offramp.decoding.generation.prompts import prompt_entropy
from offramp.decoding.options import DecodingOptions, HeadsSource, PolicySource, read_heads_source
from offramp.decoding.rerun.parallel import (
    Decided,
    InputsAfter,
    NotParallel,
    ParallelPass,
    Untouched,
    unchanged,
)
from offramp.decoding.rerun.trace_sequences import (
    Batch,
    TracedSequence,
    first_decided,
    make_batches,
    traced_sequences,
    with_maps_of,
)
from offramp.decoding.strategies.mapped import StateMaps
from offramp.defaults import DRAFT_LENGTH
from offramp.errors import OfframpError, PolicyError
from offramp.kit.numbers import Count
from offramp.models.model import Model, in_evaluation
from offramp.policies.binding import require_heads
from offramp.policies.charge import Charge
from offramp.policies.decisions import (
    Decisions,
    probed_facts,
    replay_decisions,
    require_comparisons,
    task_of,
    tokens_by_exit,
)
from offramp.policies.kv import (
    MAPPED,
    PROPAGATE,
    RECOMPUTE,
    STRATEGIES,
    PolicyRun,
)
from offramp.policies.names import StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.short_list import seen_by
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload

How = Literal["one parallel forward", "replay, exact K and V", "forced decoding"]


@dataclass(frozen=True)
class Drift:
    """A rerun beside the plain replay of the same decided tokens."""

    agreement: float
    """What the replay says."""
    exits_moved: float
    """Share of tokens that leave elsewhere."""
    tokens_changed: float
    """Share whose output is another token."""


@dataclass(frozen=True)
class RerunResult:
    """One policy on given texts, keys and values as its strategy leaves them."""

    READ_OFF: ClassVar[tuple[str, ...]] = ("tokens_by_exit",)
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("exits", "top1", "agrees", "answered", "decided", "decisions")

    policy: str
    kv: str
    """The strategy."""
    how: How
    """How it was had: a strategy whose K and V are the full model's is replayed, and a policy that remembers
    earlier tokens is decoded with forced tokens."""
    exits: NDArray[np.int64]
    """int64 [tokens], one per row of the trace, L for positions that run whole as a prompt does."""
    top1: NDArray[np.int64]
    """int64 [tokens], the policy's output."""
    agrees: NDArray[np.bool_]
    """bool [tokens], whether it is the full model's top-1."""
    answered: NDArray[np.bool_]
    """bool [tokens], rows that predict what decoding would call a new token: those of the prompt but its last
    one are not."""
    decided: NDArray[np.bool_]
    """bool [tokens], the rows that the policy was asked about."""
    agreement: float
    """Share of the answered rows that agree."""
    skip_ratio: float
    """Share of the layers of the decided ones that are not executed."""
    decisions: Decisions
    """Exits and probes, as a replay's, for charging."""
    drift: Drift | None
    """Beside the replay, None where the trace does not hold what the policy reads."""

    @property
    def tokens_by_exit(self) -> dict[int, int]:
        """How many tokens leave at each exit, ascending."""
        return tokens_by_exit(self.exits)

    def __repr__(self) -> str:
        return (
            f"RerunResult({self.policy}, {self.kv}: agreement {self.agreement:.1%}, {self.skip_ratio:.1%} of "
            f"the layers skipped, {len(self.exits):,} tokens, {self.how})"
        )


ROWS_AT_ONCE = 8
APART = (PROPAGATE.name, MAPPED.name, RECOMPUTE.name)
"""Strategies with which a row of a batch says what it would say alone."""


def decode_forced(
    model: Model,
    engine: Engine,
    options: DecodingOptions,
    sequences: Sequence[TracedSequence],
    prompt_tokens: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The trace's rows that were decided, the exits taken and the tokens chosen there: int64 [decided] each.

    Sequences of one shape are decoded side by side where each row may leave on its own.

    Raises InputError as `offramp.generate` does, OfframpError for a logit that is not finite.
    """
    apart = (
        options.kv in APART
        and engine.abilities.reason("rebatch") is None
        and engine.abilities.reason("lockstep") is None
    )
    rows, exits, top1 = [], [], []
    shapes = sorted(sequences, key=lambda sequence: (sequence.length, first_decided(sequence, prompt_tokens)))
    for (_, first), alike in itertools.groupby(
        shapes, key=lambda sequence: (sequence.length, first_decided(sequence, prompt_tokens))
    ):
        some = [sequence for sequence in alike if first < sequence.length]
        size = ROWS_AT_ONCE if apart else 1
        for start in range(0, len(some), size):
            together = some[start : start + size]
            decoded = _decode(model, options, together, first)
            rows += [sequence.rows[first - sequence.first_row :] for sequence in together]
            exits += [generation_exits for generation_exits, _ in decoded]
            top1 += [chosen for _, chosen in decoded]
    empty = np.zeros(0, dtype=np.int64)
    return tuple(np.concatenate(column) if column else empty for column in (rows, exits, top1))  # type: ignore[return-value]


def _decode(
    model: Model, options: DecodingOptions, sequences: Sequence[TracedSequence], first: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    device = model.hf.device
    prompts = torch.tensor([sequence.ids[:first] for sequence in sequences], device=device)
    forced = torch.tensor(
        [[*sequence.ids[first:], sequence.next_token] for sequence in sequences], device=device
    )
    batching = "rebatch" if len(sequences) > 1 else "lockstep"
    forced_options = replace(options, batching=batching, new_tokens=forced.shape[1])
    with model.given(sequences):
        result = generate_batch(model, prompts, options=forced_options, force_tokens=forced)
    problem = next((row.problem for row in result.rows if row.problem is not None), None)
    if problem is not None:
        raise OfframpError(problem, where=model.name, fix="load the model in float32")
    return [(row.exits[1:], np.array(row.chosen[1:], dtype=np.int64)) for row in result.rows]


SHARED_BYTES = 1 << 30
"""States that policies share may take so much memory."""


@in_evaluation
def rerun(
    model: Model,
    trace: Trace,
    policy: PolicySource,
    kv: StrategyName = "propagate",
    *,
    heads: HeadsSource = None,
    prompt_tokens: Count = 1,
    workload: Workload | None = None,
) -> RerunResult:
    """A policy on the texts of a trace, keys and values as the policy and its strategy leave them.

    For every sequence the exits are those of `offramp.generate(..., force_tokens=...)` whose prompt is what
    runs whole here: a sequence's first position, what stands in front of its first row (BOS, a prompt), and
    its first `prompt_tokens` positions. heads: those that the trace was made with. workload: where prompts of
    a generation trace are read again, by default loaded by its name.

    Raises InputError for a trace of another model or other heads, and PolicyError and InputError as
    `offramp.generate` does.

    >>> offramp.rerun(model, trace, "static:exit=2").how
    'one parallel forward'
    """
    return Rerunner(model, trace, heads=heads, prompt_tokens=prompt_tokens, workload=workload).run(policy, kv)


class Rerunner:
    """Reruns of several policies on one trace, which share its sequences and the states that none touches."""

    def __init__(
        self,
        model: Model,
        trace: Trace,
        *,
        heads: HeadsSource = None,
        prompt_tokens: int = 1,
        workload: Workload | None = None,
    ) -> None:
        self.model = model
        self.heads = read_heads_source(heads)
        require_heads(trace, self.heads)
        self.trace = with_maps_of(trace, self.heads)
        self.prompt_tokens = prompt_tokens
        self.sequences = traced_sequences(model, trace, workload)
        self.engine = engine_of(model)
        device = next(model.hf.parameters()).device
        self.batches = make_batches(self.sequences, prompt_tokens, device)
        self._untouched = (
            Untouched(SHARED_BYTES) if all(state.entries for state in self.engine.kept) else None
        )

    @functools.cached_property
    def rows(self) -> NDArray[np.int64]:
        """The trace's rows that policies are asked about, ascending: int64 [decided]."""
        return np.sort(np.concatenate([batch.rows for batch in self.batches]))

    @functools.cached_property
    def decided_trace(self) -> Trace:
        """The decided rows alone, each sequence a document of its own, as a decoder meets them."""
        owner = np.zeros(self.trace.token_count, dtype=np.int32)
        for number, sequence in enumerate(self.sequences):
            owner[sequence.rows] = number
        records = tuple(self.trace.documents[sequence.document] for sequence in self.sequences)
        return self.trace.at_rows(self.rows, owner[self.rows], records)

    @functools.cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Rows that predict a new token: the decided ones, and the last of what runs whole: bool [tokens]."""
        answered = np.zeros(self.trace.token_count, dtype=np.bool_)
        for sequence in self.sequences:
            first = first_decided(sequence, self.prompt_tokens)
            answered[sequence.rows[max(first - 1 - sequence.first_row, 0) :]] = True
        return answered

    def run(self, policy: PolicySource, kv: str = "propagate") -> RerunResult:
        """One policy with one strategy for K and V. Raises as `rerun` does."""
        options = DecodingOptions.read(policy, kv=kv, heads=self.heads).for_task(task_of(self.trace))
        check_decodable(self.engine, options)
        return self._result(options, *self._decided(options))

    def _decided(self, options: DecodingOptions) -> tuple[How, Decided]:
        """Exits, outputs and probes of the decided rows, and how they were had."""
        policy, kv = options.policy, options.kv
        after = self._inputs_after(kv)
        if after is None and self._holds(policy):
            return "replay, exact K and V", self._replayed(policy, lossless=STRATEGIES[kv].lossless)
        if after is not None and not policy.remembers:
            try:
                return "one parallel forward", self._parallel(policy, after)
            except NotParallel:  # some of its tokens skip checks that others compare with
                pass
        return "forced decoding", self._forced(options)

    def _inputs_after(self, kv: str) -> InputsAfter | None:
        """What skipped layers are given, None for a strategy whose K and V are the full model's."""
        if STRATEGIES[kv].exact:
            return None
        if STRATEGIES[kv].mapped:
            assert self._maps is not None, "the strategy has asked for them"
            return self._maps.inputs_after
        return unchanged(self.engine.layers)

    @functools.cached_property
    def _maps(self) -> StateMaps | None:
        """The K,V maps of the heads."""
        return StateMaps.of(self.heads, self.engine.layers, next(self.engine.hf.parameters()).device)

    def _holds(self, policy: ExitPolicy) -> bool:
        """Whether the trace holds all that the policy reads and says."""
        facts = {name for names in policy.needs(self.trace.layers).values() for name in names}
        facts |= {*policy.final_facts, *(("restricted_top1",) if policy.short_list else ())}
        exits = set(policy.needs(self.trace.layers)) <= {int(exit) for exit in self.trace.exits}
        return exits and facts <= set(self.trace.fact_names) and self._compares(policy)

    def _compares(self, policy: ExitPolicy) -> bool:
        """Whether facts that compare exits were recorded against those that the policy compares with."""
        try:
            require_comparisons(probed_facts(policy, self.trace.layers), self.trace)
        except PolicyError:
            return False
        return True

    def _replayed(self, policy: ExitPolicy, *, lossless: bool = False) -> Decided:
        """The same from the trace alone, with the full model's K and V."""
        trace = seen_by(policy, self.decided_trace)
        decisions = replay_decisions(policy, trace)
        columns = np.searchsorted(trace.exits, decisions.exits)
        columns = np.full_like(columns, len(trace.exits) - 1) if lossless else columns
        top1 = trace.fact("top1")[np.arange(trace.token_count), columns].astype(np.int64)
        probed = [decisions.probed_at(place) for place in range(len(decisions.needs))]
        none = np.zeros((len(top1), 0), np.bool_)
        return Decided(decisions.exits, top1, np.stack(probed, 1) if probed else none)

    def _parallel(self, policy: ExitPolicy, after: InputsAfter) -> Decided:
        reader = ExitReader(
            self.engine, self.heads, policy.needs(self.engine.layers), short_list=policy.short_list
        )
        forward = ParallelPass(self.engine, policy, reader, after, self._untouched)
        batches = []
        for number, batch in enumerate(self.batches):
            facts = self._prompt_facts(batch, policy.document_facts) if policy.document_facts else {}
            with self.model.given(batch.sequences):
                batches.append(forward.run(batch, number, facts))
        order = np.argsort(np.concatenate([batch.rows for batch in self.batches]))
        return Decided(
            exits=np.concatenate([decided.exits for decided in batches])[order],
            top1=np.concatenate([decided.top1 for decided in batches])[order],
            probed=np.concatenate([decided.probed for decided in batches])[order],
        )

    @torch.no_grad()
    def _prompt_facts(self, batch: Batch, names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
        """Facts of what runs whole, which no policy touches: float64 [decided], by name."""
        columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
        for row, (sequence, first) in enumerate(zip(batch.sequences, batch.first, strict=True)):
            with self.model.given([sequence]):
                sequences = Sequences(self.engine, batch.ids[row : row + 1, :first], None, Meter())
            inputs = sequences.inputs(0, first)
            hidden = sequences.run(inputs.hidden, inputs, 0, self.engine.layers)
            for name, value in prompt_entropy(self.engine.stack, hidden, None, names).items():
                columns[name].append(np.repeat(value, sequence.length - first))
        return {name: np.concatenate(values) for name, values in columns.items()}

    def _forced(self, options: DecodingOptions) -> Decided:
        rows, exits, top1 = decode_forced(
            self.model, self.engine, options, self.sequences, self.prompt_tokens
        )
        order = np.argsort(rows)
        exits, top1 = exits[order], top1[order]
        # Decoding does not say which checks a policy left out: all up to the exit are charged.
        checked = np.array(list(probed_facts(options.policy, self.engine.layers)), dtype=np.int64)
        return Decided(exits, top1, exits[:, None] >= checked)

    def _result(self, options: DecodingOptions, how: How, decided: Decided) -> RerunResult:
        policy, kv = options.policy, options.kv
        full = self.trace.full_top1.astype(np.int64)
        all_exits = np.full(len(full), self.engine.layers, dtype=np.int64)
        said, asked = self._said_whole(policy), np.zeros(len(full), dtype=np.bool_)
        all_exits[self.rows], said[self.rows], asked[self.rows] = decided.exits, decided.top1, True
        all_probed = np.zeros((len(full), decided.probed.shape[1]), dtype=np.bool_)
        all_probed[self.rows] = decided.probed
        needs = probed_facts(policy, self.engine.layers)
        agrees = said == full
        return RerunResult(
            policy=str(policy),
            kv=kv,
            how=how,
            exits=all_exits,
            top1=said,
            agrees=agrees,
            answered=self.answered,
            decided=asked,
            agreement=float(agrees[self.answered].mean()),
            skip_ratio=self._skip_ratio(policy, kv, Decisions(decided.exits, needs, decided.probed)),
            decisions=Decisions(all_exits, needs, all_probed, policy.short_list, policy.short_head),
            drift=self._drift(policy, decided),
        )

    def _said_whole(self, policy: ExitPolicy) -> NDArray[np.int64]:
        """What comes out of positions that run whole: int64 [tokens]."""
        name = "restricted_top1" if policy.short_head else "top1"
        return self.trace.fact(name)[:, -1].astype(np.int64)

    def _skip_ratio(self, policy: ExitPolicy, kv: str, decisions: Decisions) -> float:
        """Share of the layers of the decided tokens that are not executed, sooner or later."""
        trace = self.decided_trace
        if not trace.token_count:
            return 0.0
        steps = np.arange(trace.token_count, dtype=np.int64)
        return Charge.of(PolicyRun(trace, policy, decisions, steps, DRAFT_LENGTH), kv).skip_ratio

    def _drift(self, policy: ExitPolicy, decided: Decided) -> Drift | None:
        """The same beside the plain replay, None where the trace cannot replay the policy."""
        if not len(decided.exits) or not self._holds(policy):
            return None
        replayed = self._replayed(policy)
        said, full = self._said_whole(policy), self.trace.full_top1
        said[self.rows] = replayed.top1
        return Drift(
            agreement=float((said == full)[self.answered].mean()),
            exits_moved=float(np.mean(decided.exits != replayed.exits)),
            tokens_changed=float(np.mean(decided.top1 != replayed.top1)),
        )
