"""Models whose layers stay on disk: read one at a time, the next one meanwhile; and the memory that takes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from offramp.errors import ModelError, refused_as
from offramp.models.calls import (
    UNFIT_ERRORS,
    Recorder,
    first_tensor,
    hidden_argument,
    replaced_forward,
    with_hidden,
)
from offramp.models.checkpoint import StoredTensor, read_headers
from offramp.models.discovery import find_stack, probe_ids
from offramp.models.loading import describe_model, load_tokenizer
from offramp.models.measuring import measure_shape
from offramp.models.model import Model
from offramp.models.process import WORKING_SHARE, available_memory, quiet_transformers
from offramp.models.shape import ModelShape
from offramp.models.skeleton import Skeleton, build_skeleton, drop_weights, kinds_of_layers, set_tensor
from offramp.models.source import ModelFiles
from offramp.models.stack import ExitStack
from offramp.models.tensors import check_tensor_finite
from offramp.models.weight_map import Assembly, WeightMap, map_weights


class StreamedLayers(Protocol):
    """The layers of a model whose weights stay on disk.

    layer_bytes: of each layer's weights as they are loaded. resident_bytes: of what stays in memory all the
    time (embedding, final norm, output head).
    """

    layer_bytes: tuple[int, ...]
    resident_bytes: int

    @property
    def waited_seconds(self) -> float:
        """How long `layer` has waited for the disk so far."""

    @property
    def read_seconds(self) -> float:
        """How long reading took altogether, in the background or not."""

    def layer(self, index: int, following: int | None = None) -> AbstractContextManager[nn.Module]:
        """The layer with its weights, from 0; they are dropped at the end of the context.

        following: the layer that is read ahead meanwhile, None for none.
        """


# A file is mapped into memory while it is read; it is closed and opened again after this many bytes, because
# pages of a mapping count as memory in use.
PIECE_BYTES = 128 * 2**20

# Bytes of a cache line, and of the widest vector registers: torch's own memory begins at a multiple.
ALIGNMENT = 64


class ShardReader:
    """Weight files opened when something is read from them, and closed at the end of the context."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._files: dict[Path, Any] = {}
        self._mapped = 0

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; they stay mapped as long as tensors of them are in use."""
        self._files.clear()
        self._mapped = 0
        self._open.close()

    def read(self, stored: StoredTensor) -> Tensor:
        """A stored tensor, mapped from the file: to be copied, not kept.

        Raises ModelError if the file cannot be read any more.
        """
        what, changed = f"the tensor {stored.name} cannot be read any more", (OSError, SafetensorError)
        fix = "the file was changed or removed meanwhile: put it back and start again"
        with refused_as(ModelError, what, *changed, where=str(stored.file), fix=fix):
            if self._mapped > PIECE_BYTES:
                self.close()
            if stored.file not in self._files:
                file = safe_open(stored.file, framework="pt", device="cpu")
                self._files[stored.file] = self._open.enter_context(file)
            tensor: Tensor = self._files[stored.file].get_tensor(stored.name)
        self._mapped += tensor.nbytes
        return tensor


def _copied(mapped: Tensor) -> Tensor:
    """A copy in memory of its own, as far from a boundary of `ALIGNMENT` bytes as the original.

    The last bits of a matrix product may depend on that, and `from_pretrained` uses weights where they lie in
    the file: so a streamed layer computes exactly what the same layer does in memory.
    """
    size = mapped.element_size()
    start = mapped.data_ptr() % ALIGNMENT // size
    memory = torch.empty(start + mapped.numel(), dtype=mapped.dtype, device="cpu")
    return memory[start:].view(mapped.shape).copy_(mapped)


def read_weights(hf: Any, steps: Sequence[Assembly], name: str) -> dict[str, Tensor]:
    """What some steps of loading make, by the names of the model, in memory of their own.

    name: of the model, for messages. Raises ModelError if a file cannot be read or a weight is not finite.
    """
    weights: dict[str, Tensor] = {}
    buffers = {key for key, _ in hf.named_buffers()}
    with ShardReader() as reader, torch.no_grad():
        for step in steps:
            made = _make(hf, step, reader)
            for key in made.keys() - buffers:
                check_tensor_finite(key, made[key], name)
            weights |= made
    return weights


def _make(hf: Any, step: Assembly, reader: ShardReader) -> dict[str, Tensor]:
    """What one step makes; afterwards nothing refers to the files any more."""
    mapped: set[int] = set()

    def read(stored: StoredTensor) -> Tensor:
        tensor = reader.read(stored)
        mapped.add(tensor.untyped_storage().data_ptr())
        return tensor

    # Where nothing is converted or merged, the result is the file's own memory.
    return {
        key: _copied(made) if made.untyped_storage().data_ptr() in mapped else made
        for key, made in step.make(hf, read).items()
    }


class ShardedLayers:
    """`StreamedLayers` read from a checkpoint's weight files. At most two layers are in memory.

    A background thread reads the layer that follows. To be used from one thread.
    """

    def __init__(self, skeleton: Skeleton, weight_map: WeightMap, resident_bytes: int) -> None:
        self.layer_bytes = weight_map.layer_bytes
        self.resident_bytes = resident_bytes
        self.waited_seconds = 0.0
        self.read_seconds = 0.0
        self._skeleton = skeleton
        self._weight_map = weight_map
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-layer")
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}

    @contextlib.contextmanager
    def layer(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        """See `StreamedLayers.layer`.

        Raises ModelError if a file cannot be read or a weight of this layer is not finite.
        """
        with self.layers([index], following):
            yield self._skeleton.layers[index]

    @contextlib.contextmanager
    def layers(self, indices: Sequence[int], following: int | None = None) -> Iterator[None]:
        """Several layers at once with their weights, as `layer`."""
        try:
            for index in indices:
                for name, tensor in self._take(index).items():
                    set_tensor(self._skeleton.hf, name, tensor)
            if following is not None:
                self._ahead[following] = self._background.submit(self._read, following)
            yield
        finally:
            for index in indices:
                drop_weights(self._skeleton.layers[index])

    def _take(self, index: int) -> dict[str, Tensor]:
        """A layer's weights, read now unless they were read ahead; any other layer read ahead is let go."""
        started = time.perf_counter()
        ahead = self._ahead.pop(index, None)
        while self._ahead:
            _, other = self._ahead.popitem()
            # Two layers would be in memory beside the current one.
            other.exception()
            del other
        if ahead is None:
            ahead = self._background.submit(self._read, index)
        try:
            return ahead.result()
        finally:
            self.waited_seconds += time.perf_counter() - started

    def _read(self, index: int) -> dict[str, Tensor]:
        started = time.perf_counter()
        try:
            return read_weights(self._skeleton.hf, self._weight_map.layers[index], self._skeleton.name)
        finally:
            self.read_seconds += time.perf_counter() - started


