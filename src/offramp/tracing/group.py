"""Measuring one group of tokens: forward, final exit first, then every other exit against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.models.stack import ExitStack
from offramp.tracing.cross import Cross, DirectCross, Gram, LinearCross, cosine
from offramp.tracing.facts import FACTS
from offramp.tracing.head import TILE, Head, LinearHead
from offramp.tracing.states import StateShape, StateStore, open_store
from offramp.tracing.statistics import RowStatistics
from offramp.workloads.packing import Context

GROUP_ROWS = 512
"""Rows whose hidden states are held together: positions are the outer loop, exits the inner one."""

FORWARD_TOKENS = 1024
"""Tokens of one forward batch at most; only contexts of equal length share one, so there is no padding."""


@dataclass(frozen=True)
class Defect:
    """The first non-finite number of a document: exit (layer) and position."""

    layer: int
    position: int


@dataclass(frozen=True)
class GroupFacts:
    """Facts of one group, [rows, exits] each, and what the manifest needs of its documents.

    document: int64 [rows]. marginal: sums of p_L per document, float32 [vocabulary]. defects: by document;
    the rows of such a document are there but mean nothing.
    """

    document: NDArray[np.int64]
    facts: dict[str, NDArray[np.float32] | NDArray[np.int32]]
    marginal: dict[int, Tensor]
    defects: dict[int, Defect]


@dataclass(frozen=True)
class Rows:
    """Which rows of a group come from where: int64 [rows] each."""

    document: Tensor
    position: Tensor
    next_token: Tensor

    @classmethod
    def of(cls, contexts: Sequence[Context]) -> Rows:
        """The rows of some contexts in order."""
        document = [context.document for context in contexts for _ in range(context.rows)]
        position = [p for context in contexts for p in range(context.first_row, len(context.ids))]
        following = [token for context in contexts for token in context.next_tokens]
        return cls(torch.tensor(document), torch.tensor(position), torch.tensor(following))

    def __len__(self) -> int:
        return len(self.document)


class LayerRows(NamedTuple):
    """Rows of a layer's output: as they are, in float32 [rows, features], and their squared norms [rows]."""

    states: Tensor
    wide: Tensor
    square: Tensor

    @classmethod
    def of(cls, states: Tensor) -> LayerRows:
        """From rows in the model's dtype."""
        wide = states.float()
        return cls(states, wide, torch.linalg.vecdot(wide, wide))


