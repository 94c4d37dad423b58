"""Row statistics of a block of logits in one pass: maxima, partition sum, entropy sum and rank.

The reductions are compiled where a C++ compiler is at hand (about a tenth of the time of the eager ones); the
eager form computes the same formulas and is used otherwise, and for small traces, where compiling takes
longer.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = 64
"""Columns whose maximum is kept, so that top-1 and top-2 are looked up in the few winning blocks only."""

CANDIDATES = 8
"""Best columns of a bfloat16 product whose logits are computed again in float32."""

WINNING_BLOCKS = 8

_PADDING_LIMIT = -1e25

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453

_LOWEST = -200.0
"""2^-200 and exp(-200) are 0 in float32; a floor keeps 0 x (-inf) out of the entropy sum."""

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
class RowStatistics:
    """Statistics of softmax(z) for each row; float32 [rows] unless said otherwise.

    top1: int64. maximum, second: the two largest logits. log_sum: log sum exp(z - maximum), which keeps its
    digits however large the logits are. entropy: nats. above: int64, columns with a logit larger than the
    reference.
    """

    top1: Tensor
    maximum: Tensor
    second: Tensor
    log_sum: Tensor
    entropy: Tensor
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


def _transform(output: Tensor, scale: float, cap: float) -> Tensor:
    z = output.float()
    if scale != 1.0:
        z = z * scale
    # Padding columns must stay far below every logit, which a soft-cap would undo.
    return torch.where(z < _PADDING_LIMIT, z, torch.tanh(z / cap) * cap) if cap else z


def _raw_sums(
    output: Tensor, reference: Tensor, scale: float, cap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    z = _transform(output, scale, cap)
    block_maximum = z.view(z.shape[0], -1, BLOCK).amax(-1)
    maximum = block_maximum.amax(-1)
    shifted = ((z - maximum[:, None]) * _LOG2_E).clamp(min=_LOWEST)
    weight = torch.exp2(shifted)
    # Counted in float32, exact below 16 million columns: integer sums of a comparison are not vectorised.
    above = torch.where(z > reference[:, None], 1.0, 0.0).sum(-1)
    return block_maximum, maximum, weight.sum(-1), (weight * shifted).sum(-1) * _LN_2, above


@functools.cache
def _compiled_raw_sums() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    return torch.compile(_raw_sums, dynamic=False)


def choose_reductions(elements: int) -> Reductions:
    """How to reduce a trace of `elements` = tokens x exits x vocabulary logits.

    Compiling takes up to half a minute once per machine; it is worth it from a billion logits on.
    """
    worthwhile = elements >= 1_000_000_000
    return "compiled" if worthwhile and (shutil.which("g++") or shutil.which("clang++")) else "eager"


def raw_sums(output: Tensor, reference: Tensor, transform: Transform, reductions: Reductions) -> RawSums:
    """One pass over the head's output [rows, padded vocabulary] (padding: a very negative finite number).

    reference: float32 [rows], the logit to rank, already transformed.
    """
    if reductions == "compiled":
        return RawSums(*_compiled_raw_sums()(output, reference, transform.scale, transform.cap))
    parts = [
        _raw_sums(rows, wanted, transform.scale, transform.cap)
        for rows, wanted in zip(
            torch.split(output, _EAGER_ROWS), torch.split(reference, _EAGER_ROWS), strict=True
        )
    ]
    return RawSums(*(torch.cat(column) for column in zip(*parts, strict=True)))


_EAGER_ROWS = 8
"""Few rows at a time keep the eager temporaries in the processor's cache."""


def row_statistics(output: Tensor, sums: RawSums, transform: Transform) -> RowStatistics:
    """Statistics of rows whose head output [rows, padded vocabulary] is float32-accurate."""
    rows = torch.arange(len(output))
    best_two = sums.block_maximum.topk(min(2, sums.block_maximum.shape[1]), dim=-1).values
    block = sums.block_maximum.argmax(-1)  # the first among equals, so the lowest token id wins
    inside = transform(output.view(len(output), -1, BLOCK)[rows, block])
    within = inside.argmax(-1)
    inside[rows, within] = -torch.inf
    second = inside.amax(-1)
    if best_two.shape[1] == 2:
        second = torch.maximum(second, best_two[:, 1])
    return RowStatistics(
        top1=block * BLOCK + within,
        maximum=sums.maximum,
        second=second,
        log_sum=sums.partition.log(),
        entropy=sums.partition.log() - sums.weighted / sums.partition,
        above=sums.above.long(),
    )