@dataclasses.dataclass(frozen=True)
class PartialModel:
    """Which layers of a model have their weights while the others only pass their input on."""

    kinds: tuple[int, ...]
    """For each layer the first one like it, from 0."""
    real: tuple[int, ...]
    """Layers with weights, ascending: the first of each kind and the one before it, so that every kind is
    also seen to follow another layer."""


def plan_partial_model(skeleton: Skeleton) -> PartialModel:
    """Which layers get their weights: as few as show every kind, but two if the model has two."""
    kinds = kinds_of_layers(skeleton)
    second = {1} if len(kinds) > 1 else set()
    before = {kind - 1 for kind in kinds if kind > 0}
    return PartialModel(tuple(kinds), tuple(sorted({*kinds, *before, *second})))


def discover(
    skeleton: Skeleton, streamed: ShardedLayers, partial: PartialModel
) -> tuple[ExitStack, ModelShape]:
    """The stack of exits and the shape of the whole model, found with a few of its layers in memory.

    Raises ModelError if the exits cannot be read out exactly, or if running the layers one by one, each from
    the arguments recorded without the others, is not bit for bit what the model computes.
    """
    with streamed.layers(partial.real), _others_passing(skeleton, partial):
        stack = find_stack(skeleton.hf, name=skeleton.name)
        if stack.layers != tuple(skeleton.layers):
            raise _not_streamable(skeleton, "it does not run its list of layers once, in order")
        _check_driven(skeleton, stack)
        with_weights = _recorded_tensors(skeleton, stack)
        shape = measure_shape(skeleton.hf, stack)
    without = _recorded_tensors(skeleton, stack)
    if len(without) != len(with_weights) or not all(map(_same, with_weights, without)):
        raise _not_streamable(skeleton, "what its layers are called with depends on their weights")
    layers = tuple(shape.layers[kind] for kind in partial.kinds)
    return stack, dataclasses.replace(shape, layers=layers)


