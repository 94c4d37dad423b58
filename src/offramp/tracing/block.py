"""Statistics of one block of rows: the final exit first, then every other exit against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.heads.output_head import TILE, Head, LinearHead
from offramp.heads.statistics import RowStatistics
from offramp.tracing.final_comparison import Comparer, DirectComparer, Gram, LinearComparer
from offramp.tracing.recorders import ExitOutput, Recorder
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
        self._each: list[Recorder] = []
        self._comparing: list[Recorder] = []
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

    def record_with(self, recorders: Sequence[Recorder]) -> None:
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
        comparer = self._final_exit(table, block, states_at, marginal)
        for rows in slices(block.start, block.stop, self.chunk):
            for index in range(table.final):
                self._exit(table, index, rows, block.start, states_at(index, rows), comparer)
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
        total = torch.zeros(len(probability), head.weight.shape[1] + 1, device=head.device)
        for tile in slices(0, head.vocabulary_size, TILE):
            total[:, :-1] += probability[:, tile] @ head.weight[tile].float()
        if head.bias is not None:
            total[:, -1] = probability @ head.bias.float()
        return total * head.transform.scale


def _record(recorders: Sequence[Recorder], table: FactTable, reading: ExitOutput) -> None:
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
