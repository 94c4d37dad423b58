"""Choosing the next token from logits, the best one or a sample; and what the full model says to a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.models.devices import CPU

Process = Callable[[Tensor, Tensor], Tensor]
"""transformers' logits processors: ids so far [batch, length] and scores [batch, vocabulary] to scores."""


class Choice(NamedTuple):
    """chosen: int64 [batch]. fed: the forced tokens, if any, else the chosen. scores: float32, processed.

    broken: bool [batch], rows that go on and whose logits give no token (see `require_whole`).
    """

    chosen: Tensor
    fed: Tensor
    scores: Tensor
    broken: Tensor


@dataclass(frozen=True)
class Advance:
    """What one step of a strategy gives."""

    choices: tuple[Choice, ...]
    """One for each new token, at least one."""
    exits: NDArray[np.int64]
    """int64 [batch, new], where each prediction left (by each row's own policy under "rebatch", the batch's
    exit in lockstep)."""
    layers: NDArray[np.int64] | None = None
    """int64 [batch], layers executed for each row in this step, None if every row's share of what ran is the
    same."""


class NonFiniteLogits(ArithmeticError):
    """A logit is no number, or the largest is infinite. row: whose, the first such.

    A token that a model rules out with a logit of -inf is none of this.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(f"a logit of row {row} is not finite")


def is_broken(logits: Tensor) -> Tensor:
    """Whether no token can be chosen: a NaN, +inf, or nothing but -inf; bool [...] of [..., vocabulary]."""
    return ~torch.isfinite(logits.amax(-1))


def require_whole(broken: Tensor) -> None:
    """Wait for which rows' logits are broken, bool [batch] or [batch, 1].

    Raises NonFiniteLogits for the first.
    """
    raise_for(broken.flatten().tolist())


def raise_for(broken: Sequence[object]) -> None:
    """The same of what is on the host already."""
    row = next((row for row, is_one in enumerate(broken) if is_one), None)
    if row is not None:
        raise NonFiniteLogits(row)


@dataclass(eq=False)
class Chooser:
    """Chooses one token per row."""

    process: Process
    """Logits processors."""
    _: KW_ONLY
    prompt: int
    """Length of the padded prompt."""
    sampling: bool = False
    """A sample of the softmax instead of the most probable token."""
    forced: Tensor | None = None
    """int64 [batch, new], fed instead of what is chosen."""
    random: torch.Generator | None = None
    """Where samples come from, None for torch's global generator."""
    finished: Tensor | None = None
    """bool [batch], rows that are over, whose logits do not matter; None while there are none."""
    present: Tensor | None = None
    """int64, the rows that are still decoded, None for all; processors see the whole batch all the same, and
    samples are drawn for all of it, so that nothing depends on who has left."""

    def scores(self, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Processed scores, float32 [batch, vocabulary], of the tokens so far, int64 [batch, length].

        And which rows that go on have broken logits (`is_broken`), bool [batch]: nothing waits for it here,
        so that an accelerator is waited for once a token, when the token itself is wanted.
        """
        logits = logits.float()
        broken = is_broken(logits)
        if broken.device.type != CPU or broken.any():
            logits = logits.masked_fill(broken[:, None], 0.0)  # no sample can be taken of them
        live = broken if self.finished is None else broken & ~self.finished
        return self.process(ids, logits), live

    def pick(self, scores: Tensor) -> Tensor:
        """One token per row: int64 [batch]."""
        if self.sampling:
            return torch.multinomial(scores.softmax(-1), 1, generator=self.random).squeeze(1)
        return scores.argmax(-1)

    def choose(self, ids: Tensor, logits: Tensor) -> Choice:
        """The tokens after `ids` [batch, length], from the logits of the rows that are present."""
        if self.present is not None:
            logits = logits.new_zeros(len(ids), logits.shape[-1]).index_copy_(0, self.present, logits)
        scores, broken = self.scores(ids, logits)
        chosen = self.pick(scores)
        return Choice(chosen, self.forced_after(ids, chosen), scores, broken)

    def forced_after(self, ids: Tensor, chosen: Tensor) -> Tensor:
        """The forced tokens after `ids`, the chosen ones where none are."""
        return chosen if self.forced is None else self.forced[:, ids.shape[1] - self.prompt]
