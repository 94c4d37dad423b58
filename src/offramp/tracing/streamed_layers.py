"""A trace of a model with weights left on disk: all batches through one layer at a time, then handed over."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import InputError, ModelError
from offramp.files import canonical_json, sha256_of_text
from offramp.heads.output_head import state_shape_of
from offramp.models.calls import LayerCall, Recorder, first_tensor
from offramp.models.model import Model
from offramp.models.stack import ExitStack, OnLayer
from offramp.models.streaming import StreamedLayers
from offramp.tracing.group_measurer import Capture, forward_batches, ids_of
from offramp.tracing.plan import TracePlan
from offramp.tracing.progress import LayerBar, layer_bar
from offramp.tracing.request import TraceRequest
from offramp.tracing.rows import groups_of
from offramp.tracing.states import (
    BatchPlace,
    FolderStates,
    LayerStates,
    MemoryStates,
    TemporaryStates,
    held_bytes,
    places_of,
    prepare_states,
    reusable_parts,
)
from offramp.workloads.packing import Context
from offramp.workloads.workload import Workload

CALLS_BUDGET = 64_000_000
"""Bytes of layers' arguments kept in memory: masks, position embeddings. What is beyond is made anew."""

DEFAULT_STATES_MEMORY = 1_000_000_000
"""Bytes of hidden states kept in memory if no budget is given and the trace has no folder."""


class BatchCalls:
    """What each layer is called with, batch by batch.

    batches: token ids, int64 [batch, positions] each. The arguments of all layers come from one pass through
    the model without its layers. They are kept for as many batches as fit `budget` bytes; for the others that
    pass, cheap beside a layer, is repeated for every layer.
    """

    def __init__(self, recorder: Recorder, batches: Sequence[Tensor], budget: int = CALLS_BUDGET) -> None:
        self._recorder = recorder
        self._batches = batches
        self._room = budget
        self._kept: dict[int, list[LayerCall]] = {}

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self._batches[0].device

    def positions(self, batch: int) -> int:
        """Tokens of a batch."""
        return self._batches[batch].numel()

    def first(self, batch: int) -> Tensor:
        """The hidden state that the first layer is given."""
        return self._record(batch)[0]

    def of(self, batch: int, layer: int) -> LayerCall:
        """The call of one layer, counted from 0."""
        calls = self._kept.get(batch)
        if calls is None:
            calls = self._record(batch)[1]
            size = _tensor_bytes(calls)
            if size <= self._room:
                self._room -= size
                self._kept[batch] = calls
        return calls[layer]

    def _record(self, batch: int) -> tuple[Tensor, list[LayerCall]]:
        with torch.no_grad():
            return self._recorder(input_ids=self._batches[batch], use_cache=False)


