"""What `offramp generate` says of a generation when it is over, in lines and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offramp.decoding.generation.result import BatchGeneration, Generation
from offramp.decoding.measurement.results import FreeRunning
from offramp.report.formats import counted, decimal, duration, percent

DRAFTING = "speculate"

Decode = Callable[[list[int]], str]
"""From token ids to text."""


@dataclass(frozen=True)
class FullModelCheck:
    """The answers held against the full model.

    quality: means over the answers. plain: the full model's own greedy answers. shared: new tokens of each
    answer up to the first that differs from the full model's own.
    """

    quality: FreeRunning
    plain: tuple[Generation, ...]
    shared: tuple[int, ...]


def layers_run(batch: BatchGeneration) -> tuple[int, int]:
    """Layers that ran after the prompt, and those of the full model on the same tokens, all rows together.

    The last new token is never fed.
    """
    executed = sum(row.layers_executed - row.prompt_layers for row in batch.rows)
    return executed, sum(max(0, len(row.tokens) - 1) * row.layers for row in batch.rows)


def tokens_per_second(batch: BatchGeneration) -> float:
    """New tokens after the first of every row, over the seconds that they took; NaN if there are none."""
    fed = sum(max(0, len(row.tokens) - 1) for row in batch.rows)
    return fed / batch.seconds if fed and batch.seconds else float("nan")


def mean_exit(batch: BatchGeneration) -> float:
    """Mean exit of the tokens after the first of every row, which always leaves at L; NaN without any."""
    exits = np.concatenate([row.exits[1:] for row in batch.rows])
    return float(exits.mean()) if len(exits) else float("nan")


def summary_lines(batch: BatchGeneration, kv: str, check: FullModelCheck | None, decode: Decode) -> list[str]:
    """The end of a generation in a few lines."""
    new, layers = sum(len(row.tokens) for row in batch.rows), batch.rows[0].layers
    ends = ", ".join(dict.fromkeys(row.stopped for row in batch.rows))
    speed = tokens_per_second(batch)
    timing = [f"first after {duration(batch.first_token_seconds)}"]
    if np.isfinite(speed):
        timing.insert(0, f"{decimal(speed, 1)} tokens/s")
    lines = [f"{counted(new, 'new token')} (ended by: {ends}), {', '.join(timing)}"]
    executed, plain = layers_run(batch)
    if plain:
        left = "drafts left" if kv == DRAFTING else "tokens left"
        lines.append(
            f"{_skipped(executed, plain)}; {left} after layer {decimal(mean_exit(batch), 1)} of {layers} on "
            "average"
        )
    if batch.drafted:
        lines.append(f"drafts kept: {batch.accepted:,} of {batch.drafted:,}")
    return lines if check is None else [*lines, *check_lines(batch, check, decode)]


def _skipped(executed: int, plain: int) -> str:
    """The share of layers that did not run; or how many times as many ran, after rejected drafts."""
    if executed > plain:
        return (
            f"layers: {decimal(executed / plain)} times as many ran as plainly ({executed:,} for {plain:,})"
        )
    return f"layers skipped: {percent(1 - executed / plain)} ({executed:,} of {plain:,} ran after the prompt)"


def check_lines(batch: BatchGeneration, check: FullModelCheck, decode: Decode) -> list[str]:
    """Agreement on the same text, and where each answer parts from the full model's own."""
    agreement, new = check.quality.agreement.value, check.quality.new_tokens
    lines = [
        f"agreement with the full model on the same text: {percent(agreement)} "
        f"({round(agreement * new):,} of {counted(new, 'token')})"
    ]
    for place, (row, plain, shared) in enumerate(zip(batch.rows, check.plain, check.shared, strict=True), 1):
        which = f" {place}" if len(batch.rows) > 1 else ""
        lines.append(f"answer{which}: {_divergence(row, plain, shared, decode)}")
    return lines


def _divergence(row: Generation, plain: Generation, shared: int, decode: Decode) -> str:
    if row.tokens == plain.tokens:
        return "the full model's own answer, token for token"
    said, meant = (_token(tokens, shared, decode) for tokens in (row.tokens, plain.tokens))
    return f"parts from the full model's own at new token {shared + 1}: {said} instead of {meant}"


def _token(tokens: Sequence[int], place: int, decode: Decode) -> str:
    return repr(decode([tokens[place]])) if place < len(tokens) else "the end"


def to_json(
    model: str,
    policy: str,
    kv: str,
    prompts: Sequence[str],
    batch: BatchGeneration,
    check: FullModelCheck | None,
) -> dict[str, Any]:
    """The JSON object: of one prompt its answer's fields, of several a list of them under "generations"."""
    answers = [_answer(prompt, row) for prompt, row in zip(prompts, batch.rows, strict=True)]
    executed, plain = layers_run(batch)
    return {
        "model": model,
        "policy": policy,
        "kv": kv,
        "layers": batch.rows[0].layers,
        **(answers[0] if len(answers) == 1 else {"generations": answers}),
        "skip_ratio": 1 - executed / plain if plain else 0.0,
        "mean_exit": mean_exit(batch),
        "seconds": batch.seconds,
        "first_token_seconds": batch.first_token_seconds,
        "tokens_per_second": tokens_per_second(batch),
        "drafted": batch.drafted,
        "accepted": batch.accepted,
        "check": None if check is None else _check(check),
    }


def _answer(prompt: str, row: Generation) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": row.text,
        "tokens": row.tokens,
        "exits": row.exits.tolist(),
        "layers_executed": row.layers_executed,
        "prompt_layers": row.prompt_layers,
        "prompt_tokens": row.prompt_tokens,
        "skip_ratio": row.skip_ratio,
        "stopped": row.stopped,
        "problem": row.problem,
    }


def _check(check: FullModelCheck) -> dict[str, Any]:
    return {
        "agreement": check.quality.agreement.value,
        "sequence_match": check.quality.sequence_match.value,
        "nll": check.quality.nll.value,
        "plain_nll": check.quality.plain_nll.value,
        "tokens_before_divergence": list(check.shared),
        "plain_text": [row.text for row in check.plain],
        "plain_tokens": [row.tokens for row in check.plain],
        "intervals": {
            name: [value["low"], value["high"]]
            for name, value in asdict(check.quality).items()
            if isinstance(value, dict)
        },
    }
