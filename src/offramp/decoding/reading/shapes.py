"""The hidden states of one position of every sequence, as rows and as the layer gave them."""

from __future__ import annotations

from torch import Tensor


def rows_of(hidden: Tensor, position_axis: int) -> Tensor:
    """Rows [batch, features] of a layer's output for one position.

    position_axis: counted from the end; the axis before it counts sequences. Any other axes are flattened in
    their order, as the tracer does.
    """
    if hidden.dim() == 3 and position_axis == -2:
        return hidden[:, -1]
    return hidden.movedim((position_axis - 1, position_axis), (0, 1))[:, -1].flatten(1)


def hidden_of(rows: Tensor, like: Tensor, position_axis: int) -> Tensor:
    """The layer's output again, of rows [batch, features]; `like` is one of the same shape."""
    if like.dim() == 3 and position_axis == -2:
        return rows.unsqueeze(1)
    moved = like.movedim((position_axis - 1, position_axis), (0, 1))
    return rows.view(moved.shape).movedim((0, 1), (position_axis - 1, position_axis))