def _tensor_bytes(calls: Sequence[LayerCall]) -> int:
    """Bytes of the memory that the tensors among the arguments hold; what layers share counts once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            visit(list(value.values()))

    for call in calls:
        visit([call.before, call.after, call.keywords])
    return sum(storages.values())


def missing_layers(states: LayerStates, kept: Collection[int], layers: int) -> list[int]:
    """Layers to compute, ascending: those wanted that are not there, and what leads to them.

    After a kill that is the layers above the last whole one; after damage, the damaged one and those below it
    down to the nearest whole one.
    """
    missing: list[int] = []
    for layer in reversed(range(layers)):
        wanted = layer in kept or (bool(missing) and missing[-1] == layer + 1)
        if wanted and not states.holds(layer):
            missing.append(layer)
    return missing[::-1]


@torch.no_grad()
def compute_layers(
    streamed: StreamedLayers, calls: BatchCalls, states: LayerStates, kept: Collection[int], bar: LayerBar
) -> None:
    """Bring the outputs of the kept layers, counted from 0, into the states: every batch through each layer.

    What is there already is not computed again. Other layers' outputs go as soon as the layer above has used
    them.
    """
    order = missing_layers(states, kept, len(streamed.layer_bytes))
    states.keep_only({*kept, *(layer - 1 for layer in order)})
    bar.begin(layers=len(order), tokens=sum(calls.positions(batch) for batch in range(len(calls))))
    for place, layer in enumerate(order):
        following = order[place + 1] if place + 1 < len(order) else None
        bar.at(layer, "reading")
        with streamed.layer(layer, following=following) as module:
            bar.at(layer, "computing")
            states.write(layer, _outputs(module, layer, calls, states, bar))
        states.keep_only({*kept, *(later - 1 for later in order[place + 1 :])})


def _outputs(
    module: nn.Module, layer: int, calls: BatchCalls, states: LayerStates, bar: LayerBar
) -> Iterator[Tensor]:
    """The outputs of all batches of one layer, each computed when it is asked for."""
    for batch in range(len(calls)):
        call = calls.of(batch, layer)
        hidden = calls.first(batch) if layer == 0 else states.read(layer - 1, batch).to(calls.device)
        arguments, keywords = call.arguments(hidden)
        yield first_tensor(module(*arguments, **keywords))
        bar.advance(calls.positions(batch))


class Replay:
    """A `Capture` of batches that all went through the layers before.

    batches: those the states are of, in order. layers: whose inputs and outputs are handed over, from 0,
    ascending.
    """

    def __init__(
        self,
        states: LayerStates,
        calls: BatchCalls,
        batches: Sequence[Sequence[Context]],
        layers: Sequence[int],
    ) -> None:
        self._states = states
        self._calls = calls
        self._numbers = {_name(batch): number for number, batch in enumerate(batches)}
        self._layers = layers

    def __call__(self, contexts: Sequence[Context], on_layer: OnLayer) -> None:
        """Hand over one batch; an output is the very tensor that comes in as the next layer's input."""
        batch = self._numbers[_name(contexts)]
        last: tuple[int, Tensor] | None = None
        for layer in self._layers:
            if last is not None and last[0] == layer - 1:
                before = last[1]
            elif layer == 0:
                before = self._calls.first(batch)
            else:
                before = self._states.read(layer - 1, batch)
            after = self._states.read(layer, batch)
            on_layer(layer, before, after)
            last = (layer, after)


def _name(contexts: Sequence[Context]) -> tuple[tuple[int, int], ...]:
    """What tells a batch from all others of a plan."""
    return tuple((context.document, context.start) for context in contexts)


def kept_layers(exits: Sequence[int]) -> frozenset[int]:
    """Layers, from 0, whose outputs the facts of exits need: an exit's own and that of the layer before."""
    return frozenset(layer for exit in exits for layer in (exit - 1, exit - 2) if layer >= 0)


