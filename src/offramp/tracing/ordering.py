"""The largest logits of each row, in an order that has no ties left."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.tracing.reductions import BLOCK, EAGER_ELEMENTS, PADDING_LIMIT, Transform


def best_columns(output: Tensor, transform: Transform, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the `count` largest logits of each row, int64 [rows, count], and the logits, float32.

    output: head output [rows, padded vocabulary]; count is at most the vocabulary. Best first, of equal
    logits the lower column first. A few rows are taken at a time, whose logits stay in the processor's cache.
    """
    steps = torch.split(output, max(1, EAGER_ELEMENTS // output.shape[1]))
    columns, values = zip(*(_best_of_rows(transform(step), count) for step in steps), strict=True)
    return torch.cat(columns), torch.cat(values)


def _best_of_rows(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same of a few rows of logits, among as many blocks of columns as may hold them."""
    row = torch.arange(len(z))[:, None]
    grouped = z.view(len(z), -1, BLOCK)
    # A block behind `count` others holds none of the best: each of those has a better or an earlier one.
    blocks = _descending(grouped.amax(-1)).indices[:, :count].sort(dim=-1).values
    value, order = _descending(grouped[row, blocks].flatten(1))
    order = order[:, :count]
    return blocks.gather(1, order // BLOCK) * BLOCK + order % BLOCK, value[:, :count]


def _descending(z: Tensor) -> torch.return_types.sort:
    """Sorted, equal ones in their order; padding counts as less than any masked (infinite) logit's column."""
    return torch.where(z < PADDING_LIMIT, -torch.inf, z).sort(dim=-1, descending=True, stable=True)
