"""Statistics of softmax(z) for each row of logits, from the sums of one pass over them, and the best columns.

The pass (block maxima, partition sum, entropy sum, rank) is compiled for long traces where a C++ compiler is
at hand, since compiling takes up to half a minute once per machine. The eager form computes the same sums a
few rows at a time in scratch memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from offramp.models.devices import CPU, free_bytes

BLOCK = 64
"""Columns whose maximum is kept, so that top-1 and top-2 are looked up in the few winning blocks only."""

PADDING_LIMIT = -1e25
"""Columns below are padding, not logits."""

LOWEST = -200.0
"""2^-200 and exp(-200) are 0 in float32; a floor keeps 0 x (-inf) out of the entropy sum."""

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453

_REPAID = 5_000_000_000
"""Logits (tokens x exits x vocabulary) from which on compiling is repaid: it takes 11 to 22 s in a process
whose cache is empty, and saves 2 to 3 s in each 1e9 (on two cores)."""

EAGER_ELEMENTS = 800_000
"""Logits of one eager step on a processor: its scratch memory stays in the cache."""

ACCELERATOR_ELEMENTS = 16_000_000
"""The same on an accelerator, at most: enough to keep it busy, some 300 MB of scratch memory."""

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
class HeadTransform:
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


def eager_elements(device: torch.device) -> int:
    """Logits of one eager step on a device."""
    return EAGER_ELEMENTS if device.type == CPU else _accelerator_elements(device)


@functools.cache
def _accelerator_elements(device: torch.device) -> int:
    """By the memory that is free when it is first asked for: to ask takes time, and every chunk would."""
    return max(EAGER_ELEMENTS, min(ACCELERATOR_ELEMENTS, free_bytes(device) // 256))


def choose_reductions(elements: int, kind: str = CPU) -> Reductions:
    """How to reduce a trace of `elements` = tokens x exits x vocabulary logits. kind: of the device."""
    return "compiled" if elements >= _REPAID and can_compile(kind) else "eager"


@functools.cache
def can_compile(kind: str = CPU) -> bool:
    """Whether torch can compile for a kind of device, tried on a small sum; says why if it cannot."""
    try:
        torch.compile(lambda values: (2.0 * values).sum())(torch.ones(BLOCK, device=kind))
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


def compiled_sums(output: Tensor, reference: Tensor, transform: HeadTransform) -> RawSums:
    """Sums of the rows in a compiled pass, which is compiled again for every new shape.

    output: [rows, padded vocabulary], padding very negative but finite. reference: float32 [rows], the logit
    to rank, already transformed.
    """
    return RawSums(*_compiled_sums()(output, reference, transform.scale, transform.cap))


class EagerSums:
    """Sums of rows without a compiler, in scratch memory that is allocated once, on the rows' device.

    rows: that are given together at most.
    """

    def __init__(self, transform: HeadTransform, padded: int, device: torch.device, rows: int) -> None:
        self.transform = transform
        self.rows = max(1, min(rows, eager_elements(device) // padded))
        self._shifted = torch.empty(self.rows, padded, dtype=torch.float32, device=device)
        self._weight = torch.empty(self.rows, padded, dtype=torch.float32, device=device)
        self._greater = torch.empty(self.rows, padded, dtype=torch.bool, device=device)

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


EXACT_COLUMNS = 8
"""Best columns of a rounded product whose logits are computed again in float32."""

WINNING_BLOCKS = 8

_CROWDED_ROWS = 16
"""Rows computed wholly again at a time, where a row has more equal logits than candidates."""


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of softmax(z) for each row; float32 [rows] unless said otherwise."""

    top1: Tensor
    """Int64."""
    maximum: Tensor
    """The largest logit."""
    second: Tensor
    """The second largest."""
    log_sum: Tensor
    """Log sum exp(z - maximum), which keeps its digits however large the logits are."""
    entropy: Tensor
    """Nats."""
    above: Tensor
    """Int64, columns with a logit larger than the reference."""


def row_statistics(output: Tensor, sums: RawSums, transform: HeadTransform) -> RowStatistics:
    """Statistics of rows whose head output [rows, padded vocabulary] is float32-accurate."""
    rows = torch.arange(len(output), device=output.device)
    best_two = sums.block_maximum.topk(min(2, sums.block_maximum.shape[1]), dim=-1).values
    block = sums.block_maximum.argmax(-1)  # the first among equals, so the lowest token id wins
    inside = transform(output.view(len(output), -1, BLOCK)[rows, block])
    within = inside.argmax(-1)
    second = inside.scatter(1, within[:, None], -torch.inf).amax(-1)
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
    transform: HeadTransform,
) -> RowStatistics:
    """Statistics of rows whose head output was rounded to 16 bits; the best candidates are taken in float32.

    A bfloat16 product rounds a logit of 16 to a step of 0.125, which breaks ties and moves the largest
    probabilities. The best EXACT_COLUMNS columns carry nearly all of that error; `exact(columns [rows,
    candidates])` gives their float32 logits (transformed), and their rounded contributions are replaced in
    every sum. Where more columns share the largest rounded logit than are candidates, the whole row is taken
    from `exact_output(rows)`, the float32 head output of some rows.
    own: int64 [rows], the column that the reference is the logit of. It is never above itself, although a
    product of another shape may give it another last digit.
    """
    rows = torch.arange(len(output), device=output.device)[:, None]
    blocks = sums.block_maximum.topk(min(WINNING_BLOCKS, sums.block_maximum.shape[1]), dim=-1).indices
    inside = transform(output.view(len(output), -1, BLOCK)[rows, blocks]).flatten(1)
    rounded, where = inside.topk(min(EXACT_COLUMNS, inside.shape[1]), dim=-1)
    columns = blocks.gather(1, where // BLOCK) * BLOCK + where % BLOCK
    others = _without_own(sums, output, own, reference, transform)
    counted = columns != own[:, None]
    statistics = _replace_candidates(others, reference, rounded, columns, exact(columns), counted)
    crowded = rounded[:, -1] == sums.maximum
    if sums.block_maximum.shape[1] > WINNING_BLOCKS:
        crowded |= sums.block_maximum.gather(1, blocks[:, -1:])[:, 0] == sums.maximum
    # The one place in a chunk where the host waits for the device: how many rows there are, mostly none,
    # decides what runs next, and a whole row of every chunk in float32 would cost more than the wait.
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
    transform: HeadTransform,
) -> RowStatistics:
    """The statistics with some rows (int64) computed from their float32 head output."""
    for some in torch.split(rows, _CROWDED_ROWS):
        output = exact_output(some)
        sums = EagerSums(transform, output.shape[1], output.device, len(some))(output, reference[some])
        others = _without_own(sums, output, own[some], reference[some], transform)
        exact = row_statistics(output, others, transform)
        for field in dataclasses.fields(RowStatistics):
            getattr(statistics, field.name)[some] = getattr(exact, field.name)
    return statistics