@contextlib.contextmanager
def _others_passing(skeleton: Skeleton, partial: PartialModel) -> Iterator[None]:
    """Run with the layers without weights handing on their input, in the form that their kind returns."""
    outputs: dict[int, Any] = {}

    def note(kind: int) -> Callable[..., None]:
        return lambda module, arguments, output: outputs.__setitem__(kind, output)

    def passing(kind: int) -> Callable[..., Any]:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            hidden = hidden_argument(arguments, keywords)
            if hidden is None:
                raise LookupError("a layer is called without a hidden state")
            return with_hidden(outputs[kind], hidden)

        return forward

    others = {
        layer: passing(partial.kinds[index])
        for index, layer in enumerate(skeleton.layers)
        if index not in partial.real
    }
    handles = [skeleton.layers[kind].register_forward_hook(note(kind)) for kind in {*partial.kinds}]
    try:
        with replaced_forward(others):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _check_driven(skeleton: Skeleton, stack: ExitStack) -> None:
    """Compare every layer's output with that of the model's own forward pass, on two documents at once."""
    first = probe_ids(skeleton.hf)
    ids = torch.cat([first, first.flip(1)])
    expected: list[Tensor] = []
    stack.capture(ids, lambda index, before, after: expected.append(after.clone()))
    recorder = Recorder(stack)
    hidden = None
    for index, layer in enumerate(stack.layers):
        # Recorded anew for every layer: what layers hand to each other on the side is then not there.
        start, calls = _record(skeleton, recorder, ids)
        arguments, keywords = calls[index].arguments(start if hidden is None else hidden)
        try:
            with torch.no_grad():
                hidden = first_tensor(layer(*arguments, **keywords))
        except UNFIT_ERRORS as error:
            raise _not_streamable(
                skeleton, f"a layer cannot run without the others: {type(error).__name__}: {error}"
            ) from error
        if not torch.equal(hidden, expected[index]):
            raise _not_streamable(skeleton, "its layers compute something else when they run one by one")


def _recorded_tensors(skeleton: Skeleton, stack: ExitStack) -> list[Tensor]:
    """All tensors that the layers are called with in a short forward pass of which only the rest runs."""
    first, calls = _record(skeleton, Recorder(stack), probe_ids(skeleton.hf))
    leaves = tree_leaves([first, [(call.before, call.after, call.keywords) for call in calls]])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _same(tensor: Tensor, expected: Tensor) -> bool:
    return tensor.device == expected.device and torch.equal(tensor, expected)


def _record(skeleton: Skeleton, recorder: Recorder, ids: Tensor) -> Any:
    try:
        with torch.no_grad():
            return recorder(input_ids=ids, use_cache=False)
    except UNFIT_ERRORS as error:
        raise _not_streamable(
            skeleton, f"it cannot run without its layers: {type(error).__name__}: {error}"
        ) from error


def _not_streamable(skeleton: Skeleton, why: str) -> ModelError:
    return ModelError(
        f"a {type(skeleton.hf).__name__} cannot be read layer by layer: {why}",
        where=skeleton.name,
        fix="load it as a whole, on a machine whose memory it fits",
    )


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a model's weights in the dtype they are loaded in."""

    whole_bytes: int
    """All of them."""
    largest_layer_bytes: int
    """The largest layer."""
    resident_bytes: int
    """What belongs to no layer (embedding, final norm, output head)."""
    streaming_bytes: int
    """The most that reading layer by layer holds at a time: the resident weights with the layer in use and
    the next one, or with the layers that are needed together to look at the model."""


def needed_memory(source: ModelFiles, dtype: str, *, trust_remote_code: bool = False) -> MemoryNeed:
    """What a model's weights need, from the headers of its weight files; nothing is loaded.

    Raises ModelError if the model cannot be read layer by layer, or if the files do not fit the config.
    """
    with source.unpacked() as source, quiet_transformers():
        skeleton = build_skeleton(source, dtype=dtype, trust_remote_code=trust_remote_code)
        weight_map = map_weights(skeleton, read_headers(source.folder))
        return memory_need(weight_map, plan_partial_model(skeleton))


