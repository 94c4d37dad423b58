"""What combined accelerations come to: speed, product, interaction, and quality of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.measurement.accelerations import transforms_of
from offramp.decoding.measurement.combinations import Key, Planned
from offramp.decoding.measurement.combined import PLAIN_NAME, Combination, CombineResult, OnTop, Quality
from offramp.decoding.measurement.figures import (
    a_a_clusters_of,
)
from offramp.decoding.measurement.intervals import combined_clusters, ratio_of
from offramp.decoding.measurement.judged import free_running_of, prompts_and_answers
from offramp.decoding.measurement.measurement import Entry
from offramp.decoding.measurement.results import Cluster, Contender, Interval
from offramp.decoding.measurement.running import own_config, plain_config
from offramp.decoding.quality.free_running import (
    DRAWS,
    Judgements,
    full_models_choices,
)
from offramp.decoding.quality.judging import judge
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.scoring.estimate import document_bootstrap

Tokens = Sequence[int]


def summarise_combined(
    entry: Entry,
    planned: Sequence[Planned],
    qualities: Mapping[str, Quality],
    circumstances: Mapping[str, Any],
    *,
    notes: tuple[str, ...],
    **further: Any,
) -> CombineResult:
    """Figures and answers. qualities: by combination's name. further: fields of the result."""
    figures = entry.figures()
    contenders, shared = entry.shared(
        figures, a_a_clusters_of([one.contender for one in figures]), circumstances
    )
    by_name, known = {one.name: one for one in contenders}, {one.name for one in planned}
    by_name |= {one.name: one for one in entry.missing}
    plain = replace(by_name[shared["plain"]], name=PLAIN_NAME)
    order = [one.name for one in entry.decoders]
    others = sorted(
        (one for one in contenders if one.name not in known),
        key=lambda one: order.index(one.name) if one.name in order else len(order),
    )
    return CombineResult(
        model=entry.setting.model.name,
        combinations=(
            Combination(PLAIN_NAME, (), plain, quality=qualities[PLAIN_NAME]),
            *(_combination(one, by_name, qualities.get(one.name)) for one in planned),
        ),
        others=(*others, *(one for one in entry.missing if one.name not in known)),
        **{**shared, "notes": (*notes, *shared["notes"])},
        **further,
    )


def _combination(one: Planned, contenders: Mapping[str, Contender], quality: Quality | None) -> Combination:
    names = [part.name for part in one.parts]
    transforms = one.setting.model.identity.transforms if transforms_of(one.parts) else ()
    contender = one.found if isinstance(one.found, Contender) else contenders[one.name]
    if contender.left_out is not None:
        return Combination(one.name, tuple(names), contender, transforms, one.policy)
    if quality is not None:
        contender = replace(contender, executed_agreement=quality.free_running.agreement)
    combination = Combination(one.name, tuple(names), contender, transforms, one.policy, quality=quality)
    if len(names) < 2:
        return combination
    clusters = {name: known.clusters for name, known in contenders.items() if known.left_out is None}
    singles = [clusters[name] for name in names if name in clusters]
    if len(singles) == len(names):
        combination = replace(
            combination,
            product=product_of(singles),
            interaction=interaction_of(singles, contender.clusters),
        )
    return replace(combination, on_top=tuple(_on_top(names, clusters, contender.clusters)))


def product_of(singles: Sequence[Sequence[Cluster]]) -> Interval:
    """Product of the speedups of single parts, prompt by prompt."""
    return ratio_of(combined_clusters(*((1.0, single) for single in singles)))


def interaction_of(singles: Sequence[Sequence[Cluster]], together: Sequence[Cluster]) -> Interval:
    """Speedup of all parts together over the product of the single ones, prompt by prompt."""
    return ratio_of(combined_clusters((1.0, together), *((-1.0, single) for single in singles)))


def _on_top(
    names: Sequence[str], clusters: Mapping[str, Sequence[Cluster]], together: Sequence[Cluster]
) -> list[OnTop]:
    """What each part adds to the rest, where the rest was timed."""
    found = []
    for part in names:
        rest = " + ".join(name for name in names if name != part)
        if rest in clusters:
            found.append(OnTop(part, ratio_of(combined_clusters((1.0, together), (-1.0, clusters[rest])))))
    return found


def qualities_of(entry: Entry, planned: Sequence[Planned], *, seed: int = 0) -> dict[str, Quality]:
    """Quality of every combination that was timed, by name; "plain" among them.

    Each is held against the untransformed full model's own answers. Intervals: 95 % bootstrap over prompts,
    absent under 20 of them.
    """
    base, decoded, plain = entry.setting, entry.decoded, entry.timed[0].plain
    prompts, answers = prompts_and_answers(base, decoded[plain])
    known: Judgements = {}

    def quality(name: str, agreeing: Sequence[float]) -> Quality:
        judged = free_running_of(base, decoded[name], decoded[plain], seed=seed, known=known)
        return Quality(judged, _share(agreeing, seed))

    found = {PLAIN_NAME: quality(plain, [1.0] * len(prompts))}
    forced: dict[tuple[Key, str | None], list[float]] = {}
    for one in planned:
        if one.name not in decoded:
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
