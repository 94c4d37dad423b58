"""Where a trace gets the outputs of layers whose weights stay on disk: computed first, then handed over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from offramp.errors import ModelError
from offramp.files import canonical_json, sha256_of_text
from offramp.models.model import Model
from offramp.models.recording import Recorder
from offramp.models.streaming.layers import StreamedLayers
from offramp.tracing.capture import Capture, ids_of
from offramp.tracing.group import forward_batches
from offramp.tracing.measurement import state_shape_of
from offramp.tracing.plan import TracePlan
from offramp.tracing.request import TraceRequest
from offramp.tracing.rows import groups_of
from offramp.tracing.streamed.layers import BatchCalls, compute_layers
from offramp.tracing.streamed.progress import layer_bar
from offramp.tracing.streamed.replaying import Replay
from offramp.tracing.streamed.sizes import (
    kept_layers,
    memory_for_states,
    output_bytes,
    peak_bytes,
    require_room,
)
from offramp.tracing.streamed.states import LayerStates, MemoryStates, TemporaryStates
from offramp.tracing.streamed.states_folder import FolderStates, held_bytes, prepare_states, reusable_parts
from offramp.workloads.packing import Context
from offramp.workloads.workload import Workload


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
def streamed_capture(
    model: Model,
    plan: TracePlan,
    parts: Sequence[int],
    request: TraceRequest,
    *,
    folder: Path | None,
    memory: int | None,
    title: str,
    shown: bool,
) -> Iterator[Capture]:
    """Bring the contexts of some parts through all layers, then hand their states over.

    folder: of the trace; states are kept in it, and a run that was stopped goes on after the last whole
    layer. Without one they are in memory if `memory` (bytes, for weights and states) allows it, else in
    unnamed temporary files.

    Raises InputError before anything is computed if the disk has too little room, OfframpError if it runs
    full on the way.
    """
    assert model.streamed is not None
    states, covered = _open_states(model, model.streamed, plan, parts, request, folder, memory)
    batches = batches_of(model, [plan.parts[part] for part in covered])
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
) -> tuple[LayerStates, tuple[int, ...]]:
    """Where the states are kept, and the parts that they are of."""
    if folder is None:
        needed = needed_bytes(model, plan, parts, request)
        if needed <= memory_for_states(memory, streamed):
            return MemoryStates(), tuple(parts)
        require_room(Path(tempfile.gettempdir()), needed)
        return TemporaryStates(), tuple(parts)
    covered = reusable_parts(folder, request.fingerprint, parts) or tuple(parts)
    require_room(folder, needed_bytes(model, plan, covered, request) - held_bytes(folder))
    states_of = sha256_of_text(canonical_json([request.fingerprint, covered]))
    return FolderStates(prepare_states(folder, request.fingerprint, covered), states_of), covered


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