def memory_need(weight_map: WeightMap, partial: PartialModel) -> MemoryNeed:
    """What a model's weights need, some of its layers in memory together at first."""
    sizes, reading = weight_map.layer_bytes, weight_map.reading_bytes
    resident = sum(step.result_bytes for step in weight_map.resident)
    resident_reading = resident + max((step.spare_bytes for step in weight_map.resident), default=0)
    pairs = [size + following for size, following in zip(sizes, reading[1:], strict=False)]
    spare = max(reading[index] - sizes[index] for index in partial.real)
    looking = sum(sizes[index] for index in partial.real) + spare
    return MemoryNeed(
        whole_bytes=resident + sum(sizes),
        largest_layer_bytes=max(sizes),
        resident_bytes=resident,
        streaming_bytes=max(resident_reading, resident + max(*pairs, looking, 0)),
    )


def would_not_fit(source: ModelFiles, dtype: str) -> bool:
    """Whether the weights of a model, with a tenth more for working with them, exceed the available memory.

    Only the headers of the weight files are read. Raises ModelError if they are damaged.
    """
    return weight_bytes(source, dtype) * WORKING_SHARE > available_memory()


def weight_bytes(source: ModelFiles, dtype: str) -> int:
    """Bytes of all of a model's weight files in the dtype they are loaded in, whatever the model's family.

    Only the headers of the weight files are read. Raises ModelError if they are damaged.
    """
    size: int = getattr(torch, dtype).itemsize
    return sum(tensor.elements * size for tensor in source.stored().values())


def load_streamed(
    source: ModelFiles, *, dtype: str, trust_remote_code: bool = False, memory_bytes: int | None = None
) -> Model:
    """Load everything of a model but its layers, which are read from its weight files one at a time.

    dtype: "float32", "bfloat16" or "float16". memory_bytes: what may be used for weights, None for no limit.
    The result has `Model.streamed`; its stack, shape and readouts are those of the whole model.

    Raises ModelError as `load_model` does, and if `memory_bytes` is too little (what is needed is named), if
    the weight files do not fit the config, or if the family cannot be run layer by layer. A weight that is
    not finite is refused when its layer is read.
    """
    with source.unpacked() as source, quiet_transformers():
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        skeleton = build_skeleton(source, dtype=dtype, trust_remote_code=trust_remote_code)
        weight_map = map_weights(skeleton, read_headers(source.folder))
        partial = plan_partial_model(skeleton)
        need = memory_need(weight_map, partial)
        _check_memory(need, memory_bytes, source.name)
        _load_resident(skeleton, weight_map)
        streamed = ShardedLayers(skeleton, weight_map, need.resident_bytes)
        stack, shape = discover(skeleton, streamed, partial)
    return describe_model(
        skeleton.hf,
        tokenizer,
        stack=stack,
        shape=shape,
        name=source.name,
        identify=lambda: source.identity,
        dtype=dtype,
        source=source,
        streamed=streamed,
    )


def _check_memory(need: MemoryNeed, memory_bytes: int | None, name: str) -> None:
    if memory_bytes is not None and memory_bytes < need.streaming_bytes:
        raise ModelError(
            f"{memory_bytes:,} bytes are too few to read this model layer by layer: its weights need "
            f"{need.streaming_bytes:,} at a time ({need.resident_bytes:,} that stay in memory, and the layer "
            f"in use beside the next one, of up to {need.largest_layer_bytes:,} each)",
            where=name,
            fix=f"allow at least {need.streaming_bytes}B",
        )


def _load_resident(skeleton: Skeleton, weight_map: WeightMap) -> None:
    """Read what belongs to no layer, and tie what the model ties."""
    hf: Any = skeleton.hf
    for name, tensor in read_weights(hf, weight_map.resident, skeleton.name).items():
        set_tensor(hf, name, tensor)
    hf.tie_weights(missing_keys=set(weight_map.missing), recompute_mapping=False)
    hf.requires_grad_(False)
