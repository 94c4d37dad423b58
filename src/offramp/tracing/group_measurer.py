"""Measuring parts, group by group: through the layers, blocks of rows at every exit, then to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import OfframpError
from offramp.heads.at_work import HeadsAtWork
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.output_head import (
    BLOCK_ROWS,
    Head,
    LinearHead,
    StateShape,
    at_head,
    make_head,
    state_shape_of,
)
from offramp.heads.precision import exact_sums
from offramp.heads.statistics import cosine
from offramp.kit.numbers import shown_size
from offramp.models.devices import device_name, free_bytes, to_host
from offramp.models.model import Model
from offramp.models.stack import ExitStack, OnLayer
from offramp.tracing.recorders import PromptStates, make_recorders
from offramp.tracing.request import Recording, TraceRequest
from offramp.tracing.row_facts import BlockMeasurer
from offramp.tracing.rows import (
    FactTable,
    NonFinite,
    Rows,
    equal_length_batches,
    first_nonfinite,
    groups_of,
    slices,
)
from offramp.tracing.sealed_parts import REFERENCE_TOP1, Part, PartDocument, Reference, block_of
from offramp.tracing.states import StateStore
from offramp.workloads.packing import Context

Capture = Callable[[Sequence[Context], OnLayer], None]
"""Hands on_layer(index, input, output) of contexts of one length over, layer by layer as `ExitStack.capture`
does; layers that are no exit may be left out."""


def ids_of(contexts: Sequence[Context]) -> Tensor:
    """Token ids of contexts of one length, int64 [contexts, positions], in the processor's memory."""
    return torch.tensor([context.ids for context in contexts], device="cpu")


def traced_rows(hidden: Tensor, contexts: Sequence[Context]) -> Tensor:
    """The rows of contexts of one length, from [contexts, positions, features]."""
    return torch.cat([hidden[place, context.first_row :] for place, context in enumerate(contexts)])


def forward_capture(
    stack: ExitStack, given: Callable[[Sequence[Context]], AbstractContextManager[None]] | None = None
) -> Capture:
    """Runs the model's own layers. given: `Model.given`, for a model that reads sources."""

    def capture(contexts: Sequence[Context], on_layer: OnLayer) -> None:
        with nullcontext() if given is None else given(contexts):
            stack.capture(ids_of(contexts), on_layer)

    return capture


FORWARD_TOKENS = 1024
"""Tokens of one forward batch at most, on every device: what is in a batch decides last digits."""


@dataclass(frozen=True)
class GroupFacts:
    """Facts of one group, [rows, exits] each, and what the manifest needs of its documents."""

    document: NDArray[np.int64]
    """int64 [rows]."""
    facts: dict[str, NDArray[np.float32] | NDArray[np.int32]]
    marginal: dict[int, Tensor]
    """Sums of p_L per document, float32 [vocabulary]."""
    nonfinite: dict[int, NonFinite]
    """By document; the rows of such a document are there but mean nothing."""
    prompt_entropy: dict[int, float]
    """Nats, by document, if recorded."""


