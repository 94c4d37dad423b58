"""Quality of combined accelerations, each held against the untransformed full model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from offramp.decoding.bench.combine_contenders import Planned
from offramp.decoding.bench.combine_summary import Timed
from offramp.decoding.bench.combined import PLAIN_NAME, Quality
from offramp.decoding.bench.contenders import Setting
from offramp.decoding.bench.generating import own_config, plain_config
from offramp.decoding.bench.results import Interval
from offramp.decoding.bench.variants import Key
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.quality.free_running import (
    DRAWS,
    Judgements,
    free_running,
    full_models_choices,
)
from offramp.decoding.quality.judging import judge
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.scoring.bootstrap import document_bootstrap

Tokens = Sequence[int]


def qualities_of(base: Setting, timed: Timed, *, seed: int = 0) -> dict[str, Quality]:
    """Quality of every combination that was timed, by name; "plain" among them.

    Intervals: 95 % bootstrap over prompts, absent under 20 of them.
    """
    plain = timed.pilot.plain
    answers = _rows(base, timed.answers(plain))
    prompts = _rows(base, dict(enumerate(batch.ids.tolist() for batch in base.prompts)))[: len(answers)]
    known: Judgements = {}

    def quality(name: str, agreeing: Sequence[float]) -> Quality:
        own = _rows(base, timed.answers(name))
        judged = free_running(base.model, prompts, own, answers, seed=seed, known=known)
        return Quality(judged, _share(agreeing, seed))

    found = {PLAIN_NAME: quality(plain, [1.0] * len(prompts))}
    forced: dict[tuple[Key, str | None], list[float]] = {}
    for one in timed.planned:
        if one.name not in timed.trials:
            continue
        lossless = one.cell is None or STRATEGIES[one.cell.kv].lossless
        key = one.key, None if lossless or one.cell is None else one.cell.name
        if key not in forced:
            agreement: Callable[[Planned, Tokens, Tokens], float] = (
                _at_full_depth if lossless else _as_decoded
            )
            forced[key] = [agreement(one, *pair) for pair in zip(prompts, answers, strict=True)]
        found[one.name] = quality(one.name, forced[key])
    return found


def _rows(base: Setting, batches: Mapping[int, Sequence[Tokens]]) -> list[Tokens]:
    """One row for each distinct prompt, in order."""
    return [row for place in sorted(batches) for row in batches[place]][: base.distinct]


def _at_full_depth(one: Planned, prompt: Tokens, answer: Tokens) -> float:
    """Share of an answer's tokens that all layers of a variant choose, given those before; ties count."""
    model = one.setting.model
    return float(full_models_choices(judge(model, prompt, answer), 0, model.dtype).mean())


def _as_decoded(one: Planned, prompt: Tokens, answer: Tokens) -> float:
    """Share of an answer's tokens that the policy's outputs choose when it is fed instead of them."""
    setting, cell = one.setting, one.cell
    assert cell is not None  # or it decodes at full depth
    ids, forced = (
        torch.tensor([list(tokens)], device=setting.model.hf.device) for tokens in (prompt, answer)
    )
    with own_config(setting.model.hf, plain_config(len(answer))):
        found = generate_batch(
            setting.model, ids, options=replace(cell, new_tokens=len(answer)), force_tokens=forced
        )
    return float(np.mean(np.array(found.rows[0].chosen) == np.array(answer)))


def _share(shares: Sequence[float], seed: int) -> Interval:
    values = np.array(shares, dtype=np.float64)
    resampled = document_bootstrap(len(values), draws=DRAWS, seed=seed)
    means = resampled.means(values, np.ones(len(values)))
    estimate = resampled.estimate(means)
    return Interval(float(means[0]), estimate.low, estimate.high)
