"""How much each layer does, and which layers depth pruning leaves out for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError, ModelError
from offramp.heads.output_head import state_shape_of
from offramp.heads.statistics import cosine
from offramp.models.checkpoint import read_config, stated_layers
from offramp.models.devices import to_host
from offramp.models.identity import ModelIdentity
from offramp.models.model import Model
from offramp.models.source import ModelFiles
from offramp.models.transforms.prune import DEFAULT_TOKENS, DEFAULT_WORKLOAD, Prune
from offramp.models.transforms.transform import Transform
from offramp.tracing.group_measurer import FORWARD_TOKENS, ids_of, traced_rows
from offramp.tracing.plan import plan_with_answers
from offramp.tracing.progress import token_bar
from offramp.tracing.rows import equal_length_batches
from offramp.tracing.trace import Trace
from offramp.workloads.packing import Context
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload


@dataclass(frozen=True)
class LayerImportance:
    """What every layer does to the hidden state, over the documents of a workload."""

    influence: NDArray[np.float64]
    """float64 [layers], the block influence 1 - mean cosine of a layer's input and output over all tokens
    (ShortGPT, arXiv 2403.03853)."""
    angles: NDArray[np.float64]
    """float64 [layers + 1, layers + 1], the angular distance (1/pi) arccos(cosine) between the inputs of two
    layers at the last token of a sequence, averaged over the sequences (Gromov et al., arXiv 2403.17887,
    section 3.2); the last row and column are the last layer's output."""

    def block_distances(self, layers: int) -> NDArray[np.float64]:
        """Angular distance across every block of so many layers: float64 [first layer, from 0]."""
        return np.diagonal(self.angles, offset=layers)


def measure_importance(
    model: Model,
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    tokens: int = DEFAULT_TOKENS,
    progress: bool | None = None,
) -> LayerImportance:
    """Measure all layers in one pass over the sequences that a trace of so many tokens would read.

    Raises InputError for the workload, ModelError for a model whose layers stay on
    disk, or if a hidden state is not finite.
    """
    model.require_loaded("measuring what each layer does")
    shown = sys.stderr.isatty() if progress is None else progress
    work = load_workload(workload) if isinstance(workload, str) else workload
    contexts = plan_with_answers(model, work, tokens=tokens, context=None, shown=shown).contexts
    shape = state_shape_of(model)
    sums = _Sums(model.layers)
    total = sum(context.rows for context in contexts)
    with token_bar(f"{work.name}: layer importance", total, shown=shown) as advance:
        for batch in equal_length_batches(contexts, 1 if shape.other_axes is not None else FORWARD_TOKENS):
            sums.add(model, batch, shape.rows)
            advance(sum(context.rows for context in batch))
    return sums.importance()


class _Sums:
    """Cosines and last states, layer by layer."""

    def __init__(self, layers: int) -> None:
        self.cosines = np.zeros(layers)
        self.rows = 0
        self.last: list[list[Tensor]] = [[] for _ in range(layers + 1)]

    def add(self, model: Model, batch: Sequence[Context], rows_of: Callable[[Tensor], Tensor]) -> None:
        """Run the layers on sequences of equal length; raises ModelError if a state is not finite."""
        device = model.stack.head_device
        last: list[Tensor] = []
        finite: list[Tensor] = []
        cosines: list[Tensor] = []

        def taken(hidden: Tensor) -> Tensor:
            return traced_rows(rows_of(hidden), batch).to(device).float()

        def last_of(hidden: Tensor) -> Tensor:
            return rows_of(hidden)[:, -1].to(device).float()

        def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
            came_in, went_out = taken(before), taken(after)
            if layer == 0:
                last.append(last_of(before))
            last.append(last_of(after))
            square = torch.linalg.vecdot(came_in, came_in), torch.linalg.vecdot(went_out, went_out)
            finite.append(torch.isfinite(square[0]).all() & torch.isfinite(square[1]).all())
            cosines.append(cosine(torch.linalg.vecdot(came_in, went_out), *square))

        with model.given(batch):
            model.stack.capture(ids_of(batch), on_layer)
        # Looked at once the layers have run: the host need not wait for each of them.
        fine, found, *ends = to_host([torch.stack(finite), torch.stack(cosines), *last])
        if not bool(fine.all()):
            raise ModelError(
                f"a hidden state of layer {int(fine.int().argmin()) + 1} is not finite",
                where=model.name,
                fix="load the model in float32 (--dtype float32), or check the model's weights",
            )
        self.cosines += [float(of_layer.double().sum()) for of_layer in found]
        for states, of_batch in zip(self.last, ends, strict=True):
            states += list(of_batch)
        self.rows += sum(context.rows for context in batch)

    def importance(self) -> LayerImportance:
        """The means."""
        states = torch.stack([torch.stack(states) for states in self.last]).double()
        directions = torch.nn.functional.normalize(states, dim=-1)
        angles = torch.zeros(len(states), len(states), dtype=torch.float64, device=states.device)
        for layer, direction in enumerate(directions):
            cosines = torch.linalg.vecdot(direction, directions).clamp(-1.0, 1.0)
            angles[layer] = (torch.arccos(cosines) / torch.pi).mean(-1)
        return LayerImportance(1.0 - self.cosines / self.rows, angles.numpy())


