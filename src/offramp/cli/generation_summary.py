"""What `offramp generate` says of a generation when it is over, in lines, and the record of its JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from offramp.decoding.free_running import FreeRunning
from offramp.decoding.generation.result import BatchGeneration, Generation
from offramp.policies.policy import ExitPolicy
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

    INLINE: ClassVar[tuple[str, ...]] = ("quality",)

    quality: FreeRunning
    plain: tuple[Generation, ...]
    shared: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """What was generated, from which prompts, how; check: None unless it was asked for and nothing broke."""

    INLINE: ClassVar[tuple[str, ...]] = ("generated",)

    model: str
    policy: ExitPolicy
    kv: str
    prompts: list[str]
    generated: BatchGeneration
    check: FullModelCheck | None


def summary_lines(batch: BatchGeneration, kv: str, check: FullModelCheck | None, decode: Decode) -> list[str]:
    """The end of a generation in a few lines."""
    new, layers = sum(len(row.tokens) for row in batch.rows), batch.rows[0].layers
    ends = ", ".join(dict.fromkeys(row.stopped for row in batch.rows))
    speed = batch.tokens_per_second
    timing = [f"first after {duration(batch.first_token_seconds)}"]
    if np.isfinite(speed):
        timing.insert(0, f"{decimal(speed, 1)} tokens/s")
    lines = [f"{counted(new, 'new token')} (ended by: {ends}), {', '.join(timing)}"]
    executed, plain = batch.layers_run
    if plain:
        left = "drafts left" if kv == DRAFTING else "tokens left"
        lines.append(
            f"{_skipped(executed, plain)}; {left} after layer {decimal(batch.mean_exit, 1)} of {layers} on "
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
