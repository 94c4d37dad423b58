"""What comes out of a generation: each answer, where its tokens left, and what was run for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.display import ShownAsHtml
from offramp.policies.cost_breakdown import Usage

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """Turns tokens into text one by one; the pieces together are the text of all tokens.

    A character that takes several tokens is held back until it is whole, as transformers' streamers do.
    decode: token ids to text.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        # The last piece's tokens go along: some tokenizers treat the first token of a text differently.
        self._tokens: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        """The text that a token completes, empty if it completes none."""
        self._tokens.append(token)
        text = self._pending()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self._tokens, self._given = self._tokens[self._given :], len(self._tokens) - self._given
        return text

    def rest(self) -> str:
        """What was held back, if no more tokens come."""
        text = self._pending()
        self._given = len(self._tokens)
        return text

    def _pending(self) -> str:
        before = self._decode(self._tokens[: self._given])
        return self._decode(self._tokens)[len(before) :]


def pieces_of(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> tuple[str, ...]:
    """What each of some tokens adds to their text; the last one also what stays incomplete."""
    pieces = Pieces(decode)
    texts = [pieces.add(token) for token in tokens]
    return (*texts[:-1], texts[-1] + pieces.rest()) if texts else ()


SHOWN_TEXT = 60
"""Characters of a text that its short form shows."""


Decode = Callable[[list[int]], str]
"""Token ids to text."""


def _nothing(tokens: list[int]) -> str:
    """No text: the tokenizer is not known."""
    return ""


@dataclass(frozen=True)
class Generation(ShownAsHtml):
    """One generated sequence."""

    READ_OFF: ClassVar[tuple[str, ...]] = ("skip_ratio",)
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("decode",)

    text: str
    """Of the new tokens, special tokens included."""
    tokens: list[int]
    """The new token ids in order, the end token included; with force_tokens those that were forced."""
    chosen: list[int]
    """What the model would have said in their place (equal to `tokens` unless forced)."""
    exits: NDArray[np.int64]
    """int64 [new tokens], where each new token's prediction left; the first one's is L, since the prompt runs
    at full depth. Under "speculate" these are the drafts' exits, and every layer runs in the end."""
    layers: int
    """L, the layers of the model."""
    layers_executed: int
    """Rows times layers that ran for this sequence, the prompt's and padding's included, those of a step that
    broke and gave no token left out."""
    prompt_layers: int
    """Those of the prompt."""
    prompt_tokens: int
    """Length of the prompt, padding left out."""
    stopped: str
    """Why it ended: "end token", "length", "criteria", or "problem"."""
    problem: str | None = None
    """What went wrong at which token and layer (a non-finite logit), None if nothing did; the tokens before
    it are valid."""
    decode: Decode = field(default=_nothing, repr=False, compare=False)
    """Token ids to text, for `pieces`."""

    def __repr__(self) -> str:
        start = self.text if len(self.text) <= SHOWN_TEXT else f"{self.text[:SHOWN_TEXT]}…"
        return (
            f"Generation({len(self.tokens):,} tokens, {self.skip_ratio:.1%} of the layers skipped, ended by "
            f"{self.stopped}: {start!r})"
        )

    @property
    def pieces(self) -> tuple[str, ...]:
        """What each new token adds to the text: one piece a token, nothing before a character is whole."""
        return pieces_of(self.decode, self.tokens)

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
    """Sequences generated together, and what the whole batch ran."""

    READ_OFF: ClassVar[tuple[str, ...]] = ("skip_ratio", "mean_exit", "tokens_per_second")
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("usage",)

    rows: tuple[Generation, ...]
    """One per prompt."""
    usage: Usage
    """Items after the prompt (see `offramp.policies.cost_breakdown`)."""
    steps: int
    """Decoding steps after the prompt (rounds count each draft and each verification)."""
    seconds: float
    """Wall time of the steps after the first new token."""
    first_token_seconds: float
    """From the start to the first new token."""
    part_seconds: Mapping[str, float] | None = None
    """Seconds by part of time (`offramp.decoding.engine.engine.PARTS_OF_TIME`), None unless timed."""
    drafted: int = 0
    accepted: int = 0
    """Drafts made and kept, "speculate" only."""
    layers_executed: int = 0
    """Rows times layers that ran for the batch: what hooks on the layers count. More than its rows' together
    where one that ended before the others could not leave the batch ("speculate", a family that cannot,
    scores that are kept)."""

    @property
    def layers_run(self) -> tuple[int, int]:
        """Layers that ran after the prompt, and those of the full model on the same tokens, of all rows.

        The last new token is never fed.
        """
        executed = sum(row.layers_executed - row.prompt_layers for row in self.rows)
        return executed, sum(max(0, len(row.tokens) - 1) * row.layers for row in self.rows)

    @property
    def skip_ratio(self) -> float:
        """Share of the full model's layers that did not run; negative after rejected drafts."""
        executed, plain = self.layers_run
        return 1 - executed / plain if plain else 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens after the first of every row, over the seconds that they took; NaN if there are none."""
        fed = sum(max(0, len(row.tokens) - 1) for row in self.rows)
        return fed / self.seconds if fed and self.seconds else float("nan")

    @property
    def mean_exit(self) -> float:
        """Mean exit of the tokens after the first of every row, which always leaves at L; NaN without any."""
        exits = np.concatenate([row.exits[1:] for row in self.rows])
        return float(exits.mean()) if len(exits) else float("nan")

    def __repr__(self) -> str:
        return f"BatchGeneration({len(self.rows)} sequences, {self.steps:,} steps in {self.seconds:.2f} s)"


Stops = Callable[[Tensor, Any], Tensor]
"""transformers' stopping criteria: token ids [batch, length] and scores to bool [batch], rows that end."""
