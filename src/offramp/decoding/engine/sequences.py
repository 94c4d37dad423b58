"""Token sequences that a model decodes side by side, one layer at a time: tokens, cache, and what was run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine import cache as caching
from offramp.decoding.engine.cache import (
    Past,
    at_length,
    counting_updates,
    grow_in_place,
    kept_aside,
    merging,
)
from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.products import few_rows
from offramp.errors import ModelError
from offramp.models.calls import LayerCall, Recorder, caches_among, first_tensor
from offramp.models.conditioned import condition_of, under


@dataclass(frozen=True)
class Inputs:
    """What the layers are given for the tokens at positions start..end-1."""

    start: int
    end: int
    hidden: Tensor
    """The embedding [rows, end - start, hidden]."""
    calls: list[LayerCall]
    """The other arguments of every layer."""
    rows: NDArray[np.int64] | None = None
    """Of the batch, those that they are for; None for all."""
    handed_on: list[Any] = field(default_factory=list)
    """Layer 1's output, once it is known, where it hands something on beside its state."""


def token_positions(ids: Tensor, mask: Tensor | None, start: int, end: int) -> Tensor:
    """Position ids of tokens start..end-1 as `generate()` makes them, padding left out: int64 [batch, n].

    Given even without padding: some families count from 0 in every block if they are not told.
    """
    if mask is None:
        return torch.arange(start, end, device=ids.device).expand(len(ids), -1)
    return (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, start:]


OnPosition = Callable[[int, int], None]
"""Called with a layer's index and the position that a recurrent layer has just run."""


States = Tensor | Sequence[Tensor]
"""Hidden states [rows, positions, hidden] that several layers are given: the same ones, or one for each."""


class PositionsMissing(IndexError):
    """A layer is to run at positions that do not follow those it holds."""


