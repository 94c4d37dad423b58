"""`offramp.tune`, and one policy for several workloads: by what executes, or from replays alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offramp.costs.machine import Machine
from offramp.defaults import CERTIFIED_TOKENS, DELTA, LOCAL, METHOD, OPENING_TOKENS, SEED
from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.numbers import Count, Seconds, Share, Whole
from offramp.policies.binding import base_of, require_heads
from offramp.policies.decisions import task_of
from offramp.policies.names import StrategyName
from offramp.policies.rules.combined import RESERVED, Tasks
from offramp.policies.rules.fixed import Never
from offramp.tracing.trace import Trace
from offramp.tuning.executed import DecodingLimits
from offramp.tuning.fixed_sequence import OnDocuments
from offramp.tuning.floor import REFERENCE, Floor, make_floor, reference_top1
from offramp.tuning.names import MethodName, Search
from offramp.tuning.tune import AUTO, FAMILIES, require_single, tune_floors
from offramp.tuning.tune import tune as tune_trace
from offramp.tuning.tuned import Tuned

if TYPE_CHECKING:
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.workloads.workload import Workload


@checked
def tune(
    trace: Trace,
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = LOCAL,
    model: Model | None = None,
    *,
    kv: Literal["auto"] | StrategyName | None = None,
    heads: ExitHeads | str | Path | None = None,
    workload: Workload | None = None,
    prompt_tokens: Count = OPENING_TOKENS,
    new_tokens: Count = CERTIFIED_TOKENS,
    documents: Count | None = None,
    folder: str | Path | None = None,
    seconds: Seconds | None = None,
    candidates: Count | None = None,
    method: MethodName = METHOD,
    delta: Share = DELTA,
    batch: Count = 1,
    clip: float | None = None,
    seed: Whole = SEED,
    search: Search = FAMILIES,
    progress: OnDocuments | None = None,
    reference: Model | None = None,
) -> Tuned:
    """The fastest policy, with its strategy for K and V, that is certified to keep a quality floor.

    With a model, that of the trace, and a floor on agreement: the search on the trace proposes policies, a
    rerun on the search documents re-calibrates and re-orders them for every strategy that the model can
    decode with, and the candidates then decode documents freely, from cautious to bold, until the floor is
    certified of them or out of reach. Without a model, and for the other floors, the losses are replayed: the
    answer is a *replay bound* (`Tuned.certificate.executed` is false). A floor on reference agreement is
    executed where the reference is given: it judges each token that the policy decodes, and the full model
    itself, which may break such a floor, is the first candidate.

    floor, hardware, method, delta, clip, seed, search: as `offramp.tuning.tune.tune` takes them. kv: "auto"
    (None: the same) or one strategy; without a model what the search is priced with, "propagate" by default.
    batch: sequences decoded side by side; above 1 without a model only.
    heads: those that the trace was made with. workload: the documents of the trace, loaded by its name unless
    given. prompt_tokens: of the openings of texts; prompts are taken whole. new_tokens: of an answer, at
    most. documents: that one candidate may be decoded on, by default four times the fewest that could certify
    the floor, or all there are. folder: where executions are kept and never repeated; in memory without one.
    seconds: for reruns and decoding together. candidates: tested at most, spread from cautious to bold, by
    default six. progress: told of the documents that the candidate at hand was
    decoded on, and of those planned. reference: that the trace was made with (`Trace.reference_top1`), of a
    transformed model the untransformed one.

    Raises InputError for a model, a reference, heads or documents that are not those of the trace, sizes
    below 1, and as `offramp.tuning.tune.tune` does; WorkloadError if the documents cannot be had.
    """
    wanted = make_floor(floor, clip)
    settings: dict[str, Any] = {"method": method, "delta": delta, "seed": seed}
    settings["search"] = search
    kv = AUTO if kv is None else kv
    judge = None if reference is None else reference.shown_name
    require_judged([trace], judge, wanted, decodes=model is not None)
    if model is None or wanted.clip is not None or (wanted.kind == REFERENCE and reference is None):
        if heads is not None:
            from offramp.decoding.options import read_heads_source  # which loads torch

            require_heads(trace, read_heads_source(heads))
        return tune_trace(trace, wanted, hardware, kv=kv, batch=batch, **settings)
    require_single(batch)
    limits = DecodingLimits(documents, seconds, candidates, progress or (lambda done, planned: None))
    (tuned,) = tune_executed(
        trace,
        [wanted],
        limits,
        hardware,
        model,
        kv=kv,
        heads=heads,
        workload=workload,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        folder=None if folder is None else Path(folder),
        reference=reference,
        **settings,
    )
    return tuned


def require_judged(traces: Sequence[Trace], reference: str | None, floor: Floor, *, decodes: bool) -> None:
    """Raise InputError for traces that do not keep what a floor is on, or keep it of several references.

    So for a reference, by its name, where nothing is decoded that it would judge.
    """
    for trace in traces if floor.kind == REFERENCE else ():
        reference_top1(trace)
    if floor.kind == REFERENCE and decodes:
        from offramp.decoding.rerun.trace_sequences import (  # which loads torch
            reference_of,
            require_reference,
        )

        first = reference_of(traces[0])
        for trace in traces:
            require_reference(first["fingerprint"], first["dtype"], trace)
    if reference is not None and not (decodes and floor.kind == REFERENCE):
        raise InputError(
            f"nothing is decoded that {reference} would judge",
            where=f"reference= (--reference) for {floor}{'' if decodes else ', without a model'}",
            fix=f"leave it out, or give a model and a floor on {REFERENCE}",
        )


def tune_executed(
    trace: Trace,
    floors: Sequence[Mapping[str, float] | Floor],
    limits: DecodingLimits,
    hardware: str | Machine | None,
    model: Model,
    *,
    kv: Literal["auto"] | StrategyName = AUTO,
    heads: ExitHeads | str | Path | None,
    workload: Workload | None,
    prompt_tokens: int = OPENING_TOKENS,
    new_tokens: int = CERTIFIED_TOKENS,
    folder: Path | None,
    seed: int = SEED,
    reference: Model | None = None,
    **settings: Any,
) -> list[Tuned]:
    """What is certified by decoding at each of several floors, which share all that is rerun and decoded.

    floors: on agreement, or with a reference on agreement with that, the main one first. limits: on all of
    them together. Other arguments and errors as of `tune`.
    """
    from offramp.decoding.execution.executor import opened_executor

    with opened_executor(
        model,
        trace,
        kv=kv,
        heads=heads,
        workload=workload,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        folder=folder,
        seed=seed,
        reference=reference,
    ) as executor:
        return tune_floors(executor.trace, floors, hardware, executor, limits, seed=seed, **settings)


@dataclass(frozen=True)
class TunedTasks:
    """One policy for several workloads, the full model for all others."""

    policy: Tasks
    tuned: Mapping[str, Tuned]
    """The answer of each workload, with a certificate at delta over the number of workloads, so that all of
    them hold together but for a chance of `delta` (Bonferroni). Each names its own K,V strategy."""
    delta: float


@checked
def tune_tasks(
    traces: Sequence[Trace],
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = LOCAL,
    model: Model | None = None,
    *,
    delta: Share = DELTA,
    **options: Any,
) -> TunedTasks:
    """The fastest policy of every workload at one floor.

    traces: one of each workload, all of one model through the same exit heads. delta: chance that any of the
    certificates is wrong. floor, hardware, model, options: as `offramp.tune` takes them.

    Raises InputError for no trace, two of one workload, or of different models, and as `offramp.tune` does.
    """
    named = by_workload(traces)
    require_judged(traces, None, make_floor(floor, options.get("clip")), decodes=model is not None)
    each = delta / len(named)
    tuned = {
        name: tune(trace, floor, hardware, model, delta=each, **options) for name, trace in named.items()
    }
    policies = tuple(answer.policy for answer in tuned.values())
    return TunedTasks(Tasks(tuple(tuned), policies, Never()), tuned, delta)


def by_workload(traces: Sequence[Trace]) -> dict[str, Trace]:
    """The traces by the name of their workload, each once and all of one model. Raises InputError."""
    if not traces:
        raise InputError("there is no trace to tune on", fix="give a trace of each workload")
    found: dict[str, Trace] = {}
    for trace in traces:
        name, where = task_of(trace), str(trace.folder or "the trace")
        if name is None:
            raise InputError("the trace names no workload", where=where, fix="trace again")
        if name in found:
            raise InputError(f"there are two traces of {name}", where=where, fix="give one of each workload")
        if base_of(trace) != base_of(traces[0]):
            raise InputError(
                "the traces are not of one model, dtype and exit heads",
                where=f"{where}: {base_of(trace).get('name', 'a model without a name')}",
                fix="trace every workload with the same model and the same heads= (--heads FILE)",
            )
        if any(part in name for part in RESERVED):
            raise InputError(
                f"a policy has no entry for a workload named {name!r}: its name holds one of "
                f"{' '.join(RESERVED)}",
                where=where,
                fix="tune it alone, or trace it under another name",
            )
        found[name] = trace
    return found
