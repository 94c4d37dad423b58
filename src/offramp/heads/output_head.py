"""Output heads: hidden states in, logits and their statistics out, one buffer of logits for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from offramp.heads.precision import products_in
from offramp.heads.statistics import (
    BLOCK,
    EagerSums,
    HeadTransform,
    RawSums,
    Reductions,
    RowStatistics,
    best_columns,
    compiled_sums,
    corrected_row_statistics,
    row_statistics,
)
from offramp.models.calls import first_tensor
from offramp.models.devices import CPU, free_bytes
from offramp.models.model import Model
from offramp.models.stack import ExitStack

BLOCK_ROWS = 512
"""Rows whose statistics are taken together: positions are the outer loop, exits the inner one.

The same on every device and however much memory is free there, since it decides which tokens are partners."""

BUFFER_BYTES = 51_000_000
"""Of the buffer of logits on a processor: enough rows for an efficient product, small beside any model."""

ACCELERATOR_BUFFER_BYTES = 300_000_000
"""The same on an accelerator, at most: a whole block of rows of 128 thousand tokens in float32."""

PADDING = -1e30
"""Far below any logit, and finite where the dtype has such a number, which float16 has not."""


def buffer_rows(row_bytes: int, device: torch.device) -> int:
    """Rows of a buffer: a power of two, so that whole chunks make up a block of BLOCK_ROWS."""
    most = BUFFER_BYTES
    if device.type != CPU:
        most = max(BUFFER_BYTES, min(ACCELERATOR_BUFFER_BYTES, free_bytes(device) // 16))
    rows = BLOCK_ROWS
    while rows > 16 and rows * row_bytes > most:
        rows //= 2
    return rows


def padded_size(vocabulary_size: int) -> int:
    """The vocabulary rounded up to whole blocks of columns."""
    return math.ceil(vocabulary_size / BLOCK) * BLOCK


class LogitsBuffer:
    """Memory for a head's output [rows, padded vocabulary], in its dtype and, in fewer rows, in float32.

    columns: the vocabulary; what is beyond is padding.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self.padding = PADDING if torch.finfo(dtype).min < PADDING else -math.inf
        self._columns = columns
        rows = buffer_rows(padded_size(columns) * dtype.itemsize, device)
        self._allocate(torch.empty(rows, padded_size(columns), dtype=dtype, device=device))

    def _allocate(self, memory: Tensor) -> None:
        self.whole = memory.fill_(self.padding)
        self.exact = memory
        if memory.dtype != torch.float32:  # the same memory, read as half as many float32 rows
            self.exact = memory.view(-1).view(torch.float32).view(-1, memory.shape[1])

    @property
    def rows(self) -> int:
        """Rows in the head's dtype."""
        return len(self.whole)

    def halve(self) -> None:
        """Keep room for half as many rows; what is there is lost."""
        shape = (max(self.rows // 2, 2), self.whole.shape[1])
        dtype, device = self.whole.dtype, self.whole.device
        del self.whole, self.exact  # before the smaller memory is asked for
        self._allocate(torch.empty(shape, dtype=dtype, device=device))

    def rounded_rows(self, count: int) -> Tensor:
        """Memory of some rows in the head's dtype, whose padding is as it should be."""
        if self.exact is not self.whole:
            self.whole[:count, self._columns :] = self.padding  # float32 rows were there, perhaps
        return self.whole[:count]


@dataclass(frozen=True)
class StateShape:
    """How a layer's output relates to rows [positions, features]."""

    position_axis: int
    """Counted from the end."""
    other_axes: tuple[int, ...] | None
    """Sizes of the remaining axes of an output with batch 1, None for [batch, positions, hidden]."""
    features: int

    @classmethod
    def of(cls, hidden: Tensor, position_axis: int) -> StateShape:
        """The shape of one layer output."""
        if hidden.dim() == 3 and position_axis == -2:
            return cls(position_axis, None, hidden.shape[-1])
        others = hidden.movedim(position_axis, 0)[0]
        return cls(position_axis, tuple(others.shape), others.numel())

    def rows(self, hidden: Tensor) -> Tensor:
        """[batch, positions, features] of a layer's output (batch 1 for unusual shapes)."""
        if self.other_axes is None:
            return hidden
        return hidden.movedim(self.position_axis, 0).flatten(1).unsqueeze(0)

    def restore(self, rows: Tensor) -> Tensor:
        """A layer output again, of rows [positions, features]."""
        if self.other_axes is None:
            return rows.unsqueeze(0)
        return rows.view(len(rows), *self.other_axes).movedim(0, self.position_axis)


TILE = 4096
"""Columns of the weights that are converted to float32 at a time."""


def state_shape_of(model: Model) -> StateShape:
    """The shape of a layer's output, as in the short forward that the stack of exits was found by."""
    return StateShape.of(first_tensor(model.stack.layer_outputs[0]), model.stack.position_axis)


class Head(Protocol):
    """Turns states [rows, features] into head output [rows, padded vocabulary] and its statistics.

    All on one device, that of the output head.
    """

    vocabulary_size: int
    device: torch.device
    transform: HeadTransform

    @property
    def rows(self) -> int:
        """Rows of one call of `output` at most."""

    @property
    def exact_rows(self) -> int:
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

    def halve(self) -> None:
        """Take half as many rows from now on, in half the memory."""


def at_head(stack: ExitStack, read: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """What a part of a model makes of states, brought to the output head's device.

    A model that is spread over several devices may have that part elsewhere.
    """
    return read(states).to(stack.head_device)


def make_head(
    stack: ExitStack,
    vocabulary_size: int,
    state_shape: StateShape,
    reductions: Reductions,
    *,
    buffer_of: LinearHead | None = None,
) -> Head:
    """The fastest exact head for a model: one tiled product where its head is a finite linear layer.

    buffer_of: another head of the same size and of the same model, whose buffer of logits it may overwrite.
    """
    weight, bias = stack.head_weight, stack.head_bias
    several_streams = state_shape.other_axes is not None  # the model's own tail brings them together
    if stack.readout_kind != "fast" or weight is None or several_streams:
        return ReadoutHead(stack, vocabulary_size, state_shape)
    finite = bool(torch.isfinite(weight.sum())) and (bias is None or bool(torch.isfinite(bias).all()))
    if not finite:  # a masked vocabulary: -inf in the bias
        return ReadoutHead(stack, vocabulary_size, state_shape)
    return LinearHead(weight, bias, transform_of(stack), reductions, buffer_of)


def transform_of(stack: ExitStack) -> HeadTransform:
    """What the model does to its head's output, as numbers for the compiled pass."""
    found = stack.logit_scaling
    if found is None or found.kind == "identity":
        return HeadTransform()
    return HeadTransform(cap=found.value) if found.kind == "softcap" else HeadTransform(scale=found.value)


class LinearHead:
    """A head that is one linear layer, followed by a scale or a soft-cap.

    In float32 its output is float32. In bfloat16 and float16 the product accumulates in float32 and its
    output is rounded; `statistics` then computes the best candidates and the wanted columns again in float32.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        transform: HeadTransform,
        reductions: Reductions,
        buffer_of: LinearHead | None = None,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.device = weight.device
        self.transform = transform
        self.reductions = reductions
        self.vocabulary_size = len(weight)
        self.padded = padded_size(self.vocabulary_size)
        self.rounds = weight.dtype != torch.float32
        # Factors of bfloat16 lose nothing in products that take such; those of float16 would.
        self._exact_precision: Literal["highest", "medium"] = (
            "medium" if weight.dtype == torch.bfloat16 else "highest"
        )
        self.buffer: LogitsBuffer = (
            LogitsBuffer(len(weight), weight.dtype, weight.device) if buffer_of is None else buffer_of.buffer
        )
        self._eager_sums: EagerSums = (
            EagerSums(transform, self.padded, self.device, self.rows)
            if buffer_of is None
            else buffer_of._eager_sums
        )

    @property
    def rows(self) -> int:
        """Rows of one call of `output` at most."""
        return self.buffer.rows

    @property
    def exact_rows(self) -> int:
        """Rows of one call of `exact_output` at most."""
        return len(self.buffer.exact)

    def halve(self) -> None:
        """Take half as many rows from now on; so do the heads that share the buffer."""
        self.buffer.halve()

    def output(self, states: Tensor) -> Tensor:
        """Head output [rows, padded vocabulary] in the head's dtype."""
        out = self.buffer.rounded_rows(len(states))
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
        return self._exact_into(self.buffer.exact[: len(states)], states)

    def _exact_rows(self, states: Tensor) -> Tensor:
        """Head output of a few states in float32, in memory of its own."""
        return self._exact_into(
            torch.empty(len(states), self.padded, dtype=torch.float32, device=self.device), states
        )

    def _exact_into(self, out: Tensor, states: Tensor) -> Tensor:
        out[:, self.vocabulary_size :] = PADDING
        wide = states.float()
        with products_in(self._exact_precision):
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
            with products_in(self._exact_precision):
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
        whole = self.buffer.exact if output.dtype == torch.float32 else self.buffer.whole
        padded = torch.zeros(len(whole), dtype=torch.float32, device=self.device)
        padded[: len(output)] = reference
        sums = compiled_sums(whole, padded, self.transform)
        return RawSums(*(column[: len(output)] for column in sums))


class ReadoutHead:
    """A head read out through the model's own forward, where it is more than one linear layer."""

    transform = HeadTransform()

    def __init__(self, stack: ExitStack, vocabulary_size: int, state_shape: StateShape) -> None:
        self.stack = stack
        self.vocabulary_size = vocabulary_size
        self.state_shape = state_shape
        self.device = stack.head_device
        self.padded = padded_size(self.vocabulary_size)
        self.rows = buffer_rows(self.padded * 4, self.device)
        self._eager_sums = EagerSums(self.transform, self.padded, self.device, self.rows)

    @property
    def exact_rows(self) -> int:
        """The same as `rows`: all output is float32."""
        return self.rows

    def halve(self) -> None:
        """Take half as many rows from now on."""
        self.rows = max(self.rows // 2, 1)

    def output(self, states: Tensor) -> Tensor:
        """Logits [rows, padded vocabulary] in float32."""
        hidden = self.state_shape.restore(states)
        logits = at_head(self.stack, self.stack.readout, hidden).float().reshape(len(states), -1)
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
