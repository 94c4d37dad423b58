"""One pass over a block of logits: block maxima, partition sum, entropy sum and rank.

The pass is compiled for long traces where a C++ compiler is at hand, since compiling takes up to half a
minute once per machine. The eager form computes the same sums with a few rows at a time in scratch memory.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = 64
"""Columns whose maximum is kept, so that top-1 and top-2 are looked up in the few winning blocks only."""

PADDING_LIMIT = -1e25
"""Columns below are padding, not logits."""

LOWEST = -200.0
"""2^-200 and exp(-200) are 0 in float32; a floor keeps 0 x (-inf) out of the entropy sum."""

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453

_REPAID = 1_000_000_000
"""Logits (tokens x exits x vocabulary) from which on compiling is repaid."""

EAGER_ELEMENTS = 800_000
"""Logits of one eager step: its scratch memory stays in the processor's cache."""

Reductions = Literal["compiled", "eager"]


class RawSums(NamedTuple):
    """Sums of one pass over z [rows, vocabulary], in float32.

    block_maximum: [rows, blocks]; maximum, partition, weighted, above: [rows].
    partition = sum exp(z - maximum); weighted = sum exp(z - maximum) (z - maximum);
    above = number of columns with z > the reference logit.
    """

    block_maximum: Tensor
    maximum: Tensor
    partition: Tensor
    weighted: Tensor
    above: Tensor


@dataclass(frozen=True)
class Transform:
    """What the model does to its head's output: z = scale x, then z = cap tanh(z / cap) unless cap is 0."""

    scale: float = 1.0
    cap: float = 0.0

    @property
    def is_linear(self) -> bool:
        """Whether z is a multiple of the head's output."""
        return self.cap == 0.0

    def __call__(self, output: Tensor) -> Tensor:
        """Logits in float32 from the head's output."""
        return _transform(output, self.scale, self.cap)


def choose_reductions(elements: int) -> Reductions:
    """How to reduce a trace of `elements` = tokens x exits x vocabulary logits."""
    return "compiled" if elements >= _REPAID and can_compile() else "eager"


@functools.cache
def can_compile() -> bool:
    """Whether torch can compile for this processor, tried on a small sum; says why if it cannot."""
    try:
        torch.compile(lambda values: (2.0 * values).sum())(torch.ones(BLOCK))
    except RuntimeError as error:  # no compiler, or one that lacks headers
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        print(f"offramp: reductions are not compiled, which is slower: {why}", file=sys.stderr)
        return False
    return True


def _transform(output: Tensor, scale: float, cap: float) -> Tensor:
    z = output.float()
    if scale != 1.0:
        z = z * scale
    # Padding columns must stay far below every logit, which a soft-cap would undo.
    return torch.where(z < PADDING_LIMIT, z, torch.tanh(z / cap) * cap) if cap else z


def _sums(output: Tensor, reference: Tensor, scale: float, cap: float) -> tuple[Tensor, ...]:
    z = _transform(output, scale, cap)
    block_maximum = z.view(z.shape[0], -1, BLOCK).amax(-1)
    maximum = block_maximum.amax(-1)
    shifted = ((z - maximum[:, None]) * _LOG2_E).clamp(min=LOWEST)
    weight = torch.exp2(shifted)
    # Counted in float32, exact below 16 million columns: integer sums of a comparison are not vectorised.
    above = torch.where(z > reference[:, None], 1.0, 0.0).sum(-1)
    return block_maximum, maximum, weight.sum(-1), (weight * shifted).sum(-1) * _LN_2, above


@functools.cache
def _compiled_sums() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_sums, dynamic=False)


def compiled_sums(output: Tensor, reference: Tensor, transform: Transform) -> RawSums:
    """Sums of the rows in a compiled pass, which is compiled again for every new shape.

    output: [rows, padded vocabulary], padding very negative but finite. reference: float32 [rows], the logit
    to rank, already transformed.
    """
    return RawSums(*_compiled_sums()(output, reference, transform.scale, transform.cap))


class EagerSums:
    """Sums of rows without a compiler, in scratch memory that is allocated once."""

    def __init__(self, transform: Transform, padded: int) -> None:
        self.transform = transform
        self.rows = max(1, EAGER_ELEMENTS // padded)
        self._shifted = torch.empty(self.rows, padded)
        self._weight = torch.empty(self.rows, padded)
        self._greater = torch.empty(self.rows, padded, dtype=torch.bool)

    def __call__(self, output: Tensor, reference: Tensor) -> RawSums:
        """Sums of any number of rows; arguments as in `compiled_sums`."""
        steps = zip(torch.split(output, self.rows), torch.split(reference, self.rows), strict=True)
        return RawSums(
            *(torch.cat(column) for column in zip(*(self._step(*step) for step in steps), strict=True))
        )

    def _step(self, output: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        count = len(output)
        z = self.transform(output)
        block_maximum = z.view(count, -1, BLOCK).amax(-1)
        maximum = block_maximum.amax(-1)
        above = torch.gt(z, reference[:, None], out=self._greater[:count]).sum(-1)
        shifted = torch.sub(z, maximum[:, None], out=self._shifted[:count]).clamp_(min=LOWEST)
        weight = torch.exp(shifted, out=self._weight[:count])
        return block_maximum, maximum, weight.sum(-1), torch.linalg.vecdot(weight, shifted), above.float()
