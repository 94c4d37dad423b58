"""Statistics of softmax(z) for each row of logits, from the sums of one pass over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.tracing.reductions import BLOCK, LOWEST, PADDING_LIMIT, EagerSums, RawSums, Transform

CANDIDATES = 8
"""Best columns of a bfloat16 product whose logits are computed again in float32."""

WINNING_BLOCKS = 8

_CROWDED_ROWS = 16
"""Rows computed wholly again at a time, where a row has more equal logits than candidates."""


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
    own: Tensor,
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
    own: int64 [rows], the column that the reference is the logit of. It is never above itself, although a
    product of another shape may give it another last digit.
    """
    rows = torch.arange(len(output))[:, None]
    blocks = sums.block_maximum.topk(min(WINNING_BLOCKS, sums.block_maximum.shape[1]), dim=-1).indices
    inside = transform(output.view(len(output), -1, BLOCK)[rows, blocks]).flatten(1)
    rounded, where = inside.topk(min(CANDIDATES, inside.shape[1]), dim=-1)
    columns = blocks.gather(1, where // BLOCK) * BLOCK + where % BLOCK
    others = _without_own(sums, output, own, reference, transform)
    counted = columns != own[:, None]
    statistics = _replace_candidates(others, reference, rounded, columns, exact(columns), counted)
    crowded = rounded[:, -1] == sums.maximum
    if sums.block_maximum.shape[1] > WINNING_BLOCKS:
        crowded |= sums.block_maximum.gather(1, blocks[:, -1:])[:, 0] == sums.maximum
    if not bool(crowded.any()):
        return statistics
    return _with_exact_rows(
        statistics, torch.nonzero(crowded).flatten(), reference, own, exact_output, transform
    )


def _with_exact_rows(
    statistics: RowStatistics,
    rows: Tensor,
    reference: Tensor,
    own: Tensor,
    exact_output: Callable[[Tensor], Tensor],
    transform: Transform,
) -> RowStatistics:
    """The statistics with some rows (int64) computed from their float32 head output."""
    for some in torch.split(rows, _CROWDED_ROWS):
        output = exact_output(some)
        sums = EagerSums(transform, output.shape[1])(output, reference[some])
        others = _without_own(sums, output, own[some], reference[some], transform)
        exact = row_statistics(output, others, transform)
        for field in dataclasses.fields(RowStatistics):
            getattr(statistics, field.name)[some] = getattr(exact, field.name)
    return statistics


def _without_own(
    sums: RawSums, output: Tensor, own: Tensor, reference: Tensor, transform: Transform
) -> RawSums:
    """The sums of a pass over `output` that counts no column as above its own logit."""
    itself = transform(output.gather(1, own[:, None]))[:, 0] > reference
    return sums._replace(above=sums.above - itself.float())


def _replace_candidates(
    sums: RawSums, reference: Tensor, rounded: Tensor, columns: Tensor, value: Tensor, counted: Tensor
) -> RowStatistics:
    """counted: bool [rows, candidates], whether a column may be above the reference."""
    value = torch.where(rounded < PADDING_LIMIT, rounded, value)  # padding columns stay padding
    maximum = value.amax(-1)
    shift = sums.maximum - maximum
    old = (rounded - sums.maximum[:, None]).clamp(min=LOWEST)
    new = (value - maximum[:, None]).clamp(min=LOWEST)
    rest = (sums.partition - old.exp().sum(-1)).clamp(min=0)
    rest_weighted = sums.weighted - (old.exp() * old).sum(-1)
    partition = rest * shift.exp() + new.exp().sum(-1)
    weighted = (rest_weighted + rest * shift) * shift.exp() + (new.exp() * new).sum(-1)
    is_best = value == maximum[:, None]
    top1 = torch.where(is_best, columns, torch.iinfo(columns.dtype).max).amin(-1)
    others = torch.where(columns == top1[:, None], -torch.inf, value)
    before, after = ((one > reference[:, None]) & counted for one in (rounded, value))
    above = sums.above.long() - before.sum(-1) + after.sum(-1)
    return RowStatistics(
        top1=top1,
        maximum=maximum,
        second=others.amax(-1),
        log_sum=partition.log(),
        entropy=(partition.log() - weighted / partition).clamp(min=0),
        above=above,
    )