def _without_own(
    sums: RawSums, output: Tensor, own: Tensor, reference: Tensor, transform: HeadTransform
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
    before, after = ((logits > reference[:, None]) & counted for logits in (rounded, value))
    above = sums.above.long() - before.sum(-1) + after.sum(-1)
    return RowStatistics(
        top1=top1,
        maximum=maximum,
        second=others.amax(-1),
        log_sum=partition.log(),
        entropy=(partition.log() - weighted / partition).clamp(min=0),
        above=above,
    )


def best_columns(output: Tensor, transform: HeadTransform, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the `count` largest logits of each row, int64 [rows, count], and the logits, float32.

    output: head output [rows, padded vocabulary]; count is at most the vocabulary. Best first, of equal
    logits the lower column first. A few rows are taken at a time, whose logits stay in the processor's cache.
    """
    steps = torch.split(output, max(1, eager_elements(output.device) // output.shape[1]))
    columns, values = zip(*(_best_of_rows(transform(step), count) for step in steps), strict=True)
    return torch.cat(columns), torch.cat(values)


def _best_of_rows(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same of a few rows of logits, among as many blocks of columns as may hold them."""
    row = torch.arange(len(z), device=z.device)[:, None]
    grouped = z.view(len(z), -1, BLOCK)
    # A block behind `count` others holds none of the best: each of those has a better or an earlier one.
    blocks = _descending(grouped.amax(-1)).indices[:, :count].sort(dim=-1).values
    value, order = _descending(grouped[row, blocks].flatten(1))
    order = order[:, :count]
    return blocks.gather(1, order // BLOCK) * BLOCK + order % BLOCK, value[:, :count]


def _descending(z: Tensor) -> torch.return_types.sort:
    """Sorted, equal ones in their order; padding counts as less than any masked (infinite) logit's column."""
    return torch.where(z < PADDING_LIMIT, -torch.inf, z).sort(dim=-1, descending=True, stable=True)


# Facts of an exit that traces take of many rows and decoding of a few, from the same sums.


def cosine(dot: Tensor, left_square: Tensor, right_square: Tensor) -> Tensor:
    """Cosine from a dot product and two squared norms; 0 where a vector has no direction."""
    product = left_square.clamp(min=0).sqrt() * right_square.clamp(min=0).sqrt()
    return torch.where(product > 0, dot / product, torch.zeros_like(dot)).clamp(-1, 1)


def logit_gap(best: Tensor, second: Tensor) -> Tensor:
    """z1 - z2, the two largest logits; infinite where there is no second token."""
    return torch.where(second < PADDING_LIMIT, torch.inf, best - second)


class ShortSoftmax(NamedTuple):
    """Of a softmax over the short list, [rows] each: the best token's place, its probability, the margin.

    maximum: the largest logit.
    """

    place: Tensor
    max_prob: Tensor
    margin: Tensor
    maximum: Tensor


def short_softmax(z: Tensor) -> ShortSoftmax:
    """Of logits of the short list [rows, tokens]; of equals the first is the best."""
    place = z.argmax(-1, keepdim=True)
    maximum = z.gather(1, place)
    shares = (z - maximum).clamp_(min=LOWEST).exp_()
    total = shares.sum(-1)
    second = shares.scatter_(1, place, 0.0).amax(-1)
    return ShortSoftmax(place[:, 0], 1.0 / total, (1.0 - second) / total, maximum[:, 0])


def kl_divergence(entropy: Tensor, cross: Tensor) -> Tensor:
    """KL(q || p) = -H(q) - sum q log p. entropy: H(q). cross: that sum."""
    return (-entropy - cross).clamp(min=0)


def jensen_shannon(negative: Tensor, entropy: Tensor, other: Tensor) -> Tensor:
    """H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991, section IV). negative: sum (p + q) log (p + q)."""
    return (math.log(2) - 0.5 * (negative + entropy + other)).clamp(0, math.log(2))


def shared_share(best: Tensor, before: Tensor) -> Tensor:
    """Share of some best tokens [rows, tokens] that are among those before: float32 [rows]."""
    return (best[:, :, None] == before[:, None, :]).any(-1).float().mean(-1)
