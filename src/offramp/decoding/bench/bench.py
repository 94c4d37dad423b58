"""Timing policies beside plain decoding and peers, until it is answered whether they are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offramp.decoding.bench.answers import check_worth
from offramp.decoding.bench.budget import BUDGET_SECONDS, Limits
from offramp.decoding.bench.contenders import Cell, Extent, Setting
from offramp.decoding.bench.entrant import batches_of
from offramp.decoding.bench.results import BenchResult
from offramp.decoding.bench.together import Measurement, Progress, run_together
from offramp.decoding.generation.binding import (
    HeadsSource,
    PolicySource,
    check_model,
    check_policy,
    read_heads_source,
    read_policy_source,
)
from offramp.decoding.generation.prompts import check_context, check_ids
from offramp.decoding.strategies.mapped import Mapped, check_maps
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.errors import InputError, OfframpError, PolicyError
from offramp.models.model import Model
from offramp.policies.signals import suggest
from offramp.tracing.exit_heads import ExitHeads
from offramp.tuning.verdict import WORTH

FEWEST_NEW_TOKENS = 4


def bench(model: Model, policy: PolicySource, **options: Any) -> BenchResult:
    """Time a policy beside plain decoding and peers. Options, shapes and errors as in `measure`."""
    return measure(model, policy, **options).result


def measure(
    model: Model,
    policy: PolicySource,
    *,
    budget_seconds: float | None = BUDGET_SECONDS,
    rounds: int | None = None,
    worth: float = WORTH,
    peers: bool = True,
    never: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Measurement:
    """Decode prompts greedily, `new_tokens` each whatever end tokens come, by contenders in turns.

    Contenders: the policy and further `cells`, the fastest of several plain decoders (twice: what differs is
    noise), and with `peers` what users would pick instead (see `offramp.decoding.bench.contenders`). Each is
    first decoded once untimed, while hooks count layers and memory is watched; a pilot finds the fastest
    plain decoder. Then all take turns, a block of a few tokens each, prompt after prompt, until it is
    answered whether each policy is faster, or the seconds are spent. Ratios are of blocks side by side, their
    intervals over prompts.
    budget_seconds: of all of this; two prompts are always decoded. rounds: how often each prompt is decoded,
    at most; None for as often as the seconds allow. worth: the gain that matters, as a share. never: whether
    the full model in our loop is timed even if it is not the fastest, as forecasts need it. seed: of the
    order of turns. options: what `settle` takes.

    Raises InputError and PolicyError as `settle` does; ModelError if the model cannot decode.
    """
    setting = settle(model, policy, **options)
    return run(
        setting,
        limits=Limits(budget_seconds, rounds, worth),
        extent=Extent(peers=peers, never=never),
        seed=seed,
        progress=progress,
    )


def settle(
    model: Model,
    policy: PolicySource,
    *,
    prompts: Sequence[Sequence[int]],
    kv: str = "propagate",
    heads: HeadsSource = None,
    cells: Sequence[tuple[PolicySource, str]] = (),
    new_tokens: int = 128,
    batch: int = 1,
    batching: str = "lockstep",
    draft_length: int | str = 4,
    task: str | None = None,
) -> Setting:
    """What all contenders share, checked against the model.

    prompts: token ids; `batch` of them are decoded side by side, padded on the left. cells: further policies,
    each with its strategy for K and V, timed in the same turns. Everything else as `offramp.generate` takes
    it.

    Raises InputError for sizes that do not fit, or prompts that with the new tokens exceed the context;
    PolicyError for a policy or strategy that does not fit; ModelError for a model whose layers stay on disk.
    """
    model.require_loaded("timing")
    require_sizes(new_tokens=new_tokens, batch=batch)
    tuned = read_policy_source(policy)[1]
    fitted = read_heads_source(heads, tuned)
    for place, prompt in enumerate(prompts):
        check_ids(prompt, model.shape.vocabulary_size, f"prompts= [{place}]")
    check_context(model, max(map(len, prompts), default=0), new_tokens)
    asked = [_cell(model, *pair, heads=fitted, task=task) for pair in ((policy, kv), *cells)]
    return Setting(
        model,
        batches_of(prompts, batch, model.hf.device),
        new_tokens,
        tuple({cell.name: cell for cell in asked}.values()),
        heads=fitted,
        batching=batching,
        draft_length=draft_length,
        task=task,
        distinct=len(prompts),
        tuned=tuned,
    )


def run(
    setting: Setting,
    *,
    limits: Limits,
    extent: Extent,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """`measure` for what `settle` gave. Raises InputError for limits that do not fit."""
    check_limits(limits)
    (found,) = run_together([setting], extent=extent, limits=limits, seed=seed, progress=progress)
    if isinstance(found, OfframpError):
        raise found
    return found


def check_limits(limits: Limits) -> None:
    """Raise InputError for no rounds, a negative budget, no limit at all, or a gain that is no share."""
    if limits.rounds is not None:
        require_sizes(rounds=limits.rounds)
    check_worth(limits.worth)
    if limits.seconds is None and limits.rounds is None:
        raise InputError(
            "neither seconds nor rounds are limited", where="budget_seconds=", fix="give one of them"
        )
    if limits.seconds is not None and limits.seconds < 0.0:
        raise InputError(
            f"a budget of {limits.seconds:g} seconds is not possible", where="--seconds", fix="give 0 or more"
        )


def require_sizes(**sizes: int) -> None:
    """Raise InputError for a size below 1, or for too few new tokens to time."""
    for name, value in sizes.items():
        least = FEWEST_NEW_TOKENS if name == "new_tokens" else 1
        if value < least:
            words = name.replace("_", " ")
            raise InputError(
                f"{words}: {value} is too few",
                where=f"--{name.replace('_', '-')}",
                fix=f"give {least} or more",
            )


def _cell(model: Model, policy: PolicySource, kv: str, heads: ExitHeads | None, task: str | None) -> Cell:
    """A policy with its strategy, checked against the model. Raises PolicyError and InputError."""
    if kv not in STRATEGIES:
        raise PolicyError(f"unknown strategy {kv!r} for K and V", where="kv=", fix=suggest(kv, STRATEGIES))
    decides, tuned = read_policy_source(policy)
    own = decides.for_task(task)
    check_policy(own, model.layers, heads)
    check_model(tuned, own, heads, model, kv)
    if kv == Mapped.name:
        check_maps(own, heads, model.layers, model.dtype)
    return Cell(own, kv)
