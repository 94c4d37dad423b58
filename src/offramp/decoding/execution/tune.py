"""`offramp.tune`: with a model, policy and K,V strategy by what executes; without one, a replay bound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.tracing.trace import Trace
from offramp.tuning.executed import Limits
from offramp.tuning.floor import Floor
from offramp.tuning.sequence import OnDocuments
from offramp.tuning.tune import AUTO, EXECUTED, check_settings
from offramp.tuning.tune import tune as tune_trace
from offramp.tuning.tuned import Tuned

# Nothing that needs torch: it is imported where a model is at hand.
if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.workloads.workload import Workload

PROMPT_TOKENS = 32
NEW_TOKENS = 32


def tune(
    trace: Trace,
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = "local",
    model: Model | None = None,
    *,
    kv: str | None = None,
    heads: ExitHeads | str | Path | None = None,
    workload: Workload | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    documents: int | None = None,
    folder: str | Path | None = None,
    seconds: float | None = None,
    candidates: int | None = None,
    method: str = "wsr",
    delta: float = 0.1,
    batch: int = 1,
    clip: float | None = None,
    seed: int = 0,
    progress: OnDocuments | None = None,
) -> Tuned:
    """The policy and the strategy for K and V that take the fewest seconds at a quality floor.

    With a model, that of the trace, and a floor on agreement: the search on the trace proposes policies, a
    rerun on the search documents re-calibrates and re-orders them for every strategy that the model can
    decode with, and the candidates then decode documents freely, from cautious to bold, until the floor is
    certified of them or out of reach. Without a model, and for the other floors, the losses are replayed: the
    answer is a *replay bound* (`Tuned.certificate.executed` is false).

    floor, hardware, method, delta, clip, seed: as `offramp.tuning.tune.tune` takes them. kv: "auto" (None:
    the same) or one strategy; without a model what the search is priced with, "propagate" by default. batch:
    sequences decoded side by side; above 1 without a model only.
    heads: those that the trace was made with. workload: the documents of the trace, loaded by its name unless
    given. prompt_tokens: of the openings of texts; prompts are taken whole. new_tokens: of an answer, at
    most. documents: that one candidate may be decoded on, by default four times the fewest that could certify
    the floor, or all there are. folder: where executions are kept and never repeated; in memory without one.
    seconds: for reruns and decoding together. candidates: tested at most, spread from cautious to bold, by
    default six. progress: told of the documents that the candidate at hand was
    decoded on, and of those planned.

    Raises InputError for a model, heads or documents that are not those of the trace, sizes below 1, and as
    `offramp.tuning.tune.tune` does; WorkloadError if the documents cannot be had.
    """
    require_sizes(prompt_tokens, new_tokens, documents, seconds, candidates)
    wanted, _ = check_settings(floor, method, delta, clip, seed)
    settings: dict[str, Any] = {"method": method, "delta": delta, "batch": batch, "seed": seed}
    kv = AUTO if kv is None else kv
    if model is None or wanted.kind != EXECUTED:
        return tune_trace(trace, wanted, hardware, kv=kv, **settings)
    from offramp.decoding.execution.executor import opened_executor

    with opened_executor(
        model,
        trace,
        kv=kv,
        heads=heads,
        workload=workload,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        folder=None if folder is None else Path(folder),
        seed=seed,
    ) as executor:
        limits = Limits(documents, seconds, candidates, progress or (lambda done, planned: None))
        return tune_trace(
            executor.trace, wanted, hardware, kv=kv, executor=executor, limits=limits, **settings
        )


def require_sizes(
    prompt_tokens: int,
    new_tokens: int,
    documents: int | None,
    seconds: float | None,
    candidates: int | None = None,
) -> None:
    """Raise InputError for sizes below 1, or no time at all."""
    sizes = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "documents": documents,
        "candidates": candidates,
    }
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"{name} cannot be {size}", where=f"{name}=", fix="give 1 or more")
    if seconds is not None and not seconds > 0.0:
        raise InputError(f"{seconds} seconds are no time", where="seconds=", fix="give more than 0")
