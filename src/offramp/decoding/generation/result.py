"""What came out of a generation: the tokens, where each left, and what was run for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.policies.bill import Usage

SHOWN_TEXT = 60
"""Characters of a text that its short form shows."""


@dataclass(frozen=True)
class Generation:
    """One generated sequence.

    text: of the new tokens, special tokens included. tokens: the new token ids in order, the end token
    included; with force_tokens those that were forced. chosen: what the model would have said in their place
    (equal to `tokens` unless forced). exits: int64 [new tokens], where each new token's prediction left; the
    first one's is L, since the prompt runs at full depth. Under "speculate" these are the drafts' exits, and
    every layer runs in the end. layers: L.
    layers_executed: rows times layers that ran for this sequence, the prompt's and padding's included.
    prompt_layers: of these, the prompt's. prompt_tokens: its length, padding left out.
    stopped: why it ended: "end token", "length", "criteria", or "problem". problem: what went wrong at which
    token and layer (a non-finite logit), None if nothing did; the tokens before it are valid.
    """

    text: str
    tokens: list[int]
    chosen: list[int]
    exits: NDArray[np.int64]
    layers: int
    layers_executed: int
    prompt_layers: int
    prompt_tokens: int
    stopped: str
    problem: str | None = None

    def __repr__(self) -> str:
        start = self.text if len(self.text) <= SHOWN_TEXT else f"{self.text[:SHOWN_TEXT]}…"
        return (
            f"Generation({len(self.tokens):,} tokens, {self.skip_ratio:.1%} of the layers skipped, ended by "
            f"{self.stopped}: {start!r})"
        )

    @property
    def skip_ratio(self) -> float:
        """Share of the layers of the fed new tokens that were not executed.

        The last new token is never fed. Negative if more ran than plainly (rejected drafts).
        """
        fed = len(self.tokens) - 1
        if fed <= 0:
            return 0.0
        return 1.0 - (self.layers_executed - self.prompt_layers) / (fed * self.layers)


@dataclass(frozen=True)
class BatchGeneration:
    """Sequences generated together, and what the whole batch ran.

    rows: one per prompt. usage: items after the prompt (see `offramp.policies.bill`). steps: decoding steps
    after the prompt (rounds count each draft and each verification). seconds: wall time of the steps after
    the first new token; first_token_seconds: from the start to the first new token.
    part_seconds: seconds by part of time (`offramp.decoding.engine.meter.PARTS_OF_TIME`), None unless timed.
    drafted, accepted: drafts made and kept, "speculate" only. layers_executed: rows times layers that ran for
    the batch: what hooks on the layers count. More than its rows' together where one that ended before the
    others could not leave the batch ("speculate", a family that cannot, scores that are kept).
    """

    rows: tuple[Generation, ...]
    usage: Usage
    steps: int
    seconds: float
    first_token_seconds: float
    part_seconds: Mapping[str, float] | None = None
    drafted: int = 0
    accepted: int = 0
    layers_executed: int = 0

    def __repr__(self) -> str:
        return f"BatchGeneration({len(self.rows)} sequences, {self.steps:,} steps in {self.seconds:.2f} s)"