def influence_of_trace(trace: Trace) -> NDArray[np.float64]:
    """The block influence of every layer (see `LayerImportance`), from a trace of all exits.

    Returns float64 [layers].

    Raises InputError if the trace leaves exits out.
    """
    if len(trace.exits) != trace.layers:
        raise InputError(
            f"the trace holds {len(trace.exits)} of {trace.layers} exits; block influence needs all",
            where=str(trace.folder or "the trace"),
            fix='trace again with exits="all" (--exits all)',
        )
    cosines: NDArray[np.float64] = trace.fact("hidden_cosine_to_previous").mean(0, dtype=np.float64)
    return 1.0 - cosines


def resolve(transform: Transform, model: Model, *, progress: bool | None = None) -> Transform:
    """The transform with everything that had to be measured on the model; most are returned as they are.

    `prune:by=angular,layers=6` becomes the block of 6 layers with the least angular distance, by=influence
    the 6 layers with the least block influence, as `prune:drop=...`. They are measured on the later half of
    the workload's documents, as exit heads are fitted there: the first half is left to judge the model on.

    Raises InputError as `Prune.check_depth`, `resolve_from_trace` and `measure_importance` do.
    """
    if not isinstance(transform, Prune) or transform.resolved:
        return transform
    if transform.trace is not None:
        return resolve_from_trace(transform, model.identity)
    transform.check_depth(model.layers, model.name)
    work = load_workload(transform.workload)
    later = replace(work, documents=work.documents[len(work.documents) // 2 :])
    importance = measure_importance(model, later, tokens=transform.tokens, progress=progress)
    if transform.by == "influence":
        return least_influence(importance.influence, transform.count)
    first = int(np.argmin(importance.block_distances(transform.count)))
    return Prune(drop=tuple(range(first + 1, first + 1 + transform.count)))


def resolve_early(transform: Transform, source: ModelFiles) -> Transform:
    """The transform with what is known of it without the weights; what cannot be done is refused."""
    if not isinstance(transform, Prune):
        return transform
    layers = stated_layers(read_config(source.folder))
    if layers is not None:
        transform.check_depth(layers, str(source.folder))
    if transform.trace is not None:
        return resolve_from_trace(transform, source.identity)
    if not transform.resolved:
        load_workload(transform.workload)
    return transform


def resolve_from_trace(transform: Prune, identity: ModelIdentity) -> Prune:
    """The same for a choice that a trace decides, without the model itself.

    identity: of the model that is to be pruned; the trace must be of it, transformed or not, but not pruned.

    Raises InputError if there is no whole trace, or if it is of another model or leaves exits out;
    DamagedFileError if its bytes changed.
    """
    assert transform.trace is not None, "the caller looks for it"
    trace = Trace.load(Path(transform.trace))
    traced = trace.request["model"]
    if traced.get("base_fingerprint", traced["fingerprint"]) != identity.base_fingerprint:
        raise InputError(
            f"the trace is of another model, {traced['name']}",
            where=transform.trace,
            fix="trace the model that is to be pruned, or measure it: leave out trace=",
        )
    if any(text.startswith(f"{Prune.name}:") for text in traced.get("transforms", ())):
        raise InputError(
            "the trace is of the model after pruning", where=transform.trace, fix="trace the whole model"
        )
    transform.check_depth(trace.layers, transform.trace)
    return least_influence(influence_of_trace(trace), transform.count)


def least_influence(influence: NDArray[np.float64], count: int) -> Prune:
    """Leave out the `count` layers with the least block influence, the earlier of equal ones."""
    order = np.argsort(influence, kind="stable")[:count]
    return Prune(drop=tuple(int(layer) + 1 for layer in order))
