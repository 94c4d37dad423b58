"""From what contenders decoded to their figures, and to the verdict on the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.decoding.bench.contenders import GENERATE, NEVER, NEVER_AGAIN, Setting
from offramp.decoding.bench.entrant import Decoded, Entrant
from offramp.decoding.bench.ratios import median, median_ratio, paired_ratios, spread
from offramp.decoding.bench.results import BenchResult, Contender
from offramp.decoding.bench.turns import Trial
from offramp.decoding.bench.validity import Difference, Evidence, judge


def summarise(
    setting: Setting,
    entrants: Sequence[Entrant],
    trials: Mapping[str, Trial],
    samples: Mapping[str, Sequence[Decoded]],
    circumstances: Mapping[str, Any],
    twins: NDArray[np.float64] | None = None,
) -> BenchResult:
    """Figures and verdict of contenders that were tried out and took turns.

    twins: ratios of the two identical contenders if others of the same run count too, float64 [pairs].
    """
    seconds = {name: [one.seconds_per_token for one in decoded] for name, decoded in samples.items()}
    medians = {name: median(values) for name, values in seconds.items()}
    plain = min(
        (entrant.name for entrant in entrants if entrant.role == "plain"),
        key=lambda name: medians[name].value,
    )
    batches = len(setting.prompts)
    full = [decoded.tokens for decoded in answers_of(trials[GENERATE], samples[GENERATE], batches)]
    contenders, differences = [], {}
    for entrant in entrants:
        contender, difference = figures_of(
            setting, entrant, trials[entrant.name], samples[entrant.name], full=full, plain=seconds[plain]
        )
        contenders.append(contender)
        if difference is not None:
            differences[entrant.name] = difference
    ratios = twin_ratios(samples) if twins is None else twins
    a_a = median(ratios.tolist())
    pairs = len(samples[NEVER])
    evidence = Evidence(tuple(contenders), a_a, spread(ratios), pairs, differences, circumstances)
    validity, reasons, warnings = judge(evidence)
    main = setting.cells[0]
    return BenchResult(
        model=setting.model.shown_name,
        policy=str(main.policy),
        kv=main.kv,
        batch=len(setting.prompts[0].ids),
        batching=setting.batching,
        new_tokens=setting.new_tokens,
        prompts=setting.distinct,
        rounds=pairs // batches,
        validity=validity,
        reasons=reasons,
        plain=plain,
        contenders=tuple(contenders),
        a_a=a_a,
        circumstances=circumstances,
        notes=warnings,
    )


def figures_of(
    setting: Setting,
    entrant: Entrant,
    trial: Trial,
    samples: Sequence[Decoded],
    *,
    full: Sequence[tuple[tuple[int, ...], ...]],
    plain: Sequence[float],
) -> tuple[Contender, Difference | None]:
    """One contender's figures, and the first token in which it differs from the answers of `full`.

    full: by batch, the tokens of each row. plain: seconds per token of the fastest plain decoder, sample by
    sample as the contender's.
    """
    seconds = [one.seconds_per_token for one in samples]
    middle = median(seconds)
    batches = len(setting.prompts)
    same, difference = _compared(full, [*enumerate(trial.decoded), *_places(samples, batches)])
    claims = [decoded.claimed_layers for decoded in trial.decoded]
    contender = Contender(
        name=entrant.name,
        role=entrant.role,
        samples=tuple(seconds),
        seconds_per_token=middle,
        speedup=median_ratio(plain, seconds),
        first_token_seconds=median([one.first_seconds for one in samples]).value,
        tokens_per_second=1.0 / middle.value,
        peak_memory_bytes=trial.peak_memory_bytes,
        layers_per_token=_per_token(setting, trial.counted),
        claimed_layers_per_token=_per_token(setting, claims),
        same_output=same,
        output_must_match=entrant.output_must_match,
    )
    return contender, difference


def twin_ratios(samples: Mapping[str, Sequence[Decoded]]) -> NDArray[np.float64]:
    """Seconds of the two identical contenders over each other: float64 [pairs]."""
    first, second = ([one.seconds_per_token for one in samples[name]] for name in (NEVER, NEVER_AGAIN))
    return paired_ratios(first, second)


def answers_of(trial: Trial, samples: Sequence[Decoded], batches: int) -> tuple[Decoded, ...]:
    """One decoding of every batch of prompts: the untimed ones, then those of the first round."""
    return (*trial.decoded, *samples[len(trial.decoded) : batches])


def _places(samples: Sequence[Decoded], batches: int) -> list[tuple[int, Decoded]]:
    """Timed decodings with the batch that each is of."""
    return [(place % batches, one) for place, one in enumerate(samples)]


def _compared(
    full: Sequence[tuple[tuple[int, ...], ...]], decoded: Sequence[tuple[int, Decoded]]
) -> tuple[float, Difference | None]:
    """Share of rows that always equal the full model's, and the first token of any that does not.

    full: by batch; decoded: with the batch that each is of, as often as they were decoded.
    """
    rows = [row for batch in full for row in batch]
    unequal: dict[int, Difference] = {}
    for place, one in decoded:
        first = sum(len(batch) for batch in full[:place])
        for row, tokens in enumerate(one.tokens, start=first):
            if tokens != rows[row] and row not in unequal:
                at = next(
                    i for i, pair in enumerate(zip(tokens, rows[row], strict=True)) if pair[0] != pair[1]
                )
                unequal[row] = Difference(row, at, tokens[at], rows[row][at])
    return 1.0 - len(unequal) / len(rows), unequal[min(unequal)] if unequal else None


def _per_token(setting: Setting, layers: Sequence[int | None]) -> float | None:
    """Layers of a fed new token, from rows times layers of the first batches, the prompts' run taken away.

    The last new token is never fed. An assistant's own run over the prompt counts as work on new tokens.
    """
    known = [number for number in layers if number is not None]
    if len(known) < len(layers):
        return None
    batches = setting.prompts[: len(known)]
    prompts = sum(batch.ids.numel() for batch in batches) * setting.model.layers
    fed = sum(len(batch.ids) for batch in batches) * (setting.new_tokens - 1)
    return (sum(known) - prompts) / fed
