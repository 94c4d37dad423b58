"""Exit heads as the tracer uses them: hidden states in, row statistics out, one logits buffer for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from offramp.models.stack import ExitStack
from offramp.tracing.rows import BLOCK_ROWS
from offramp.tracing.states import StateShape
from offramp.tracing.statistics import (
    BLOCK,
    EagerSums,
    RawSums,
    Reductions,
    RowStatistics,
    Transform,
    best_columns,
    compiled_sums,
    corrected_row_statistics,
    row_statistics,
)

BUFFER_BYTES = 51_000_000
"""Size of the buffer of logits: enough rows for an efficient product, small beside any model."""

TILE = 4096
"""Columns of the weights that are converted to float32 at a time."""

PADDING = -1e30
"""Finite, so that 0 x padding is 0, and far below any logit."""


class Head(Protocol):
    """Turns states [rows, features] into head output [rows, padded vocabulary] and its statistics."""

    vocabulary_size: int
    transform: Transform
    rows: int
    """Rows of one call of `output` at most."""
    exact_rows: int
    """Rows of one call of `exact_output` at most."""

    def output(self, states: Tensor) -> Tensor:
        """Head output of the states; the next call may overwrite it."""

    def exact_output(self, states: Tensor) -> Tensor:
        """Head output in float32, whatever the head's dtype; the next call may overwrite it."""

    def statistics(self, states: Tensor, output: Tensor, wanted: Tensor) -> tuple[RowStatistics, Tensor]:
        """Row statistics and the logits (float32) of the wanted columns [rows, 2].

        The first wanted column is the reference of `RowStatistics.above`.
        """

    def logits_at(self, states: Tensor, output: Tensor, columns: Tensor) -> Tensor:
        """Logits (float32) of some columns of each row [rows, wanted], which are int64 of that shape."""

    def restricted(self, tokens: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of states and their head output: logits (float32) of some tokens [rows, tokens]."""

    def best_columns(self, states: Tensor, output: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The columns of the largest logits, best first, and these logits (float32) [rows, count].

        Of equal logits the lower column comes first. After a rounded product they are the best of twice as
        many, ordered by their logits in float32.
        """


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 products use bfloat16 factors: exact here, since the factors are bfloat16 already."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def on_device(device: torch.device, read: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """What a part of a model makes of states, back on the CPU, where all statistics are taken."""
    return read(states.to(device)).cpu()


def make_head(
    stack: ExitStack,
    vocabulary_size: int,
    state_shape: StateShape,
    reductions: Reductions,
    *,
    buffer_of: LinearHead | None = None,
) -> Head:
    """The fastest exact head for a model: one tiled product where its head is a finite linear layer.

    buffer_of: another head of the same size, whose buffer of logits it may overwrite.
    """
    weight, bias = stack.head_weight, stack.head_bias
    several_streams = state_shape.other_axes is not None  # the model's own tail brings them together
    if stack.readout_kind != "fast" or weight is None or several_streams:
        return ReadoutHead(stack, vocabulary_size, state_shape)
    finite = bool(torch.isfinite(weight.sum())) and (bias is None or bool(torch.isfinite(bias).all()))
    if not finite:  # a masked vocabulary: -inf in the bias
        return ReadoutHead(stack, vocabulary_size, state_shape)
    bias = None if bias is None else bias.cpu()
    return LinearHead(weight.cpu(), bias, transform_of(stack), reductions, buffer_of)


def transform_of(stack: ExitStack) -> Transform:
    """What the model does to its head's output, as numbers for the compiled pass."""
    found = stack.logit_scaling
    if found is None or found.kind == "identity":
        return Transform()
    return Transform(cap=found.value) if found.kind == "softcap" else Transform(scale=found.value)


def buffer_rows(row_bytes: int) -> int:
    """Rows of a buffer: a power of two, so that whole chunks make up a block of BLOCK_ROWS."""
    rows = BLOCK_ROWS
    while rows > 16 and rows * row_bytes > BUFFER_BYTES:
        rows //= 2
    return rows


def padded_size(vocabulary_size: int) -> int:
    """The vocabulary rounded up to whole blocks of columns."""
    return math.ceil(vocabulary_size / BLOCK) * BLOCK


class LinearHead:
    """A head that is one linear layer, followed by a scale or a soft-cap.

    In float32 its output is float32. In bfloat16 the product accumulates in float32 and its output is rounded
    to bfloat16; `statistics` then computes the best candidates and the wanted columns again in float32.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        transform: Transform,
        reductions: Reductions,
        buffer_of: LinearHead | None = None,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.transform = transform
        self.reductions = reductions
        self.vocabulary_size = len(weight)
        self.padded = padded_size(self.vocabulary_size)
        self.rounds = weight.dtype != torch.float32
        per_row = self.padded * weight.element_size()
        self.rows = buffer_rows(per_row)
        if buffer_of is None:
            self._buffer = torch.full((self.rows, self.padded), PADDING, dtype=weight.dtype)
        else:
            self._buffer = buffer_of._buffer
        self._exact_buffer = self._buffer
        if self.rounds:  # the same memory, read as half as many float32 rows
            self._exact_buffer = self._buffer.view(-1).view(torch.float32).view(-1, self.padded)
        self.exact_rows = len(self._exact_buffer)
        self._eager_sums = EagerSums(transform, self.padded)

    def output(self, states: Tensor) -> Tensor:
        """Head output [rows, padded vocabulary] in the head's dtype."""
        out = self._buffer[: len(states)]
        if self.rounds:
            out[:, self.vocabulary_size :] = PADDING  # `exact_output` shares the buffer
        columns = self.weight.t()
        if self.bias is None:
            torch.mm(states, columns, out=out[:, : self.vocabulary_size])
        else:
            torch.addmm(self.bias, states, columns, out=out[:, : self.vocabulary_size])
        return out

    def exact_output(self, states: Tensor) -> Tensor:
        """Head output [rows, padded vocabulary] in float32."""
        if not self.rounds:
            return self.output(states)
        return self._exact_into(self._exact_buffer[: len(states)], states)

    def _exact_rows(self, states: Tensor) -> Tensor:
        """Head output of a few states in float32, in memory of its own."""
        return self._exact_into(torch.empty(len(states), self.padded), states)

    def _exact_into(self, out: Tensor, states: Tensor) -> Tensor:
        out[:, self.vocabulary_size :] = PADDING
        wide = states.float()
        with bfloat16_products():
            for start in range(0, self.vocabulary_size, TILE):
                tile = slice(start, min(start + TILE, self.vocabulary_size))
                torch.mm(wide, self.weight[tile].float().t(), out=out[:, tile])
                if self.bias is not None:
                    out[:, tile] += self.bias[tile].float()
        return out

    def exact_logits(self, states: Tensor, columns: Tensor) -> Tensor:
        """Logits in float32 of some columns [rows, wanted] of the states [rows, features]."""
        columns = columns.clamp(max=self.vocabulary_size - 1)
        weight = torch.nn.functional.embedding(columns, self.weight)  # far quicker than indexing
        output = torch.bmm(weight.float(), states.float().unsqueeze(-1)).squeeze(-1)
        if self.bias is not None:
            output = output + self.bias[columns].float()
        return self.transform(output)

    def statistics(self, states: Tensor, output: Tensor, wanted: Tensor) -> tuple[RowStatistics, Tensor]:
        """Row statistics and the logits of the wanted columns [rows, 2]."""
        at_wanted = self.logits_at(states, output, wanted)
        if output.dtype == torch.float32:
            sums = self._sums(output, at_wanted[:, 0])
            return row_statistics(output, sums, self.transform), at_wanted
        statistics = corrected_row_statistics(
            output,
            self._sums(output, at_wanted[:, 0]),
            at_wanted[:, 0],
            wanted[:, 0],
            lambda columns: self.exact_logits(states, columns),
            lambda rows: self._exact_rows(states[rows]),
            self.transform,
        )
        return statistics, at_wanted

    def logits_at(self, states: Tensor, output: Tensor, columns: Tensor) -> Tensor:
        """Logits (float32) of some columns of each row [rows, wanted]."""
        if output.dtype == torch.float32:
            return self.transform(output.gather(1, columns))
        return self.exact_logits(states, columns)

    def restricted(self, tokens: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of states and their head output: logits (float32) of some tokens [rows, tokens]."""
        if not self.rounds:
            return lambda states, output: self.transform(output.index_select(1, tokens))
        weight = self.weight[tokens].float()
        bias = None if self.bias is None else self.bias[tokens].float()

        def logits(states: Tensor, output: Tensor) -> Tensor:
            if output.dtype == torch.float32:
                return self.transform(output.index_select(1, tokens))
            with bfloat16_products():
                return self.transform(torch.nn.functional.linear(states.float(), weight, bias))

        return logits

    def best_columns(self, states: Tensor, output: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The columns of the largest logits, best first, and these logits (float32) [rows, count]."""
        count = min(count, self.vocabulary_size)
        if output.dtype == torch.float32:
            return best_columns(output, self.transform, count)
        some, _ = best_columns(output, self.transform, min(2 * count, self.vocabulary_size))
        some = some.sort(dim=-1).values  # so that equal logits stay in the order of their columns
        value, order = self.exact_logits(states, some).sort(dim=-1, descending=True, stable=True)
        return some.gather(1, order[:, :count]), value[:, :count]

    def _sums(self, output: Tensor, reference: Tensor) -> RawSums:
        """Sums of the rows; a compiled pass always sees the whole buffer, so that it is compiled once."""
        if self.reductions == "eager":
            return self._eager_sums(output, reference)
        whole = self._exact_buffer if output.dtype == torch.float32 else self._buffer
        padded = torch.zeros(len(whole))
        padded[: len(output)] = reference
        sums = compiled_sums(whole, padded, self.transform)
        return RawSums(*(column[: len(output)] for column in sums))


class ReadoutHead:
    """A head read out through the model's own forward, where it is more than one linear layer."""

    transform = Transform()

    def __init__(self, stack: ExitStack, vocabulary_size: int, state_shape: StateShape) -> None:
        self.stack = stack
        self.vocabulary_size = vocabulary_size
        self.state_shape = state_shape
        self.padded = padded_size(self.vocabulary_size)
        self.rows = buffer_rows(self.padded * 4)
        self.exact_rows = self.rows
        self._eager_sums = EagerSums(self.transform, self.padded)

    def output(self, states: Tensor) -> Tensor:
        """Logits [rows, padded vocabulary] in float32."""
        hidden = self.state_shape.restore(states)
        logits = on_device(self.stack.device, self.stack.readout, hidden).float().reshape(len(states), -1)
        return torch.nn.functional.pad(logits, (0, self.padded - self.vocabulary_size), value=PADDING)

    def exact_output(self, states: Tensor) -> Tensor:
        """The same as `output`: the model's own logits."""
        return self.output(states)

    def statistics(self, states: Tensor, output: Tensor, wanted: Tensor) -> tuple[RowStatistics, Tensor]:
        """Row statistics and the logits of the wanted columns [rows, 2]."""
        at_wanted = output.gather(1, wanted)
        sums = self._eager_sums(output, at_wanted[:, 0])
        return row_statistics(output, sums, self.transform), at_wanted

    def logits_at(self, states: Tensor, output: Tensor, columns: Tensor) -> Tensor:
        """Logits (float32) of some columns of each row [rows, wanted]."""
        return output.gather(1, columns)

    def restricted(self, tokens: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of states and their head output: logits (float32) of some tokens [rows, tokens]."""
        return lambda states, output: output.index_select(1, tokens)

    def best_columns(self, states: Tensor, output: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The columns of the largest logits, best first, and these logits (float32) [rows, count]."""
        return best_columns(output, self.transform, min(count, self.vocabulary_size))