def corrected_row_statistics(
    output: Tensor,
    sums: RawSums,
    reference: Tensor,
    exact: Callable[[Tensor], Tensor],
    exact_output: Callable[[Tensor], Tensor],
    transform: Transform,
) -> RowStatistics:
    """Statistics of rows whose head output was rounded to bfloat16; the best candidates are taken in float32.

    A bfloat16 product rounds a logit of 16 to a step of 0.125, which breaks ties and moves the largest
    probabilities. The best CANDIDATES columns carry nearly all of that error; `exact(columns [rows,
    candidates])` gives their float32 logits (transformed), and their rounded contributions are replaced in
    every sum. Where more columns share the largest rounded logit than are candidates, the whole row is taken
    from `exact_output(rows)`, the float32 head output of some rows.
    """
    rows = torch.arange(len(output))[:, None]
    blocks = sums.block_maximum.topk(min(WINNING_BLOCKS, sums.block_maximum.shape[1]), dim=-1).indices
    inside = transform(output.view(len(output), -1, BLOCK)[rows, blocks]).flatten(1)
    rounded, where = inside.topk(min(CANDIDATES, inside.shape[1]), dim=-1)
    columns = blocks.gather(1, where // BLOCK) * BLOCK + where % BLOCK
    statistics = _replace_candidates(sums, reference, rounded, columns, exact(columns))
    crowded = rounded[:, -1] == sums.maximum
    if sums.block_maximum.shape[1] > WINNING_BLOCKS:
        crowded |= sums.block_maximum.gather(1, blocks[:, -1:])[:, 0] == sums.maximum
    if not bool(crowded.any()):
        return statistics
    return _with_exact_rows(statistics, torch.nonzero(crowded).flatten(), reference, exact_output, transform)


def _with_exact_rows(
    statistics: RowStatistics,
    rows: Tensor,
    reference: Tensor,
    exact_output: Callable[[Tensor], Tensor],
    transform: Transform,
) -> RowStatistics:
    """The statistics with some rows (int64) computed from their float32 head output."""
    for some in torch.split(rows, _EAGER_ROWS):
        output = exact_output(some)
        exact = row_statistics(output, raw_sums(output, reference[some], transform, "eager"), transform)
        for field in dataclasses.fields(RowStatistics):
            getattr(statistics, field.name)[some] = getattr(exact, field.name)
    return statistics


def _replace_candidates(
    sums: RawSums, reference: Tensor, rounded: Tensor, columns: Tensor, value: Tensor
) -> RowStatistics:
    value = torch.where(rounded < _PADDING_LIMIT, rounded, value)  # padding columns stay padding
    maximum = value.amax(-1)
    shift = sums.maximum - maximum
    old = (rounded - sums.maximum[:, None]).clamp(min=_LOWEST)
    new = (value - maximum[:, None]).clamp(min=_LOWEST)
    rest = (sums.partition - old.exp().sum(-1)).clamp(min=0)
    rest_weighted = sums.weighted - (old.exp() * old).sum(-1)
    partition = rest * shift.exp() + new.exp().sum(-1)
    weighted = (rest_weighted + rest * shift) * shift.exp() + (new.exp() * new).sum(-1)
    is_best = value == maximum[:, None]
    top1 = torch.where(is_best, columns, torch.iinfo(columns.dtype).max).amin(-1)
    others = torch.where(columns == top1[:, None], -torch.inf, value)
    above = sums.above.long() - (rounded > reference[:, None]).sum(-1) + (value > reference[:, None]).sum(-1)
    return RowStatistics(
        top1=top1,
        maximum=maximum,
        second=others.amax(-1),
        log_sum=partition.log(),
        entropy=(partition.log() - weighted / partition).clamp(min=0),
        above=above,
    )
