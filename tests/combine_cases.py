"""Made-up measurements of combined accelerations, for tests of what is said and shown of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from offramp.policies.figures import FreeRunning
from offramp.scoring.estimate import Estimate
from offramp.timing.combine import interaction_of
from offramp.timing.ratios import ONE, product_of, ratio_of, ratio_over, seconds_over
from offramp.timing.results import Cluster, Combination, CombineResult, Contender, OnTop, Quality
from offramp.timing.stopping import answer_of, resolution_of

WORTH = 0.05

NOISE = (0.99, 1.0, 1.01, 1.0, 0.995, 1.005)
CIRCUMSTANCES: dict[str, Any] = {
    "processor": "a processor",
    "cores": 2,
    "threads": 2,
    "load_average": [0.4, 0.7],
    "other_load": 0.02,
    "model_fingerprint": "f" * 64,
    "date": "2026-01-31T12:05:00+00:00",
    "models": {"int8": {"fingerprint": "e" * 64, "transforms": ["int8"], "layers": 4}},
}


def quality(share: float, *, low: float | None = None, high: float | None = None) -> Quality:
    """Answers of which so many tokens are the full model's."""
    nll = Estimate(1.2)
    found = FreeRunning(Estimate(20.0 * share), Estimate(share), Estimate(share), nll, nll, 6, 120)
    return Quality(found, Estimate(share, low, high))


def combined_result(
    seconds: Mapping[str, float],
    kept: Mapping[str, float] | None = None,
    *,
    noise: Sequence[float] = NOISE,
    **changes: Any,
) -> CombineResult:
    """A result from milliseconds a token: "plain", "int8", "int8 + exits", ...; each has noise of its own."""
    samples = {
        name: [value * noise[(place + shift) % len(noise)] / 1000 for place in range(len(noise))]
        for shift, (name, value) in enumerate(seconds.items())
    }
    combinations = [_combination(name, samples, (kept or {}).get(name, 1.0)) for name in samples]
    result = CombineResult(
        model="smollm2",
        accelerations={name: name for name in samples if name != "plain" and " + " not in name},
        workload="prose",
        new_tokens=20,
        prompts=6,
        rounds=1,
        worth=WORTH,
        plain="generate()",
        combinations=tuple(combinations),
        others=(replace(combinations[0].contender, name="generate()"),),
        defects=(),
        a_a=Estimate(1.0, 0.99, 1.01),
        stopped="answered",
        seconds_spent=61.0,
        floor=0.95,
        circumstances=CIRCUMSTANCES,
    )
    return replace(result, **changes)


def _clusters(samples: Mapping[str, Sequence[float]], name: str) -> list[Cluster]:
    """One for each sample, over the plain decoder's."""
    return [
        Cluster(0, place, math.log(plain / own), 8)
        for place, (plain, own) in enumerate(zip(samples["plain"], samples[name], strict=True))
    ]


def _combination(name: str, samples: Mapping[str, Sequence[float]], share: float) -> Combination:
    own = samples[name]
    parts = () if name == "plain" else tuple(name.split(" + "))
    clusters = _clusters(samples, name)
    ratio = ratio_of(clusters)
    seconds = seconds_over(
        ONE, ratio_of([Cluster(0, place, -math.log(value), 8) for place, value in enumerate(own)])
    )
    contender = Contender(
        name,
        "combination" if parts else "plain",
        answer=answer_of(ratio, WORTH),
        ratio=ratio,
        resolution=resolution_of(ratio),
        clusters=tuple(clusters) if parts else (),
        samples=tuple(own),
        seconds_per_token=seconds,
        first_token_seconds=0.1,
        tokens_per_second=1 / own[0],
        layers_per_token=4.0,
        same_output=share,
    )
    found = Combination(name, parts, contender, quality=quality(share))
    if len(parts) < 2:
        return found
    singles = [_clusters(samples, part) for part in parts]
    rests = {part: " + ".join(one for one in parts if one != part) for part in parts}
    speeds = {part: ratio_over(clusters, _clusters(samples, rest)) for part, rest in rests.items()}
    on_top = tuple(OnTop(part, speed) for part, speed in speeds.items() if speed is not None)
    return replace(
        found,
        product=product_of(*((1.0, single) for single in singles)),
        interaction=interaction_of(singles, clusters),
        on_top=on_top,
    )
