"""Statistics of one block of rows: the final exit first, then every other exit compared with it.

What an exit's logits z are to the final ones z_L takes no pass over the vocabulary where the head is linear.
With z = W x (the bias as one more feature): sum_v p_L(v) z(v) = (W^T p_L) . x and z . z_L = x^T (W^T W) x_L,
so one vector per token and one small matrix per model replace four sums per logit. The matrix is taken of W
less its mean over the vocabulary, so that centred cosines lose no digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from offramp.heads.output_head import TILE, Head, LinearHead
from offramp.heads.precision import exact_sums
from offramp.heads.statistics import RowStatistics, cosine
from offramp.models.devices import float64_device
from offramp.tracing.recorders import ExitOutput, FactRecorder
from offramp.tracing.rows import FactTable, slices

StatesAt = Callable[[int, slice], Tensor]


class BlockMeasurer:
    """Measures blocks of rows, with one head for all exits or one each.

    One linear head is compared with the final exit through its Gram matrix; others by sums over the
    vocabulary. `record_with` adds recorders of further facts.

    below: heads of the exits below L, none if they share the one of L.
    """

    def __init__(self, head: Head, below: Sequence[Head] = ()) -> None:
        self.head = head
        self.below = tuple(below)
        self._each: list[FactRecorder] = []
        self._comparing: list[FactRecorder] = []
        linear = isinstance(head, LinearHead) and head.transform.is_linear and not below
        gram = Gram.of(head) if linear and isinstance(head, LinearHead) else None
        # Squares of weights beyond 1e19 overflow although the logits may not.
        self.gram = gram if gram is not None and bool(torch.isfinite(gram.centred).all()) else None
        self._fewest = 16  # a product of fewer rows takes as long
        self._fit_chunks()

    def _fit_chunks(self) -> None:
        share = 7 if self.gram is None else 1  # `DirectComparer` holds seven arrays of the size of the logits
        heads = (self.head, *self.below)
        rows, exact_rows = (min(head.rows for head in heads), min(head.exact_rows for head in heads))
        self.chunk = min(rows, max(self._fewest, rows // share))
        self.exact_chunk = min(exact_rows, max(self._fewest // 2, 1, exact_rows // share))

    def halve(self) -> None:
        """Take half as many rows at a time from now on; recorders are to be given anew."""
        halved: set[int] = set()
        for head in (self.head, *self.below):
            memory = head.buffer if isinstance(head, LinearHead) else head
            if id(memory) not in halved:
                head.halve()
            halved.add(id(memory))
        self._fewest = max(self._fewest // 2, 1)
        self._fit_chunks()

    def record_with(self, recorders: Sequence[FactRecorder]) -> None:
        """Let recorders see every exit of every chunk of rows."""
        self._each = [recorder for recorder in recorders if not recorder.compares_exits]
        self._comparing = [recorder for recorder in recorders if recorder.compares_exits]
        if self._comparing:
            self.chunk = self.exact_chunk

    def head_at(self, index: int) -> Head:
        """The head of an exit by its index."""
        return self.below[index] if index < len(self.below) else self.head

    def measure(
        self, table: FactTable, block: slice, states_at: StatesAt, marginal: dict[int, Tensor]
    ) -> None:
        """Fill the logit facts of the block's rows at every exit.

        states_at(exit index, rows): states [rows, features] as the head takes them. marginal: sums of p_L by
        document, added to.
        """
        # 1. Exit L of the whole block: its own facts, and what the others are compared with.
        comparer = self._final_exit(table, block, states_at, marginal)
        # 2. Some rows at a time, every exit below it, shallow to deep.
        for rows in slices(block.start, block.stop, self.chunk):
            for index in range(table.final):
                self._exit(table, index, rows, block.start, states_at(index, rows), comparer)
            # 3. Exit L again, where each exit is compared with the one before it.
            if self._comparing:
                self._compare_final_exit(table, rows, states_at(table.final, rows))

    def _final_exit(
        self, table: FactTable, block: slice, states_at: StatesAt, marginal: dict[int, Tensor]
    ) -> Comparer:
        """Statistics of exit L, the marginal, and what the other exits are compared with."""
        index = table.final
        expected_weight: list[Tensor] = []
        for rows in slices(block.start, block.stop, self.exact_chunk):
            states = states_at(index, rows)
            output = self.head.exact_output(states)
            wanted = table.next_token[rows, None].expand(-1, 2)
            statistics, at_wanted = self.head.statistics(states, output, wanted)
            _put_own_facts(table, index, rows, statistics, statistics.maximum, at_wanted[:, 1])
            table.put(index, rows, kl_to_final=0.0, final_rank=0, logit_cosine=1.0, centred_logit_cosine=1.0)
            _record(self._each, table, ExitOutput(index, rows, self.head, states, output, statistics))
            probability = self._probability(output, statistics)
            _add_marginal(marginal, table.rows.document[rows], probability)
            if self.gram is not None:
                expected_weight.append(self._expected_weight(probability))
        partner = _partners(table, block)
        states = states_at(index, block)
        comparer: Comparer
        if self.gram is not None:
            comparer = LinearComparer(self.gram, states, torch.cat(expected_weight), partner)
        else:
            comparer = DirectComparer(self.head, states, partner)
        for place in slices(0, len(states), self.exact_chunk):
            rows = slice(block.start + place.start, block.start + place.stop)
            compared = comparer.compare(states[place], None, place, self.head)
            table.put(index, rows, shuffled_logit_cosine=compared.shuffled_cosine)
        return comparer

    def _compare_final_exit(self, table: FactTable, rows: slice, states: Tensor) -> None:
        """Exit L once more, after the exits below it, for the recorders that compare exits."""
        output = self.head.exact_output(states)
        wanted = table.next_token[rows, None].expand(-1, 2)
        statistics, _ = self.head.statistics(states, output, wanted)
        _record(self._comparing, table, ExitOutput(table.final, rows, self.head, states, output, statistics))

    def _exit(
        self, table: FactTable, index: int, rows: slice, block_start: int, states: Tensor, comparer: Comparer
    ) -> None:
        head = self.head_at(index)
        output = head.exact_output(states) if self._comparing else head.output(states)
        target = table.columns["top1"][rows, table.final].long()
        wanted = torch.stack([target, table.next_token[rows]], dim=1)
        statistics, at_wanted = head.statistics(states, output, wanted)
        _put_own_facts(table, index, rows, statistics, at_wanted[:, 0], at_wanted[:, 1])
        # Before the comparison below, which may use the memory of the output again.
        reading = ExitOutput(index, rows, head, states, output, statistics)
        _record([*self._each, *self._comparing], table, reading)
        # Equal logits: the lower id is ahead, so that rank 0 and agreement are the same thing.
        rank = torch.where(statistics.top1 == target, 0, statistics.above.clamp(min=1))
        places = slice(rows.start - block_start, rows.stop - block_start)
        compared = comparer.compare(states, output, places, head)
        divergence = statistics.maximum - compared.expected + statistics.log_sum
        divergence -= table.columns["entropy"][rows, table.final]
        table.note_nonfinite(index, rows, torch.isfinite(divergence))
        table.put(
            index,
            rows,
            final_rank=rank.int(),
            kl_to_final=divergence.clamp(min=0),
            logit_cosine=compared.cosine,
            centred_logit_cosine=compared.centred_cosine,
            shuffled_logit_cosine=compared.shuffled_cosine,
        )

    def _probability(self, output: Tensor, statistics: RowStatistics) -> Tensor:
        """p_L [rows, vocabulary] in place of the head output."""
        logits = self.head.transform(output[:, : self.head.vocabulary_size])
        # The maximum goes first: subtracting the whole log partition at once would lose digits.
        logits.sub_(statistics.maximum[:, None]).sub_(statistics.log_sum[:, None])
        return torch.exp(logits, out=logits)

    def _expected_weight(self, probability: Tensor) -> Tensor:
        """W^T p_L with the scale and the bias feature: float32 [rows, features + 1]."""
        head = self.head
        assert isinstance(head, LinearHead)
        total = torch.zeros(
            len(probability), head.weight.shape[1] + 1, dtype=torch.float32, device=head.device
        )
        for tile in slices(0, head.vocabulary_size, TILE):
            total[:, :-1] += probability[:, tile] @ head.weight[tile].float()
        if head.bias is not None:
            total[:, -1] = probability @ head.bias.float()
        return total * head.transform.scale


def _record(recorders: Sequence[FactRecorder], table: FactTable, reading: ExitOutput) -> None:
    for recorder in recorders:
        recorder.record(table, reading)


def _put_own_facts(
    table: FactTable, index: int, rows: slice, row: RowStatistics, final_logit: Tensor, next_logit: Tensor
) -> None:
    """The facts that need the exit alone."""
    fine = torch.isfinite(row.log_sum) & torch.isfinite(row.maximum)
    # An observed token of probability 0 (a masked part of the vocabulary) has no finite NLL.
    table.note_nonfinite(index, rows, fine & torch.isfinite(next_logit) & torch.isfinite(final_logit))
    best = torch.exp(-row.log_sum)
    table.put(
        index,
        rows,
        top1=row.top1.int(),
        max_prob=best,
        margin=best - torch.exp(row.second - row.maximum - row.log_sum),
        entropy=row.entropy.clamp(min=0),
        nll=row.maximum - next_logit + row.log_sum,
        final_logprob=final_logit - row.maximum - row.log_sum,
    )


def _add_marginal(marginal: dict[int, Tensor], document: NDArray[np.int64], probability: Tensor) -> None:
    """Add each document's sum of p_L; rows of one document are contiguous and documents ascend."""
    documents, counts = np.unique(document, return_counts=True)
    for name, part in zip(documents.tolist(), torch.split(probability, counts.tolist()), strict=True):
        total = part.sum(0)
        marginal[name] = total if name not in marginal else marginal[name] + total


