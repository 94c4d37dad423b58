"""The full model as a judge of token sequences: one teacher-forced forward for one or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.models.stack import ExitStack
from offramp.tracing.head import TILE

ROWS_AT_ONCE = 64
"""Positions whose logits are in memory together."""

TOLERANCE = {"float32": 2e-5, "bfloat16": 2.0**-6}
"""Of the largest logit: what a sequence's logits may differ by between its own forward and a shared one."""

Pair = tuple[Sequence[int], Sequence[int]]
"""A prompt and its answer, token ids."""


@dataclass(frozen=True)
class Judged:
    """What the full model says of an answer, given the prompt and the answer's own earlier tokens.

    chosen: int64 [new], its most probable token in each place. logprob: float64 [new], of the answer's token,
    in nats. gap: float64 [new], largest logit less that of the answer's token. largest: float64 [new].
    """

    chosen: NDArray[np.int64]
    logprob: NDArray[np.float64]
    gap: NDArray[np.float64]
    largest: NDArray[np.float64]


def judge(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> Judged:
    """Hold an answer, token ids, against the full model; logits and softmax in float32.

    Raises InputError for an empty prompt or answer, and if a logit is not finite where it is needed.
    """
    ids = _padded(model, [(prompt, answer)])
    return _of_answer(model.stack, last_states(model, ids), ids, len(prompt), answer)


class Judge:
    """The full model as a judge of several answers in one forward, where that is exact for its family.

    Rows are filled up on their right, which no earlier position can see. Whether a row's logits stay what
    they are alone is tried on the first rows of one length, and on the first that are filled up; where they
    do not, answers are judged one by one.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._exact: dict[bool, bool] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[Judged]:
        """Each answer after its prompt, as `judge` holds it. Raises as that does."""
        lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
        filled = len(set(lengths)) > 1
        if len(pairs) > 1 and self._exact.get(filled, True):
            together = self._judge_together(pairs)
            if together is not None and filled not in self._exact:
                shortest = lengths.index(min(lengths))
                self._exact[filled] = self._same(together[shortest], judge(self.model, *pairs[shortest]))
            if together is not None and self._exact[filled]:
                return together
            self._exact[filled] = False
        return [judge(self.model, prompt, answer) for prompt, answer in pairs]

    def _judge_together(self, pairs: Sequence[Pair]) -> list[Judged] | None:
        """All in one forward; None if the layers' outputs do not keep one row for each sequence."""
        ids, stack = _padded(self.model, pairs), self.model.stack
        states = last_states(self.model, ids)
        if states.dim() != 3 or stack.position_axis != -2 or len(states) != len(pairs):
            return None
        return [
            _of_answer(stack, states[row : row + 1], ids[row : row + 1], len(prompt), answer)
            for row, (prompt, answer) in enumerate(pairs)
        ]

    def _same(self, one: Judged, other: Judged) -> bool:
        tolerance = TOLERANCE[self.model.dtype] * np.maximum(1.0, np.abs(other.largest))
        return bool((np.abs(one.gap - other.gap) <= tolerance).all())


def _padded(model: Model, pairs: Sequence[Pair]) -> Tensor:
    """Prompts and answers without their last token, each row filled up with its own last id."""
    if not all(prompt and answer for prompt, answer in pairs):
        raise InputError("a prompt and an answer need at least one token each", where="judging an answer")
    rows = [[*prompt, *answer[:-1]] for prompt, answer in pairs]
    longest = max(map(len, rows))
    ids = [row + row[-1:] * (longest - len(row)) for row in rows]
    return torch.tensor(ids, dtype=torch.long, device=model.stack.device)


def _of_answer(stack: ExitStack, states: Tensor, ids: Tensor, prompt: int, answer: Sequence[int]) -> Judged:
    """An answer held against one sequence's states after layer L; prompt: its tokens."""
    parts = []
    for start in range(0, len(answer), ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, len(answer) - start)
        place = prompt - 1 + start
        hidden = states.narrow(stack.position_axis, place, rows)
        logits = float_logits(stack, hidden, ids[:, place : place + rows])
        parts.append(_of_rows(logits, answer[start : start + rows], start))
    return Judged(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def last_states(model: Model, ids: Tensor) -> Tensor:
    """The output of layer L of the full model, as the layer gives it, for ids int64 [batch, positions]."""
    kept: list[Tensor] = []

    def keep(index: int, before: Tensor, after: Tensor) -> None:
        kept[:] = [after]

    model.stack.capture(ids, keep)
    return kept[0]


@torch.no_grad()
def float_logits(stack: ExitStack, hidden: Tensor, ids: Tensor) -> Tensor:
    """The full model's logits, float32 [rows, vocabulary], of one sequence's states after layer L.

    A product that the model rounds to its own dtype is taken in float32, so that its NLL is no step function.
    """
    weight, bias, transform = stack.head_weight, stack.head_bias, stack.logit_scaling
    if stack.readout_kind != "fast" or weight is None or transform is None or weight.dtype == torch.float32:
        return stack.readout(hidden, ids)[0].float()
    normed = stack.tail_forward(hidden)[0].float()
    logits = torch.empty(len(normed), len(weight), device=normed.device)
    for start in range(0, len(weight), TILE):  # never the whole head in float32
        tile = slice(start, start + TILE)
        own_bias = None if bias is None else bias[tile].float()
        logits[:, tile] = F.linear(normed, weight[tile].float(), own_bias)
    return transform.apply(logits)


def _of_rows(logits: Tensor, tokens: Sequence[int], start: int) -> tuple[NDArray[np.generic], ...]:
    """Judged's columns for some rows of logits, float32 [rows, vocabulary]."""
    best, chosen = logits.max(-1)
    own = logits.gather(-1, torch.tensor(tokens, device=logits.device).unsqueeze(-1)).squeeze(-1)
    logprob = own - logits.logsumexp(-1)
    finite = torch.isfinite(best) & torch.isfinite(logprob)
    if not bool(finite.all()):
        place = start + int((~finite).nonzero()[0])
        raise InputError(
            "the full model's logits of an answer are not finite",
            where=f"token {place + 1} of the answer",
            fix="load the model in float32, or leave this prompt out",
        )
    columns = (chosen, logprob.double(), (best - own).double(), best.double())
    return tuple(np.asarray(column.cpu().numpy()) for column in columns)