class GroupMeasurer:
    """Measures groups of contexts of one model at some exits (the last of them is L)."""

    def __init__(
        self, stack: ExitStack, head: Head, exits: Sequence[int], state_shape: StateShape, dtype: torch.dtype
    ) -> None:
        self.stack = stack
        self.head = head
        self.exits = list(exits)
        self.state_shape = state_shape
        self.dtype = dtype
        linear = isinstance(head, LinearHead) and head.transform.is_linear
        self.gram = Gram.of(head) if linear and isinstance(head, LinearHead) else None
        share = 1 if linear else 6  # `DirectCross` holds six arrays of the size of the logits
        self.chunk = max(16, head.rows // share)
        self.exact_chunk = max(8, head.exact_rows // share)

    def measure(self, contexts: Sequence[Context]) -> GroupFacts:
        """Facts of every row of the contexts at every exit."""
        rows = Rows.of(contexts)
        store = open_store(len(self.exits), len(rows), self.state_shape.features, self.dtype)
        try:
            with torch.no_grad():
                return _Group(self, rows, store).measure(contexts)
        finally:
            store.close()


class _Group:
    """The state of one group while it is measured."""

    def __init__(self, measurer: GroupMeasurer, rows: Rows, store: StateStore) -> None:
        self.measurer = measurer
        self.head = measurer.head
        self.stack = measurer.stack
        self.rows = rows
        self.store = store
        self.defects: dict[int, Defect] = {}
        self.marginal: dict[int, Tensor] = {}
        self.facts: dict[str, Tensor] = {
            fact.name: torch.empty(len(rows), len(measurer.exits), dtype=getattr(torch, fact.dtype))
            for fact in FACTS
        }

    def measure(self, contexts: Sequence[Context]) -> GroupFacts:
        self._forward(contexts)
        final = len(self.measurer.exits) - 1
        cross = self._final_exit(final)
        for index in range(final):
            for chunk in _chunks(len(self.rows), self.measurer.chunk):
                self._exit(index, chunk, cross)
        self._hidden_cosines(final)
        return GroupFacts(
            document=self.rows.document.numpy(),
            facts={name: column.numpy() for name, column in self.facts.items()},
            marginal=self.marginal,
            defects=self.defects,
        )

    # -- hidden states ---------------------------------------------------------------------------------------

    def _forward(self, contexts: Sequence[Context]) -> None:
        start = 0
        alone = self.measurer.state_shape.other_axes is not None
        for batch in equal_length_batches(contexts, 1 if alone else FORWARD_TOKENS):
            start = self._forward_batch(batch, start)

    def _forward_batch(self, batch: Sequence[Context], start: int) -> int:
        exit_index = {layer: index for index, layer in enumerate(self.measurer.exits)}
        shape = self.measurer.state_shape

        def taken(hidden: Tensor) -> Tensor:
            rows = shape.rows(hidden)
            return torch.cat([rows[i, context.first_row :] for i, context in enumerate(batch)])

        # A layer's input is the output of the layer before: what was made of it then serves again.
        known: tuple[Tensor, LayerRows] | None = None

        def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
            nonlocal known
            index = exit_index.get(layer + 1)
            if index is None:
                return
            same = known is not None and known[0] is before
            came_in = known[1] if known is not None and same else LayerRows.of(taken(before))
            went_out = LayerRows.of(taken(after))
            known = (after, went_out)
            self._layer_facts(index, start, came_in, went_out)

        self.stack.capture(torch.tensor([context.ids for context in batch]), on_layer)
        return start + sum(context.rows for context in batch)

    def _layer_facts(self, index: int, start: int, before: LayerRows, after: LayerRows) -> None:
        rows = slice(start, start + len(after.states))
        fine = torch.isfinite(after.square)
        states = after.states
        if not bool(fine.all()):
            self._note_defects(index, rows, fine)
            states = torch.nan_to_num(states, 0.0, 0.0, 0.0)
        self.store.write(index, start, states)
        dot = torch.linalg.vecdot(before.wide, after.wide)
        self.facts["hidden_cosine_to_previous"][rows, index] = cosine(dot, before.square, after.square)
        update = torch.linalg.vector_norm(after.wide - before.wide, dim=-1)
        self.facts["update_norm"][rows, index] = update / before.square.sqrt().clamp(min=1e-12)

    def _hidden_cosines(self, final: int) -> None:
        for chunk in _chunks(len(self.rows), GROUP_ROWS):
            last = self.store.read(final, chunk).float()
            last_square = torch.linalg.vecdot(last, last)
            for index in range(len(self.measurer.exits)):
                states = self.store.read(index, chunk).float()
                square = torch.linalg.vecdot(states, states)
                column = cosine(torch.linalg.vecdot(states, last), square, last_square)
                self.facts["hidden_cosine_to_final"][chunk, index] = column

    def _note_defects(self, index: int, rows: slice, fine: Tensor) -> None:
        """Remember the first bad number of each document: the earliest position, then the shallowest exit."""
        for offset in torch.nonzero(~fine).flatten().tolist():
            row = rows.start + offset
            document, position = int(self.rows.document[row]), int(self.rows.position[row])
            found = Defect(self.measurer.exits[index], position)
            known = self.defects.setdefault(document, found)
            if (found.position, found.layer) < (known.position, known.layer):
                self.defects[document] = found

    # -- exits -----------------------------------------------------------------------------------------------

    def _normed(self, index: int, rows: slice) -> Tensor:
        """States as the head takes them: after the model's own final norm for a linear head."""
        states = self.store.read(index, rows)
        return self.stack.tail_forward(states) if isinstance(self.head, LinearHead) else states

    def _final_exit(self, index: int) -> Cross:
        """Statistics of exit L, the marginal, and what the other exits are compared with."""
        count = len(self.rows)
        expected_weight: list[Tensor] = []
        for chunk in _chunks(count, self.measurer.exact_chunk):
            states = self._normed(index, chunk)
            output = self.head.exact_output(states)
            wanted = self.rows.next_token[chunk, None].expand(-1, 2)
            statistics, at_wanted = self.head.statistics(states, output, wanted)
            self._write(index, chunk, statistics, statistics.maximum, at_wanted[:, 1])
            self.facts["kl_to_final"][chunk, index] = 0.0
            self.facts["final_rank"][chunk, index] = 0
            for name in ("logit_cosine", "centred_logit_cosine"):
                self.facts[name][chunk, index] = 1.0
            probability = self._probability(output, statistics)
            self._add_marginal(chunk, probability)
            if self.measurer.gram is not None:
                expected_weight.append(self._expected_weight(probability))
        partner = self._partners()
        states = self._normed(index, slice(0, count))
        cross: Cross
        if self.measurer.gram is not None:
            cross = LinearCross(self.measurer.gram, states, torch.cat(expected_weight), partner)
        else:
            cross = DirectCross(self.head, states, partner)
        for chunk in _chunks(count, self.measurer.exact_chunk):
            shuffled = cross.compare(states[chunk], None, chunk).shuffled_cosine
            self.facts["shuffled_logit_cosine"][chunk, index] = shuffled
        return cross

    def _probability(self, output: Tensor, statistics: RowStatistics) -> Tensor:
        """p_L [rows, vocabulary] in place of the head output."""
        logits = self.head.transform(output[:, : self.head.vocabulary_size])
        return torch.exp(logits.sub_(statistics.log_partition[:, None]), out=logits)

    def _expected_weight(self, probability: Tensor) -> Tensor:
        """W^T p_L with the scale and the bias feature: float32 [rows, features + 1]."""
        head = self.head
        assert isinstance(head, LinearHead)
        total = torch.zeros(len(probability), head.weight.shape[1] + 1)
        for start in range(0, head.vocabulary_size, TILE):
            tile = slice(start, min(start + TILE, head.vocabulary_size))
            total[:, :-1] += probability[:, tile] @ head.weight[tile].float()
        if head.bias is not None:
            total[:, -1] = probability @ head.bias.float()
        return total * head.transform.scale

    def _add_marginal(self, rows: slice, probability: Tensor) -> None:
        documents, counts = np.unique(self.rows.document[rows].numpy(), return_counts=True)
        # Rows of one document are contiguous and documents ascend.
        for document, part in zip(documents.tolist(), torch.split(probability, counts.tolist()), strict=True):
            total = part.sum(0)
            known = self.marginal.get(document)
            self.marginal[document] = total if known is None else known + total

    def _partners(self) -> Tensor:
        """Another row for every row, half a group away, among documents that are whole so far."""
        bad = torch.tensor([int(d) in self.defects for d in self.rows.document.tolist()])
        whole = torch.nonzero(~bad).flatten() if bool((~bad).any()) else torch.arange(len(bad))
        partner = torch.arange(len(bad))
        partner[whole] = whole.roll(len(whole) // 2)
        return partner

    def _exit(self, index: int, rows: slice, cross: Cross) -> None:
        final = len(self.measurer.exits) - 1
        states = self._normed(index, rows)
        output = self.head.output(states)
        target = self.facts["top1"][rows, final].long()
        wanted = torch.stack([target, self.rows.next_token[rows]], dim=1)
        statistics, at_wanted = self.head.statistics(states, output, wanted)
        self._write(index, rows, statistics, at_wanted[:, 0], at_wanted[:, 1])
        # Equal logits: the lower id is ahead, so that rank 0 and agreement are the same thing.
        rank = torch.where(statistics.top1 == target, 0, statistics.above.clamp(min=1))
        self.facts["final_rank"][rows, index] = rank.int()
        compared = cross.compare(states, output, rows)
        divergence = statistics.log_partition - compared.expected - self.facts["entropy"][rows, final]
        self._note_defects(index, rows, torch.isfinite(divergence))
        self.facts["kl_to_final"][rows, index] = divergence.clamp(min=0)
        self.facts["logit_cosine"][rows, index] = compared.cosine
        self.facts["centred_logit_cosine"][rows, index] = compared.centred_cosine
        self.facts["shuffled_logit_cosine"][rows, index] = compared.shuffled_cosine

    def _write(
        self, index: int, rows: slice, row: RowStatistics, final_logit: Tensor, next_logit: Tensor
    ) -> None:
        """The facts that need the exit alone."""
        self._note_defects(index, rows, torch.isfinite(row.log_partition) & torch.isfinite(row.maximum))
        best = torch.exp(row.maximum - row.log_partition)
        self.facts["top1"][rows, index] = row.top1.int()
        self.facts["max_prob"][rows, index] = best
        self.facts["margin"][rows, index] = best - torch.exp(row.second - row.log_partition)
        self.facts["entropy"][rows, index] = row.entropy.clamp(min=0)
        self.facts["nll"][rows, index] = row.log_partition - next_logit
        self.facts["final_logprob"][rows, index] = final_logit - row.log_partition


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def equal_length_batches(contexts: Sequence[Context], tokens: int) -> Iterator[list[Context]]:
    """Consecutive contexts of equal length, up to some tokens together."""
    batch: list[Context] = []
    for context in contexts:
        same = bool(batch) and len(batch[0].ids) == len(context.ids)
        if batch and not (same and (len(batch) + 1) * len(context.ids) <= tokens):
            yield batch
            batch = []
        batch.append(context)
    if batch:
        yield batch


def groups_of(contexts: Sequence[Context], rows: int = GROUP_ROWS) -> Iterator[list[Context]]:
    """Consecutive contexts of up to `rows` rows together; a longer context is a group of its own."""
    group: list[Context] = []
    for context in contexts:
        if group and sum(member.rows for member in group) + context.rows > rows:
            yield group
            group = []
        group.append(context)
    if group:
        yield group