def _partners(table: FactTable, block: slice) -> Tensor:
    """Another row of the block for every row, half a block away, among documents that are whole so far.

    Counted on the device, which the host would have to wait for to know how many rows these are.
    """
    whole = table.in_whole_document(block)
    count = whole.sum()
    rows = torch.arange(len(whole), device=whole.device)
    in_order = torch.sort((~whole).int(), stable=True).indices  # rows of whole documents come first
    half_away = (whole.cumsum(0) - 1 - count // 2) % count.clamp(min=1)
    return torch.where(whole, in_order[half_away], rows)


_GRAM_ROWS = 8192


class FinalComparison(NamedTuple):
    """Between z of an exit and z_L, float32 [rows]."""

    expected: Tensor
    """sum_v p_L(v) z(v)."""
    cosine: Tensor
    centred_cosine: Tensor
    """z and z_L."""
    shuffled_cosine: Tensor
    """z and a partner's z_L."""


@dataclass(frozen=True)
class Gram:
    """W^T W of a linear head, its scale included and its bias as one more feature."""

    centred: Tensor
    """float32 [features + 1, features + 1], of W less its mean over the vocabulary."""
    mean: Tensor
    """float32 [features + 1], that mean."""
    vocabulary_size: int

    @classmethod
    def of(cls, head: LinearHead) -> Gram:
        """The matrix of one head, kept as long as its weights live and are what they were.

        It costs as much as the head products of `features` tokens, in float32: on an accelerator that is some
        thousand tokens' trace, and a model is traced on several workloads.
        """
        if head.weight.is_inference():  # which do not count their changes
            return cls.computed(head)
        # Changes through `.data` are not counted either, but show in the sum.
        state = (
            head.weight._version,
            float(head.weight.sum(dtype=torch.float32)),
            None if head.bias is None else float(head.bias.sum(dtype=torch.float32)),
            head.transform,
        )
        known = _KNOWN.get(head.weight)
        if known is None or known[0] != state:
            known = _KNOWN[head.weight] = (state, cls.computed(head))
        return known[1]

    @classmethod
    @exact_sums()
    def computed(cls, head: LinearHead) -> Gram:
        """The matrix of one head, computed now."""
        features = head.weight.shape[1] + 1
        where = float64_device(head.device)
        sums = torch.zeros(features, dtype=torch.float64, device=where)
        for block in _weight_blocks(head):
            sums += block.to(where).sum(0, dtype=torch.float64)
        mean = (sums / head.vocabulary_size).float().to(head.device)
        centred = torch.zeros(features, features, dtype=torch.float64, device=where)
        for block in _weight_blocks(head):
            block -= mean
            centred += (block.t() @ block).to(where, torch.float64)
        return cls(centred.float().to(head.device), mean, head.vocabulary_size)


_KNOWN: MutableMapping[Tensor, tuple[object, Gram]] = WeakTensorKeyDictionary()
"""By the weights of a head: what these were when it was computed, and the matrix."""


def forget_gram_matrices() -> None:
    """Let every head's matrix be computed again, for those who time a trace."""
    _KNOWN.clear()


def _weight_blocks(head: LinearHead) -> Iterator[Tensor]:
    """The scaled weights with the bias as last column, some thousand rows at a time, in float32."""
    for start in range(0, head.vocabulary_size, _GRAM_ROWS):
        weight = head.weight[start : start + _GRAM_ROWS].float()
        last = weight.new_zeros(len(weight), 1)
        if head.bias is not None:
            last = head.bias[start : start + _GRAM_ROWS].float().unsqueeze(1)
        yield torch.cat([weight, last], dim=1) * head.transform.scale


def with_bias_feature(states: Tensor) -> Tensor:
    """States [rows, features] in float32 with a last feature of 1."""
    wide = states.new_ones(len(states), states.shape[1] + 1, dtype=torch.float32)
    wide[:, :-1] = states
    return wide


class LinearComparer:
    """Comparisons of a linear head, from states alone; it holds the final exit of a group of tokens.

    final_states: [tokens, features] of exit L. expected_weight: float32 [tokens, features + 1], W^T p_L.
    partner: int64 [tokens], another token of the group.
    """

    def __init__(self, gram: Gram, final_states: Tensor, expected_weight: Tensor, partner: Tensor) -> None:
        self.gram = gram
        self.expected_weight = expected_weight
        final = with_bias_feature(final_states)
        self._final = final @ gram.centred
        self._final_square = torch.linalg.vecdot(self._final, final)
        self._final_mean = final @ gram.mean
        self._partner = partner

    def compare(self, states: Tensor, output: Tensor | None, rows: slice, head: Head) -> FinalComparison:
        """Statistics of some rows; neither `output` nor `head` is needed."""
        wide = with_bias_feature(states)
        size = self.gram.vocabulary_size
        square = torch.linalg.vecdot(wide @ self.gram.centred, wide)
        mean = wide @ self.gram.mean
        centred_dot = torch.linalg.vecdot(wide, self._final[rows])
        raw_square = square + size * mean.square()

        def raw_cosine(tokens: slice | Tensor) -> Tensor:
            dot = torch.linalg.vecdot(wide, self._final[tokens]) + size * mean * self._final_mean[tokens]
            other_square = self._final_square[tokens] + size * self._final_mean[tokens].square()
            return cosine(dot, raw_square, other_square)

        return FinalComparison(
            expected=torch.linalg.vecdot(self.expected_weight[rows], wide),
            cosine=raw_cosine(rows),
            centred_cosine=cosine(centred_dot, square, self._final_square[rows]),
            shuffled_cosine=raw_cosine(self._partner[rows]),
        )


class DirectComparer:
    """Comparisons by sums over the vocabulary, for soft-capped, masked and indirect heads, and for
    exits whose heads are their own.

    A column that is -inf at the final exit is a masked part of the vocabulary: its probability is 0 at every
    exit and it takes no part in the cosines.
    """

    def __init__(self, head: Head, final_states: Tensor, partner: Tensor) -> None:
        self.head = head
        self.final_states = final_states
        self._partner = partner
        # Exits of the same rows come one after another, so that exit L is read once for all of them.
        self._rows: slice | None = None
        self._final = self._partners_final = final_states.new_empty(0)

    def compare(self, states: Tensor, output: Tensor | None, rows: slice, head: Head) -> FinalComparison:
        """Statistics of some rows at an exit, from their states [rows, features] and head output.

        output: [rows, padded vocabulary]; None at the final exit, where it is computed again. head: which
        gives that output of these states.
        """
        output = head.exact_output(states) if output is None else output
        z = head.transform(output[:, : head.vocabulary_size]).clone()
        final, partners_final = self._final_of(rows)
        log_probability = final.log_softmax(-1)
        known = torch.isfinite(final)
        expected = torch.where(known, log_probability.exp() * z, 0.0).sum(-1)
        raw = _masked_cosine(z, final)
        del log_probability
        count = known.sum(-1, keepdim=True)
        centred_z = z - torch.where(known, z, 0.0).sum(-1, keepdim=True) / count
        centred_final = final - torch.where(known, final, 0.0).sum(-1, keepdim=True) / count
        centred = _masked_cosine(centred_z, centred_final)
        shuffled = _masked_cosine(z, partners_final)
        return FinalComparison(expected, raw, centred, shuffled)

    def _final_of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Logits at exit L of some rows and of their partners."""
        if rows != self._rows:
            self._rows = rows
            self._final = self._final_logits(self.final_states[rows])
            self._partners_final = self._final_logits(self.final_states[self._partner[rows]])
        return self._final, self._partners_final

    def _final_logits(self, states: Tensor) -> Tensor:
        output = self.head.exact_output(states)[:, : self.head.vocabulary_size]
        return self.head.transform(output).clone()


def _masked_cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine over the columns that are finite in `right`: float32 [rows]."""
    known = torch.isfinite(right)
    left, right = torch.where(known, left, 0.0), torch.where(known, right, 0.0)
    return cosine(
        torch.linalg.vecdot(left, right), torch.linalg.vecdot(left, left), torch.linalg.vecdot(right, right)
    )


Comparer = LinearComparer | DirectComparer
"""Compares other exits of a group of tokens with the final one, which it holds."""
