"""transformers' continuous batching: all of its private names that are used, in this file alone.

It keeps the queue, the schedule and the paged cache; a step's layers are run by whoever is given its pieces.
Versions with which the capability test (`require_batching`) passed: `PASSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.errors import ModelError

PASSED = ("5.24",)
"""Of transformers."""
CACHE_NAMES = ("cache", "past_key_values")
"""Under which layers take their cache, in newer and older versions."""
PAGE = 32
"""Positions of a page of the cache."""
SPARE = 1.3
"""Of the positions that are needed: below a share of free pages no request is admitted."""


@dataclass(frozen=True)
class StepPiece:
    """What one request brings to a step: a token of its answer, or a piece of its prompt."""

    name: str
    ids: Tensor
    """int64 [tokens]."""
    positions: Tensor
    """int64 [tokens]."""
    decodes: bool
    """Whether it is a token of the answer."""
    speaks: bool
    """Whether a token follows it: not of a prompt that goes on."""
    write: tuple[Tensor, ...]
    """Where its K and V go, int64 [tokens], for each kind of layer."""
    read: tuple[Tensor, ...]
    """Where what it attends to lies, its own the last, int64 [context]; empty where it has only its own."""


Forward = Callable[[list[StepPiece], "BatchedRequests"], Tensor]
"""Logits [pieces that speak, vocabulary] of a step's pieces."""


class BatchedRequests:
    """Requests that are served together, a step at a time.

    rows: side by side at most. budget: tokens of a step. tokens: of the longest request.

    Raises ModelError for a model, or a transformers, that cannot do it.
    """

    def __init__(self, hf: Any, *, rows: int, budget: int, tokens: int) -> None:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        greedy: Any = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
        pages = int(SPARE * rows * (tokens // PAGE + 2)) + 1
        self.hf = hf
        self._manager = hf.init_continuous_batching(
            generation_config=greedy,
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=pages,
                page_size=PAGE,
                max_batch_tokens=budget,
                max_requests_per_batch=rows,
                allow_block_sharing=False,
                use_async_batching=False,
                use_cuda_graph=False,
                auto_switch_to_flash=False,
            ),
        )
        self._processor = self._manager.batch_processor = self._manager._create_batch_processor()
        self._cache = self._processor.cache
        self.kinds = list(self._cache.cache_allocators.values())
        """Of layers, by what they attend to."""
        allocators = self._cache.layer_to_allocator
        self.kind_of: dict[int, int] = {layer: kind.index for layer, kind in allocators.items()}
        self.windows = tuple(getattr(kind, "sliding_window", None) for kind in self.kinds)
        """How far back each kind attends, None for all."""
        self.answers: dict[str, list[int]] = {}

    def add(self, name: str, prompt: list[int], new_tokens: int) -> None:
        """A request joins the queue."""
        self.answers[name] = []
        self._manager.add_request(
            prompt, request_id=name, max_new_tokens=new_tokens, eos_token_id=-1, streaming=False
        )

    def step(self, forward: Forward | None) -> list[str] | None:
        """Run one step: the requests that have a token more; None where nobody is there.

        forward: None for transformers' own.
        """
        if not self._processor.prepare_next_batch():
            return None
        batch = self._processor.inputs_and_outputs
        if forward is None:
            self._processor._generation_step(self.hf)
        else:
            with torch.no_grad():
                logits = forward(self._pieces(batch), self)
            self._processor.model_runner._sample(logits.float()[None], batch.output_ids)
            batch.retrieve_device_outputs()
        speaking = [own.state.request_id for own in batch.requests_in_batch if own.has_new_token]
        for name, token in zip(speaking, batch.output_ids[0, : len(speaking)].tolist(), strict=True):
            self.answers[name].append(int(token))
        self._processor.update_batch()
        return speaking

    def close(self) -> None:
        """Give the cache's memory back; what was answered is kept."""
        del self._manager, self._processor, self._cache, self.kinds

    def _pieces(self, batch: Any) -> list[StepPiece]:
        given = batch.get_model_kwargs(use_padding=False)
        ends = given["cu_seq_lens_q"].tolist()
        contexts = [given["cu_seq_lens_k"][kind.layer_type].tolist() for kind in self.kinds]
        ids, positions = given["input_ids"][0].long(), given["position_ids"][0].long()
        pieces = []
        for place, request in enumerate(batch.requests_in_batch):
            own, name = slice(ends[place], ends[place + 1]), request.state.request_id
            write = tuple(index[own] for index in given["write_index"])
            read = tuple(
                index[limits[place] : limits[place + 1]] if index.numel() else index
                for index, limits in zip(given["read_index"], contexts, strict=True)
            )
            decodes, speaks = request.state.generated_len() > 0, request.has_new_token
            pieces.append(StepPiece(name, ids[own], positions[own], decodes, speaks, write, read))
        return pieces

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V of a layer, counted from 0, as places see them: [places, heads, size]."""
        views: tuple[Tensor, Tensor] = self.kinds[self.kind_of[layer]]._kv_token_views[layer]
        return views

    def exchanged(self, layer: int, keys: Tensor, values: Tensor, piece: StepPiece) -> tuple[Tensor, Tensor]:
        """Write a piece of a prompt [tokens, heads, size]; what it attends to [context, heads, size]."""
        kind = self.kind_of[layer]
        places = piece.read[kind], piece.write[kind]
        states: tuple[Tensor, Tensor] = self.kinds[kind].update(keys, values, layer, *places)
        return states


def require_batching(hf: Any, trial: Callable[[], str | None]) -> None:
    """Refuse a model that this transformers does not serve as its own `generate` decodes.

    trial: serves a few requests; what is wrong with them, None if nothing is. Raises ModelError.
    """
    import transformers

    if hf.config._attn_implementation != "sdpa":
        raise ModelError(
            f"the model attends by {hf.config._attn_implementation!r}, and it is served by sdpa",
            where=type(hf).__name__,
            fix="load it without attn_implementation, or leave --execute out",
        )
    if not hasattr(hf, "init_continuous_batching"):
        wrong: str | None = "it has none"
    else:
        try:
            wrong = trial()
        except (AttributeError, TypeError, KeyError, ValueError, RuntimeError, IndexError) as error:
            wrong = f"{type(error).__name__}: {error}"
    if wrong is not None:
        raise ModelError(
            f"continuous batching of transformers {transformers.__version__} does not do for it: {wrong}",
            where=type(hf).__name__,
            fix=f"install a version that passed ({', '.join(PASSED)}), or leave --execute out",
        )
