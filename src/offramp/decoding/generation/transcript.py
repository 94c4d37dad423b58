"""Answers as they grow, row by row: each ends at its end token or its limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.generation.result import Stops
from offramp.decoding.strategies.next_token import Advance, Choice, raise_for


@dataclass
class RowAnswer:
    """One row's new tokens so far; see `offramp.decoding.generation.result.Generation`."""

    tokens: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    layers: int = 0


class Transcript:
    """All rows of a batch.

    ids: int64 [batch, length], prompt and new tokens, padded with `pad` after a row's end, None for going on.
    finished: bool [batch]; over: the same on the host. stops: stopping criteria. streamer: given each column
    of new tokens as it comes; one with a method `put_exits` is given their exits, int64 [batch], just before.
    scores: those of every new token, float32 [batch, vocabulary] each, None unless `keep_scores`.
    """

    def __init__(
        self, ids: Tensor, *, stops: Stops, pad: int | None, streamer: Any, keep_scores: bool
    ) -> None:
        self.ids = ids
        self.prompt = ids.shape[1]
        self.finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self.over: NDArray[np.bool_] = np.zeros(len(ids), dtype=np.bool_)
        self.rows = [RowAnswer() for _ in ids]
        self.scores: list[Tensor] | None = [] if keep_scores else None
        self._stops = stops
        self._pad = pad
        self._streamer = streamer

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return bool(self.over.all())

    @property
    def pads(self) -> bool:
        """Whether rows are filled up after their end, so that nothing else of them is wanted."""
        return self._pad is not None

    @property
    def last(self) -> Tensor:
        """The newest token of every row: int64 [batch, 1]."""
        return self.ids[:, -1:]

    def add(self, advance: Advance) -> None:
        """Append the new tokens of a step, one column at a time until every row has ended.

        Raises NonFiniteLogits for a row that has not and has no token to choose.
        """
        for choice, exits in zip(advance.choices, advance.exits.T, strict=True):
            self._add(choice, exits)
            if self.done:
                return

    def _add(self, choice: Choice, exits: NDArray[np.int64]) -> None:
        tokens = choice.fed
        if self._pad is not None:
            tokens = torch.where(self.finished, self._pad, tokens)
        ids = torch.cat([self.ids, tokens[:, None]], 1)
        kept = None if self.scores is None else [*self.scores, choice.scores]
        finished = self.finished | self._stops(ids, None if kept is None else tuple(kept))
        # All that the host must know of a token in one copy: an accelerator is waited for once.
        told = torch.stack([tokens, choice.chosen, finished.long(), choice.broken.long()]).cpu()
        said, chosen, over, broken = told.tolist()
        raise_for(broken)
        for row, answer in enumerate(self.rows):
            if not self.over[row]:
                answer.tokens.append(said[row])
                answer.chosen.append(chosen[row])
                answer.exits.append(int(exits[row]))
        self.ids, self.scores, self.finished = ids, kept, finished
        self.over = np.array(over, dtype=np.bool_)
        if self._streamer is not None:
            if hasattr(self._streamer, "put_exits"):
                self._streamer.put_exits(exits)
            self._streamer.put(told[0])

    def end(self) -> None:
        """Nothing follows."""
        if self._streamer is not None:
            self._streamer.end()

    def add_layers(self, layers: NDArray[np.int64], running: NDArray[np.bool_]) -> None:
        """Layers that ran for each row, int64 [batch], of rows that were running then, bool [batch]."""
        for answer, executed, ran in zip(self.rows, layers.tolist(), running.tolist(), strict=True):
            answer.layers += executed if ran else 0