def forward_batches(contexts: Sequence[Context], state_shape: StateShape) -> Iterator[list[Context]]:
    """Contexts that go through the model together; one at a time if states have further axes."""
    alone = state_shape.other_axes is not None
    return equal_length_batches(contexts, 1 if alone else FORWARD_TOKENS)


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
    """Measures groups of contexts of one model at some exits (the last of them is L).

    recording: the facts to fill beyond those of every trace. heads: what states go through on their way to
    the head, and what gives facts. capture: where layers' outputs come from, by default a forward pass.

    All statistics are taken on the output head's device (`ExitStack.head_device`), where layers' outputs are
    brought to if a model is spread over several; facts go to the host once a group.
    """

    def __init__(
        self,
        stack: ExitStack,
        head: Head,
        exits: Sequence[int],
        state_shape: StateShape,
        dtype: torch.dtype,
        recording: Recording = Recording(),  # noqa: B008 - frozen
        heads: ExitHeads | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.stack = stack
        self.capture = forward_capture(stack) if capture is None else capture
        self.head = head
        self.exits = list(exits)
        self.state_shape = state_shape
        self.dtype = dtype
        self.recording = recording
        self.device = head.device
        below = self.exits[:-1]
        self.work = None if heads is None else HeadsAtWork.of(heads, below, stack, self.device)
        self.halved = False
        self.below = () if self.work is None else heads_below(self.work, below, head, state_shape)
        self.blocks = BlockMeasurer(head, self.below)
        self._record()

    def _record(self) -> None:
        chunk = self.blocks.exact_chunk
        self.blocks.record_with(
            make_recorders(self.head, self.recording, self.work, self.exits, chunk, self.below)
        )

    def measure(self, contexts: Sequence[Context]) -> GroupFacts:
        """Facts of every row of the contexts at every exit.

        Where a device's memory runs out, half as many rows are taken at a time from then on. Raises
        OfframpError if that does not help.
        """
        try:
            return self._measured(contexts)
        except torch.OutOfMemoryError:
            if self.halved:
                raise self._out_of_memory(contexts) from None
        # Not within the `except`, where the error holds what was being computed.
        self.halved = True
        self.blocks.record_with(())
        self.blocks.halve()
        _give_memory_back(self.device)
        self._record()
        return self.measure(contexts)

    def _out_of_memory(self, contexts: Sequence[Context]) -> OfframpError:
        free = free_bytes(self.device)
        longest = max(len(context.ids) for context in contexts)
        states = len(self.exits) * self.state_shape.features * self.dtype.itemsize
        return OfframpError(
            f"the memory of {device_name(self.device)} is too small, even for {self.blocks.chunk} rows of "
            f"logits at a time: {shown_size(free)} are free beside the model, and a context of {longest:,} "
            f"tokens takes {shown_size(longest * states)} for the hidden states alone",
            where=str(self.device),
            fix=f"give context= (--context) {max(longest // 2, 1)} or less, fewer exits or signals, or a "
            "model on the processor (--device cpu); free what other programs hold",
        )

    @torch.no_grad()
    def _measured(self, contexts: Sequence[Context]) -> GroupFacts:
        rows = Rows.of(contexts)
        table = FactTable(rows, self.exits, self.device, self.recording.facts)
        marginal: dict[int, Tensor] = {}
        prompts = PromptStates() if self.recording.document_facts else None
        features = self.state_shape.features
        store = StateStore(len(self.exits), len(rows), features, self.dtype, self.device)

        def states_at(index: int, part: slice) -> Tensor:
            """States as the exit's head takes them: through lens and network, normed for a linear head."""
            states = store.read(index, part)
            if self.work is None:
                return self._normed(self.stack, self.head, states)
            exit = self.exits[index]
            stack = self.work.stacks.get(exit, self.stack)
            return self._normed(stack, self.blocks.head_at(index), self.work.seen(exit, states))

        try:
            # 1. Run the layers: facts of what each does to a state; the states of exits are kept.
            start = 0
            for batch in forward_batches(contexts, self.state_shape):
                self._forward(batch, start, table, store, prompts)
                start += sum(context.rows for context in batch)
            with exact_sums():
                for block in slices(0, len(rows), BLOCK_ROWS):
                    # 2. Read every exit out, block by block: facts of logits.
                    self.blocks.measure(table, block, states_at, marginal)
                    # 3. Facts of states beside the last layer's.
                    self._put_state_facts(table, block, store)
                # 4. Bring all of it to the host, once.
                return self._on_host(table, marginal, prompts)
        finally:
            store.close()

    def _on_host(
        self, table: FactTable, marginal: Mapping[int, Tensor], prompts: PromptStates | None
    ) -> GroupFacts:
        """What is kept of a group, once it has left the device."""
        layer = table.exits[-1]
        entropy = (
            {}
            if prompts is None
            else prompts.entropy(layer, self.head, lambda states: self._normed(self.stack, self.head, states))
        )
        mask, *found = to_host([table.nonfinite, *marginal.values(), *table.columns.values()])
        sums, columns = found[: len(marginal)], found[len(marginal) :]
        nonfinite = first_nonfinite(table.rows, table.exits, mask.numpy())
        for document, first in {} if prompts is None else prompts.nonfinite.items():
            nonfinite[document] = min(first, nonfinite.get(document, first))
        return GroupFacts(
            document=table.rows.document,
            facts={name: column.numpy() for name, column in zip(table.columns, columns, strict=True)},
            marginal=dict(zip(marginal, sums, strict=True)),
            prompt_entropy=entropy,
            nonfinite=nonfinite,
        )

    def _normed(self, stack: ExitStack, head: Head, states: Tensor) -> Tensor:
        """States behind the norm of a stack, for a linear head; others go through the norm themselves."""
        return at_head(stack, stack.tail_forward, states) if isinstance(head, LinearHead) else states

    def _put_state_facts(self, table: FactTable, block: slice, store: StateStore) -> None:
        """Cosine of every exit's hidden state with the last layer's, and what classifiers say of it."""
        last = store.read(table.final, block).float()
        last_square = torch.linalg.vecdot(last, last)
        for index in range(len(table.exits)):
            states = store.read(index, block).float()
            square = torch.linalg.vecdot(states, states)
            dot = torch.linalg.vecdot(states, last)
            table.put(index, block, hidden_cosine_to_final=cosine(dot, square, last_square))
            if self.work is not None:
                table.put(index, block, **self.work.hidden_probabilities(table.exits[index], states))

    def _forward(
        self,
        batch: Sequence[Context],
        start: int,
        table: FactTable,
        store: StateStore,
        prompts: PromptStates | None,
    ) -> None:
        exit_index = {layer: index for index, layer in enumerate(self.exits)}

        def taken(hidden: Tensor) -> LayerRows:
            return LayerRows.of(traced_rows(self.state_shape.rows(hidden), batch).to(self.device))

        # A layer's input is the output of the layer before: what was made of it then serves again.
        known: tuple[Tensor, LayerRows] | None = None

        def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
            nonlocal known
            index = exit_index.get(layer + 1)
            if index is None:
                return
            came_in = known[1] if known is not None and known[0] is before else taken(before)
            known = (after, taken(after))
            _put_layer_facts(table, index, start, came_in, known[1], store)
            if prompts is not None and index == table.final:
                prompts.keep(batch, self.state_shape.rows(after).to(self.device))

        self.capture(batch, on_layer)


def _put_layer_facts(
    table: FactTable, index: int, start: int, before: LayerRows, after: LayerRows, store: StateStore
) -> None:
    """Keep a layer's output and what it did to its input."""
    rows = slice(start, start + len(after.states))
    table.note_nonfinite(index, rows, torch.isfinite(after.square))
    store.write(index, start, torch.nan_to_num(after.states, 0.0, 0.0, 0.0))
    dot = torch.linalg.vecdot(before.wide, after.wide)
    update = torch.linalg.vector_norm(after.wide - before.wide, dim=-1)
    table.put(
        index,
        rows,
        hidden_cosine_to_previous=cosine(dot, before.square, after.square),
        update_norm=update / before.square.sqrt().clamp(min=1e-12),
    )


def _give_memory_back(device: torch.device) -> None:
    """Let go of the memory that torch holds on a device and does not use."""
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()


def heads_below(
    work: HeadsAtWork, exits: Sequence[int], head: Head, state_shape: StateShape
) -> tuple[Head, ...]:
    """A head for each exit where output heads are their own; one buffer of logits serves them all.

    None where the model's own linear head serves them all behind norms of their own.
    """
    if not work.stacks or (not work.own_output and isinstance(head, LinearHead)):
        return ()
    reductions = head.reductions if isinstance(head, LinearHead) else "eager"
    heads: list[Head] = []
    for exit in exits:
        buffer_of = heads[0] if heads and isinstance(heads[0], LinearHead) else None
        stack = work.stacks[exit]
        heads.append(make_head(stack, head.vocabulary_size, state_shape, reductions, buffer_of=buffer_of))
    return tuple(heads)


def make_measurer(
    model: Model, request: TraceRequest, heads: ExitHeads | None, capture: Capture | None = None
) -> GroupMeasurer:
    """The measurer of a request. capture: where layers' outputs come from, by default a forward pass.

    Raises OfframpError where a device's memory does not hold the heads: fewer rows at a time would not help.
    """
    shape = state_shape_of(model)
    try:
        with torch.no_grad(), exact_sums():
            head = make_head(model.stack, model.shape.vocabulary_size, shape, request.reductions)
            return GroupMeasurer(
                model.stack,
                head,
                request.exits,
                shape,
                getattr(torch, model.dtype),
                request.recording,
                heads,
                forward_capture(model.stack, model.given) if capture is None else capture,
            )
    except torch.OutOfMemoryError:
        device = model.stack.head_device
        raise OfframpError(
            f"the memory of {device_name(device)} does not hold what reads {len(request.exits)} exits out, "
            f"beside the model: {shown_size(free_bytes(device))} are free",
            where=str(device),
            fix="trace fewer exits"
            + ("" if heads is None else ", or without heads= (--heads)")
            + ", or a model on the processor (--device cpu); free what other programs hold",
        ) from None


def measure_part(
    measurer: GroupMeasurer,
    index: int,
    contexts: Sequence[Context],
    documents: int,
    advance: Callable[[int], None],
    reference: Reference | None = None,
) -> Part:
    """Measure the contexts of one part, group by group, and leave out documents with a non-finite number.

    reference: of a transformed model, what the untransformed one says on the same contexts.
    """
    groups: list[GroupFacts] = []
    for group in groups_of(contexts):
        groups.append(measurer.measure(group))
        advance(sum(context.rows for context in group))
    reasons = _reasons(groups) if reference is None else {**reference.reasons, **_reasons(groups)}
    kept = ~np.isin(np.concatenate([group.document for group in groups]), list(reasons))
    columns = {name: column[kept] for name, column in _token_columns(contexts, groups).items()}
    if reference is not None:
        columns[REFERENCE_TOP1] = reference.top1[~np.isin(reference.document, list(reasons))]
    marginal: dict[int, np.ndarray] = {}
    marginal_rows: dict[int, int] = {}
    records = []
    for document in dict.fromkeys(context.document for context in contexts):
        rows = sum(context.rows for context in contexts if context.document == document)
        if document in reasons:
            records.append(PartDocument(document, 0, valid=False, reason=reasons[document]))
            continue
        records.append(PartDocument(document, rows))
        block = block_of(document, documents)
        sums = np.sum(
            [group.marginal[document].double().numpy() for group in groups if document in group.marginal], 0
        )
        marginal[block] = marginal.get(block, 0.0) + sums
        marginal_rows[block] = marginal_rows.get(block, 0) + rows
    return Part(
        index=index,
        tokens=columns,
        facts={
            name: np.concatenate([group.facts[name] for group in groups])[kept] for name in groups[0].facts
        },
        marginal=marginal,
        marginal_rows=marginal_rows,
        documents=tuple(records),
    )


def _reasons(groups: Sequence[GroupFacts]) -> dict[int, str]:
    """Why documents are left out: where the first of their non-finite numbers is."""
    nonfinite = {document: first for group in reversed(groups) for document, first in group.nonfinite.items()}
    return {
        document: f"a non-finite number at layer {first.layer}, position {first.position}"
        for document, first in nonfinite.items()
    }


def _token_columns(contexts: Sequence[Context], groups: Sequence[GroupFacts]) -> dict[str, np.ndarray]:
    rows = Rows.of(contexts)
    token = [token for context in contexts for token in context.ids[context.first_row :]]
    generated = [context.generated for context in contexts for _ in range(context.rows)]
    columns = {
        "token": np.array(token, dtype=np.int32),
        "next_token": rows.next_token.astype(np.int32),
        "document": rows.document.astype(np.int32),
        "position": rows.position.astype(np.int32),
        "generated": np.array(generated, dtype=np.bool_),
    }
    of_documents = {document: value for group in groups for document, value in group.prompt_entropy.items()}
    if of_documents:
        per_row = [of_documents[context.document] for context in contexts for _ in range(context.rows)]
        columns["prompt_entropy"] = np.array(per_row, dtype=np.float32)
    return columns