def output_bytes(stack: ExitStack, tokens: int) -> tuple[int, ...]:
    """Bytes of each layer's output at some positions, from the outputs that the stack was found by."""
    sizes = []
    for output in stack.layer_outputs:
        hidden = first_tensor(output)
        positions = hidden.shape[stack.position_axis]
        sizes.append(hidden.numel() // positions * hidden.element_size() * tokens)
    return tuple(sizes)


def peak_bytes(sizes: Sequence[int], kept: Collection[int]) -> int:
    """Bytes at most while layers are computed in order: what is kept, a layer's input and its output."""
    peak = held = 0
    for layer, size in enumerate(sizes):
        before = sizes[layer - 1] if layer and layer - 1 not in kept else 0
        peak = max(peak, held + before + size)
        held += size if layer in kept else 0
    return peak


def memory_for_states(memory: int | None, streamed: StreamedLayers) -> int:
    """Bytes that a budget leaves beside weights: those resident, a layer, and the one that is read ahead.

    memory: the budget in bytes, None for none.
    """
    if memory is None:
        return DEFAULT_STATES_MEMORY
    return memory - streamed.resident_bytes - 2 * max(streamed.layer_bytes)


def require_room(folder: Path, needed: int) -> None:
    """Refuse to start if the disk of a folder, which need not be there yet, has too little room.

    needed: bytes. Raises InputError that says how many are needed and how many are free.
    """
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise InputError(
            f"the disk is too full for the hidden states: {needed:,} bytes are needed for a while, "
            f"{free:,} bytes are free",
            where=str(folder),
            fix="free some space, choose a folder on another disk, or trace fewer --tokens or --exits",
        )


def require_given_text(model: str, workload: Workload, weight_bytes: int) -> None:
    """Refuse a workload whose prompts a streamed model would have to answer first.

    weight_bytes: of all layers. Raises ModelError.
    """
    if workload.mode == "generation":
        raise ModelError(
            f"the workload's prompts need answers, and a model whose weights stay on disk would read all of "
            f"them, {weight_bytes / 1e9:,.1f} GB, for every new token",
            where=f"{workload.name} with {model}",
            fix="trace text that is there (prose, code, txt:PATH, or jsonl:PATH#field with answers in it), "
            "or use --no-stream on a machine with enough memory",
        )


@contextmanager
def capture_for(
    model: Model,
    plan: TracePlan,
    parts: Sequence[int],
    request: TraceRequest,
    *,
    folder: Path | None,
    memory: int | None,
    title: str,
    shown: bool,
) -> Iterator[Capture | None]:
    """Where the layers' outputs of some parts come from; None is a forward pass of the model.

    If its layers stay on disk, all contexts are brought through them first, and their states handed over.

    folder: of the trace; states are kept in it, and a run that was stopped goes on after the last whole
    layer. Without one they are in memory if `memory` (bytes, for weights and states) allows it, else in
    unnamed temporary files.

    Raises InputError before anything is computed if the disk has too little room, OfframpError if it runs
    full on the way.
    """
    if model.streamed is None:
        yield None
        return
    states, batches = _open_states(model, model.streamed, plan, parts, request, folder, memory)
    calls = BatchCalls(Recorder(model.stack), [ids_of(batch).to(model.stack.device) for batch in batches])
    try:
        with layer_bar(title, len(model.stack), shown=shown) as bar:
            compute_layers(model.streamed, calls, states, kept_layers(request.exits), bar)
        yield Replay(states, calls, batches, [exit - 1 for exit in request.exits])
    finally:
        states.close()


def _open_states(
    model: Model,
    streamed: StreamedLayers,
    plan: TracePlan,
    parts: Sequence[int],
    request: TraceRequest,
    folder: Path | None,
    memory: int | None,
) -> tuple[LayerStates, list[list[Context]]]:
    """Where the states are kept, and the batches that they are of."""
    if folder is None:
        needed = needed_bytes(model, plan, parts, request)
        batches = batches_of(model, [plan.parts[part] for part in parts])
        if needed <= memory_for_states(memory, streamed):
            return MemoryStates(), batches
        require_room(Path(tempfile.gettempdir()), needed)
        return TemporaryStates(), batches
    covered = reusable_parts(folder, request.fingerprint, parts)
    if not covered or not set(covered) <= set(range(len(plan.parts))):
        covered = tuple(parts)
    batches = batches_of(model, [plan.parts[part] for part in covered])
    require_room(folder, needed_bytes(model, plan, covered, request) - held_bytes(folder))
    states_of = sha256_of_text(canonical_json([request.fingerprint, covered]))
    states = prepare_states(folder, request.fingerprint, covered)
    return FolderStates(states, states_of, _places(model.stack, batches)), batches


def _places(stack: ExitStack, batches: Sequence[Sequence[Context]]) -> list[tuple[BatchPlace, ...]]:
    """Where the outputs of batches lie in the file of each layer, whose one probe says their shape."""
    sizes = [ids_of(batch).shape for batch in batches]
    places = []
    for hidden in map(first_tensor, stack.layer_outputs):
        shapes = [list(hidden.shape) for _ in batches]
        for shape, size in zip(shapes, sizes, strict=True):
            shape[stack.position_axis - 1], shape[stack.position_axis] = size
        places.append(tuple(places_of((shape, hidden.dtype) for shape in shapes)))
    return places


def batches_of(model: Model, parts: Sequence[Sequence[Context]]) -> list[list[Context]]:
    """The contexts of some parts in the batches in which they go through a model, as in memory."""
    shape = state_shape_of(model)
    return [
        batch
        for contexts in parts
        for group in groups_of(contexts)
        for batch in forward_batches(group, shape)
    ]


def needed_bytes(model: Model, plan: TracePlan, parts: Sequence[int], request: TraceRequest) -> int:
    """Bytes of hidden states at most, while some parts go through the layers."""
    tokens = sum(len(context.ids) for part in parts for context in plan.parts[part])
    return peak_bytes(output_bytes(model.stack, tokens), kept_layers(request.exits))
