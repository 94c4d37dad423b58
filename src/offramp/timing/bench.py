"""Timing policies beside plain decoding and peers, until it is answered whether they are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offramp.decoding.generation.prompts import check_context, check_ids
from offramp.decoding.options import LOCKSTEP, DecodingOptions, HeadsSource, PolicySource, read_heads_source
from offramp.decoding.strategies.draft_length import Auto
from offramp.errors import OfframpError
from offramp.kit.arguments import checked, settled
from offramp.kit.defaults import DRAFT_LENGTH, SEED, TIMING_SECONDS, WORTH
from offramp.kit.numbers import Count, NotNegative, TimedTokens, Whole
from offramp.kit.rules import Margin
from offramp.models.model import Model, in_evaluation
from offramp.policies.names import BatchingName, DraftLength, StrategyName
from offramp.timing.answers import Limits
from offramp.timing.contenders import Extent, Setting
from offramp.timing.decoder import batches_of
from offramp.timing.measurement import Measurement, Progress, run_together
from offramp.timing.results import BenchResult


@in_evaluation
def bench(model: Model, policy: PolicySource, **options: Any) -> BenchResult:
    """Time a policy beside plain decoding and peers. Options, shapes and errors as in `measure`."""
    return measure(model, policy, **options).result


@checked
def measure(
    model: Model,
    policy: PolicySource,
    *,
    prompts: Sequence[Sequence[int]],
    kv: StrategyName | None = None,
    heads: HeadsSource = None,
    cells: Sequence[tuple[PolicySource, str]] = (),
    new_tokens: TimedTokens = 128,
    batch: Count = 1,
    batching: BatchingName = LOCKSTEP,
    draft_length: DraftLength | Auto = DRAFT_LENGTH,
    task: str | None = None,
    budget_seconds: NotNegative | None = TIMING_SECONDS,
    rounds: Count | None = None,
    worth: Margin = WORTH,
    peers: bool = True,
    seed: Whole = SEED,
    progress: Progress | None = None,
) -> Measurement:
    """Decode prompts greedily, `new_tokens` each whatever end tokens come, by contenders in turns.

    Contenders: the policy and further `cells`; several plain decoders, one of them twice: what differs is
    noise; where a policy reads a short list the full model with its output head cut to that; and with `peers`
    what users would pick instead (see `offramp.timing.contenders`).
    Each is first decoded once untimed, while hooks count layers and memory is watched. Then all take turns, a
    block of a few tokens each, prompt after prompt, until it is answered whether each policy is faster, or
    the seconds are spent. Ratios are of blocks side by side, over the plain decoder that comes out the
    fastest, their intervals over prompts.
    prompts: token ids; `batch` of them are decoded side by side, padded on the left. cells: further policies,
    each with its strategy for K and V, timed in the same turns. kv, heads, batching, draft_length, task: as
    `offramp.generate` takes them.
    budget_seconds: of all of this; two prompts are always decoded. rounds: how often each prompt is decoded,
    at most; None for as often as the seconds allow. worth: the gain that matters, as a share. seed: of the
    order of turns.

    Raises InputError and PolicyError as `settle` does; ModelError if the model cannot decode.
    """
    fitted = read_heads_source(heads)
    asked = [
        DecodingOptions.read(
            source,
            kv=strategy,
            heads=fitted,
            draft_length=draft_length,
            batching=batching,
            new_tokens=new_tokens,
        ).for_task(task)
        for source, strategy in ((policy, kv), *cells)
    ]
    setting = settle(model, asked, prompts=prompts, batch=batch, task=task)
    return run(
        setting,
        limits=Limits(budget_seconds, rounds, worth),
        extent=Extent(peers=peers),
        seed=seed,
        progress=progress,
    )


@checked
def settle(
    model: Model,
    cells: Sequence[DecodingOptions],
    *,
    prompts: Sequence[Sequence[int]],
    batch: Count = 1,
    task: str | None = None,
) -> Setting:
    """What all contenders share, checked against the model.

    cells: how each policy decodes; they differ in policy and strategy alone. prompts, batch: as in `measure`.
    task: the prompts' workload.

    Raises InputError for sizes that do not fit, or prompts that with the new tokens exceed the context;
    PolicyError for a policy or strategy that does not fit; ModelError for a model whose layers stay on disk.
    """
    model.require_loaded("timing")
    new_tokens = settled("new_tokens", cells[0].new_tokens, TimedTokens, "int")
    for place, prompt in enumerate(prompts):
        check_ids(prompt, model.shape.vocabulary_size, f"prompts= [{place}]")
    check_context(model, max(map(len, prompts), default=0), new_tokens)
    distinct: dict[str, DecodingOptions] = {}
    for cell in cells:
        cell.check_model(model)
        distinct.setdefault(cell.name, cell)
    return Setting(
        model,
        batches_of(prompts, batch, model.hf.device),
        tuple(distinct.values()),
        task=task,
        distinct=len(prompts),
    )


def run(
    setting: Setting,
    *,
    limits: Limits,
    extent: Extent,
    seed: Whole = SEED,
    progress: Progress | None = None,
) -> Measurement:
    """`measure` for what `settle` gave. Raises InputError for limits that do not fit."""
    (found,) = run_together([setting], extent=extent, limits=limits, seed=seed, progress=progress)
    if isinstance(found, OfframpError):
        raise found
    return found