class Sequences:
    """`batch` sequences of one length, padded on the left where they differ.

    ids: int64 [batch, length], every token fed so far. mask: int64 [batch, length], 0 = padding; None without
    padding. cache: transformers' own, its layers of full attention growing in place; None before the first
    inputs. meter: counts every layer that runs.
    lengths: per layer, how many positions it has run or written; a layer takes the next ones only.
    What an encoder read for them is what the model is given while they are made (`Model.given`).
    """

    def __init__(self, engine: Engine, ids: Tensor, mask: Tensor | None, meter: Meter) -> None:
        self.engine = engine
        self.ids = ids
        self.mask = mask
        self.cache: Any = None
        self.meter = meter
        self.lengths = [0] * engine.layers
        self._record = Recorder(engine.stack)
        self._condition = condition_of(engine.hf)
        self._inputs: dict[tuple[int, int], Inputs] = {}
        self._inputs_of_rows: dict[tuple[int, int, tuple[int, ...]], Inputs] = {}

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens fed so far, padding included."""
        return self.ids.shape[1]

    def feed(self, tokens: Tensor) -> None:
        """Append tokens, int64 [batch, new]; no layer runs yet."""
        self.ids = torch.cat([self.ids, tokens], 1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(tokens)], 1)
        self._forget_inputs()

    def unfeed(self, length: int) -> None:
        """Keep only the first `length` tokens; `crop` or `restore` the layers that hold more."""
        self.ids = self.ids[:, :length]
        if self.mask is not None:
            self.mask = self.mask[:, :length]
        self._forget_inputs()

    def _forget_inputs(self) -> None:
        self._inputs.clear()
        self._inputs_of_rows.clear()

    def inputs(self, start: int, end: int) -> Inputs:
        """What the layers are given for positions start..end-1, as if `start` positions were cached.

        Kept until more tokens are fed, so that asking twice costs nothing.
        """
        if (start, end) not in self._inputs:
            self._inputs[start, end] = self._recorded(start, end)
        return self._inputs[start, end]

    @torch.no_grad()
    def _recorded(self, start: int, end: int, rows: NDArray[np.int64] | None = None) -> Inputs:
        ids, mask, condition = self.ids, self.mask, self._condition
        if rows is not None:
            ids, mask = ids[rows], None if mask is None else mask[rows]
            condition = None if condition is None else condition.of_rows(rows.tolist())
        keywords: dict[str, Any] = {}
        view = None
        if self.cache is not None:
            view = at_length(self.cache, start)
            keywords[self.engine.cache_name] = view
        if mask is not None and (start == 0 or self.engine.masks_steps):
            keywords["attention_mask"] = mask[:, :end]
        if self.engine.takes_positions:
            keywords["position_ids"] = token_positions(ids, mask, start, end)
        with under(self.engine.hf, condition):
            hidden, calls = self._record(input_ids=ids[:, start:end], use_cache=True, **keywords)
        if view is None:
            self.cache = next(
                iter(caches_among([[call.keywords, call.before, call.after] for call in calls]))
            )
            grow_in_place(self.cache)
        else:
            calls = [call.with_cache(view, self.cache) for call in calls]
        self.meter.lap("overhead")
        return Inputs(start, end, hidden, calls, rows)

    def call_of(self, inputs: Inputs, index: int) -> LayerCall:
        """What a layer, counted from 0, is called with, what layer 1 hands on included."""
        call = inputs.calls[index]
        if not index or not self.engine.stack.handed_on:
            return call
        if not inputs.handed_on:
            inputs.handed_on.append(self._run_aside(inputs))
        return call.with_handed_on(inputs.handed_on[0])

    def _run(self, inputs: Inputs, index: int, hidden: Tensor) -> Tensor:
        """Run a layer, counted from 0."""
        arguments, keywords = self.call_of(inputs, index).arguments(hidden)
        output = self.engine.stack.layers[index](*arguments, **keywords)
        if index == 0 and self.engine.stack.handed_on and not inputs.handed_on:
            inputs.handed_on.append(output)
        return first_tensor(output)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _run_aside(self, inputs: Inputs) -> Any:
        """Layer 1's output at positions that it ran at another time, for what it hands on; nothing stays."""
        rows = None if inputs.rows is None else torch.from_numpy(inputs.rows).to(inputs.hidden.device)
        call = inputs.calls[0].with_cache(self.cache, caching.copied_to(self.cache, inputs.start, rows))
        arguments, keywords = call.arguments(inputs.hidden)
        return self.engine.stack.layers[0].forward(*arguments, **keywords)

    @torch.no_grad()
    def run(self, hidden: Tensor, inputs: Inputs, first: int, last: int) -> Tensor:
        """Run layers first+1..last on hidden states [batch, positions, hidden]; those after the last one.

        Several positions at once are exact for attention, and for a whole prompt: see `run_block`.
        """
        return self.run_differentiable(hidden, inputs, first, last)

    def run_differentiable(self, hidden: Tensor, inputs: Inputs, first: int, last: int) -> Tensor:
        """The same for training: gradients flow through the states, also by the K and V that are cached."""
        rows = hidden.shape[0] * hidden.shape[1]
        with few_rows(self.engine.linears[first:last], rows):
            for index in range(first, last):
                self._advance(index, inputs)
                self.meter.count("layers", index + 1, rows)
                hidden = self._run(inputs, index, hidden)
        self.meter.lap("layers")
        return hidden

    def run_block(
        self, hidden: Tensor, start: int, end: int, first: int, last: int, after: OnPosition | None = None
    ) -> Tensor:
        """Run layers first+1..last on positions start..end-1 after a past, exactly as one by one.

        hidden: the state before layer first+1 [batch, end - start, hidden]. Attention runs on the whole
        block, a layer with a recurrent state on one position at a time: given several at once some start from
        an empty state. after: told of each position that such a layer has run. The prompt is no block: `run`.
        """
        kept = self.engine.kept
        while first < last:
            until = first + 1
            if kept[first].recurrent:
                hidden = self._run_one_by_one(hidden, start, first, after)
            else:
                while until < last and not kept[until].recurrent:
                    until += 1
                hidden = self.run(hidden, self.inputs(start, end), first, until)
            first = until
        return hidden

    def _run_one_by_one(self, hidden: Tensor, start: int, index: int, after: OnPosition | None) -> Tensor:
        """Run one layer on hidden states [batch, n, hidden] of positions from `start` on, one at a time."""
        outputs = []
        for offset in range(hidden.shape[1]):
            inputs = self.inputs(start + offset, start + offset + 1)
            outputs.append(self.run(hidden[:, offset : offset + 1], inputs, index, index + 1))
            if after is not None:
                after(index, start + offset)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    @torch.no_grad()
    def write(self, hidden: States, inputs: Inputs, first: int, last: int) -> None:
        """Leave what later tokens need of layers first+1..last, given the state before them, or before each.

        A layer whose K and V are all that it keeps runs only until they are written; another one that keeps
        anything runs whole, and is counted as executed. Several positions at once as in `run`.
        """
        layers, engine = self.engine.stack.layers, self.engine
        for index in range(first, last):
            self._advance(index, inputs)
            kept = engine.kept[index]
            if not kept.entries:
                continue
            state = hidden if isinstance(hidden, Tensor) else hidden[index - first]
            rows = state.shape[0] * state.shape[1]
            arguments, keywords = self.call_of(inputs, index).arguments(state)
            self.meter.count("K,V projection", index + 1, rows)
            if kept.updates:
                with counting_updates(self.cache, stop_after=kept.updates):
                    layers[index].forward(*arguments, **keywords)
            else:
                self.meter.executed += rows
                layers[index](*arguments, **keywords)
        self.meter.lap("K,V repair")

    def _advance(self, index: int, inputs: Inputs) -> None:
        """The layer now holds the positions of these inputs, which must follow those it held."""
        if self.lengths[index] != inputs.start:
            raise PositionsMissing(
                f"layer {index + 1} holds {self.lengths[index]} positions, "
                f"and is given those from {inputs.start} on"
            )
        self.lengths[index] = inputs.end

    @torch.no_grad()
    def run_rows(
        self, hidden: Tensor, left: States, rows: NDArray[np.int64], start: int, first: int, last: int
    ) -> Tensor:
        """Run layers first+1..last at position `start` for some rows only; the others leave just K and V.

        hidden: states before layer first+1 of the rows that go on [len(rows), 1, hidden]. left: what the
        others give the layers [batch - len(rows), 1, hidden], in ascending order, or what they give each
        layer. rows: ascending, some but not all. Returns the rows' states after layer `last`. Needs the
        ability "rebatch".
        """
        others = np.setdiff1d(np.arange(self.batch), rows)
        going, gone = self._inputs_of(rows, start), self._inputs_of(others, start)
        order = torch.from_numpy(np.argsort(np.concatenate([rows, others]))).to(hidden.device)
        kept_rows = torch.from_numpy(rows).to(hidden.device)
        for index in range(first, last):
            self._advance(index, going)
            layer = self.engine.stack.layers[index]
            written = None
            if self.engine.kept[index].entries:
                self.meter.count("K,V projection", index + 1, len(others))
                state = left if isinstance(left, Tensor) else left[index - first]
                arguments, keywords = self.call_of(gone, index).arguments(state)
                with kept_aside(self.cache) as written:
                    layer.forward(*arguments, **keywords)
                self.meter.lap("K,V repair")
            call = self.call_of(going, index)  # while the cache is as it was
            self.meter.count("layers", index + 1, len(rows))
            linears = self.engine.linears[index : index + 1]
            with merging(self.cache, written, order, kept_rows, index), few_rows(linears, len(rows)):
                arguments, keywords = call.arguments(hidden)
                hidden = first_tensor(layer(*arguments, **keywords))
            self.meter.lap("layers")
        return hidden

    def _inputs_of(self, rows: NDArray[np.int64], start: int) -> Inputs:
        """The inputs of some rows at one position."""
        key = (start, start + 1, tuple(rows.tolist()))
        if key not in self._inputs_of_rows:
            self._inputs_of_rows[key] = self._recorded(start, start + 1, rows)
        return self._inputs_of_rows[key]

    @torch.no_grad()
    def read_out(self, hidden: Tensor) -> Tensor:
        """The full model's logits at the last position of hidden states after layer L: [rows, vocabulary]."""
        self.meter.count("final head", self.engine.layers, len(hidden))
        logits = self.engine.logits(hidden[:, -1:])[:, -1]
        self.meter.lap("heads")
        return logits

    @torch.no_grad()
    def read_out_all(self, hidden: Tensor) -> Tensor:
        """The full model's logits at every position of hidden states after layer L: [rows, n, vocabulary]."""
        self.meter.count("final head", self.engine.layers, hidden.shape[0] * hidden.shape[1])
        logits = self.engine.logits(hidden)
        self.meter.lap("heads")
        return logits

    def snapshot(self, first: int, last: int) -> Past:
        """What layers first+1..last hold now, for `restore`; it may be restored several times."""
        return caching.snapshot(
            self.cache, self._entries(range(first, last)), first, self.lengths[first:last]
        )

    def restore(self, past: Past) -> None:
        """Go back to a snapshot in the layers it was taken of."""
        caching.restore(self.cache, past)
        self.lengths[past.first : past.first + len(past.lengths)] = past.lengths

    def record_past(self) -> None:
        """From now on sliding windows keep what slides out of them until the next `crop`, so that it can be
        taken back; call `crop` after every block, also with nothing to remove, lest they grow."""
        caching.record_past(self.cache)

    def crop(self, length: int, first: int, last: int) -> None:
        """Remove the positions from `length` on from layers first+1..last that hold more, exactly.

        Raises ModelError for a layer with a recurrent state, which must be restored from a snapshot instead.
        """
        for index in range(first, last):
            surplus = self.lengths[index] - length
            if surplus > 0 and self.engine.kept[index].recurrent:
                raise ModelError(
                    f"the recurrent state of layer {index + 1} cannot be taken back by cropping",
                    fix="restore a snapshot, then run the positions again",
                )
            if surplus >= 0:
                caching.crop(self.cache, self.engine.kept[index].entries, surplus)
                self.lengths[index] = length

    def select_rows(self, rows: NDArray[np.int64] | Sequence[int]) -> None:
        """Keep only these rows, in this order: tokens, mask and cache."""
        chosen = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=self.ids.device)
        self.ids = self.ids[chosen]
        if self._condition is not None:
            self._condition = self._condition.of_rows(chosen.tolist())
        if self.mask is not None:
            self.mask = self.mask[chosen]
        if self.cache is not None:
            self.cache.reorder_cache(chosen)
        self._forget_inputs()

    def _entries(self, layers: Iterable[int]) -> list[int]:
        """Places in the cache's list that some layers write to."""
        return sorted({place for index in layers for place in self.engine.kept[index].entries})
