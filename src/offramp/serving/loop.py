"""A step of a server, layer by layer: rows leave at exits, and the layers above only keep their K and V."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.cache import CacheWritten
from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.products import few_rows
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.strategies.strategy import PolicyDriver
from offramp.errors import PolicyError
from offramp.heads.exit_heads import ExitHeads
from offramp.models.calls import LayerCall, Recorder, first_tensor
from offramp.policies.signals import looks_back
from offramp.serving.batching import CACHE_NAMES, BatchedRequests, StepPiece
from offramp.serving.contenders import LoadContender, Rung
from offramp.serving.prices import Places, StepPrices
from offramp.serving.request import Rule

Masks = Sequence[Tensor | None]
"""What is attended to, additive, by kind of layer; None for all before each token."""


@dataclass(frozen=True)
class _Rows:
    """What layers take for their cache: rows of one token each.

    write, read: by kind of layer, int64 [rows], and padded int64 [rows, context]; read None only to write.
    """

    batch: BatchedRequests
    write: tuple[Tensor, ...]
    read: tuple[Tensor, ...] | None

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """Keep K and V [rows, heads, 1, size]; those of the whole contexts [rows, heads, context, size]."""
        kind, kept = self.batch.kind_of[layer], self.batch.kept(layer)
        for store, new in zip(kept, (keys, values), strict=True):
            store.index_copy_(0, self.write[kind], new[:, :, 0])
        if self.read is None:
            raise CacheWritten
        places = self.read[kind]
        flat = (store.index_select(0, places.reshape(-1)) for store in kept)
        return tuple(rows.view(*places.shape, *rows.shape[1:]).transpose(1, 2) for rows in flat)


@dataclass(frozen=True)
class _Prompt:
    """The same of a piece of one prompt."""

    batch: BatchedRequests
    piece: StepPiece

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """Keep K and V [1, heads, tokens, size]; all that it attends to."""
        own, more = (given[0].transpose(0, 1) for given in (keys, values))
        return tuple(
            read.transpose(0, 1)[None] for read in self.batch.exchanged(layer, own, more, self.piece)
        )


@dataclass(frozen=True)
class StepLog:
    """What one step ran.

    prompts: tokens of each piece of a prompt, and how many came before. contexts, exits: positions before
    each row that decodes, and where it left. asked, left: how many rows at each stop.
    """

    prompts: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]
    exits: tuple[int, ...]
    asked: tuple[int, ...]
    left: tuple[int, ...]


class ServedLoop:
    """The layers of one contender's steps.

    rule, prices: when rows leave that were let go; without prices each leaves where it wants to.
    rung: of each request, as it was admitted. meter: counts layers that ran, over rows.
    """

    def __init__(
        self,
        engine: Engine,
        contender: LoadContender,
        heads: ExitHeads | None = None,
        rule: Rule = "gain",
        prices: StepPrices | None = None,
    ) -> None:
        self.engine, self.contender, self.rule, self.prices = engine, contender, rule, prices
        self.rung: dict[str, int] = {}
        self.log: list[StepLog] = []
        self.meter = Meter()
        self._record = Recorder(engine.stack)
        self.readers = [_reader(engine, rung, heads) for rung in contender.rungs]

    def __call__(self, pieces: list[StepPiece], batch: BatchedRequests) -> Tensor:
        """Logits of the pieces that speak, in their order: [pieces, vocabulary]."""
        prompts = [piece for piece in pieces if not piece.decodes]
        rows = [piece for piece in pieces if piece.decodes]
        logits: dict[str, Tensor] = {}
        for piece in prompts:
            last = self._prompt(piece, batch)
            if piece.speaks:
                logits[piece.name] = self.read_out(last)[0]
        exits: tuple[int, ...] = ()
        asked = left = (0,) * len(self.contender.stops)
        if rows:
            step = _Step(self, rows, batch)
            logits |= zip((piece.name for piece in rows), step.run(), strict=True)
            exits, asked, left = map(tuple, (step.exits.tolist(), step.asked, step.left))
        cut = tuple((len(piece.ids), int(piece.positions[0])) for piece in prompts)
        self.log.append(StepLog(cut, tuple(int(row.positions[0]) for row in rows), exits, asked, left))
        speaking = [logits[piece.name] for piece in pieces if piece.speaks]
        return torch.stack(speaking) if speaking else torch.zeros(0, 1, device=pieces[0].ids.device)

    def calls_of(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """The embeddings [rows, tokens, hidden] of tokens, and what every layer is called with."""
        return self._record(input_ids=ids, position_ids=positions, use_cache=False)

    def given(self, call: LayerCall, hidden: Tensor, cache: Any, mask: Tensor | None) -> Any:
        """What a layer is given."""
        arguments, keywords = call.arguments(hidden)
        name = next((name for name in CACHE_NAMES if name in keywords), self.engine.cache_name)
        return arguments, {**keywords, "attention_mask": mask, name: cache}

    def run_layer(self, index: int, hidden: Tensor, call: LayerCall, cache: Any, masks: Masks) -> Tensor:
        """One layer, counted from 0."""
        rows = hidden.shape[0] * hidden.shape[1]
        self.meter.count("layers", index + 1, rows)
        arguments, keywords = self.given(call, hidden, cache, masks[cache.batch.kind_of[index]])
        with few_rows(self.engine.linears[index : index + 1], rows):
            output: Tensor = first_tensor(self.engine.stack.layers[index](*arguments, **keywords))
        return output

    def _prompt(self, piece: StepPiece, batch: BatchedRequests) -> Tensor:
        """A piece of a prompt through all layers: its last token's state [1, 1, hidden]."""
        hidden, calls = self.calls_of(piece.ids[None], piece.positions[None])
        masks = [
            _prompt_mask(piece.positions, len(read) or len(piece.ids), window, hidden.dtype)
            for read, window in zip(piece.read, batch.windows, strict=True)
        ]
        for index, call in enumerate(calls):
            hidden = self.run_layer(index, hidden, call, _Prompt(batch, piece), masks)
        return hidden[:, -1:]

    def read_out(self, hidden: Tensor) -> Tensor:
        """The outputs at exit L of states [rows, 1, hidden]: [rows, vocabulary]."""
        if self.contender.rungs[-1].policy.short_head:
            return self.readers[-1].logits(self.engine.layers, hidden)
        return self.engine.logits(hidden)[:, -1]


def _reader(engine: Engine, rung: Rung, heads: ExitHeads | None) -> ExitReader:
    """What reads a policy's exits. Raises PolicyError for facts that a row of a server may not have had."""
    needs = dict(rung.policy.needs(engine.layers))
    if back := [fact for facts in needs.values() for fact in facts if looks_back(fact)]:
        what = f"{back[0]} compares with an earlier check, which a row of a server may not have had"
        fix = "choose another signal, or leave --execute out"
        raise PolicyError(what, where=str(rung.policy), fix=fix)
    return ExitReader(engine, heads, needs, short_list=rung.policy.short_list)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A mask of what is seen, bool, as it is added to scores; None where all is."""
    if bool(seen.all()):
        return None
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)


def _prompt_mask(positions: Tensor, context: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """What a piece of a prompt attends to of its context: [1, 1, tokens, context]."""
    if context == len(positions) and (window is None or context <= window):
        return None
    keys = torch.arange(context, device=positions.device) + (positions[-1] + 1 - context)
    seen = keys <= positions[:, None]
    if window is not None:
        seen &= keys > positions[:, None] - window
    mask = _additive(seen, dtype)
    return None if mask is None else mask[None, None]


class _Step:
    """The rows of one step on their way down: `going` are those that have not left."""

    def __init__(self, loop: ServedLoop, pieces: list[StepPiece], batch: BatchedRequests) -> None:
        self.loop, self.batch, self.count = loop, batch, len(pieces)
        ids, positions = (
            torch.stack([getattr(piece, name) for piece in pieces]) for name in ("ids", "positions")
        )
        self.hidden, self.calls = loop.calls_of(ids, positions)
        self.before, self.states = self.hidden, self.hidden.clone()
        kinds = range(len(batch.kinds))
        self.write = [torch.cat([piece.write[kind] for piece in pieces]) for kind in kinds]
        self.read = [self._padded(pieces, kind) for kind in kinds]
        self.lengths = np.array([[len(piece.read[kind]) for piece in pieces] for kind in kinds])
        self.context = np.array([float(positions.max())])
        self.exits: NDArray[np.int64] = np.full(self.count, loop.engine.layers, dtype=np.int64)
        self.going: NDArray[np.int64] = np.arange(self.count)
        self.free = np.zeros(self.count, dtype=np.bool_)
        self.logits: list[Tensor | None] = [None] * self.count
        self.asked, self.left = ([0] * len(loop.contender.stops) for _ in range(2))
        self.rungs = np.array([loop.rung.get(piece.name, 0) for piece in pieces])
        self.drivers = {int(rung): self._driver(int(rung)) for rung in np.unique(self.rungs)}
        self._view()

    def _padded(self, pieces: list[StepPiece], kind: int) -> Tensor:
        """Where each row's context lies, padded on the right by its first place: int64 [rows, context]."""
        reads = [piece.read[kind] for piece in pieces]
        if self.batch.windows[kind] is not None:  # a row's own place, written first, stands for it last
            reads = [torch.cat([piece.read[kind][:-1], piece.write[kind]]) for piece in pieces]
        return torch.nn.utils.rnn.pad_sequence(reads, batch_first=True, padding_value=int(reads[0][0]))

    def _driver(self, rung: int) -> PolicyDriver:
        loop = self.loop
        policy, layers = loop.contender.rungs[rung].policy, loop.engine.layers
        driver = PolicyDriver(policy, layers, self.count, loop.readers[rung], loop.meter)
        driver.begin()
        driver.running = self.rungs == rung
        return driver

    def _view(self) -> None:
        """What the layers take now, for rows that go on and for those that have left."""
        device, dtype = self.hidden.device, self.hidden.dtype
        rows = torch.from_numpy(self.going).to(device)
        read, self.masks = [], []
        for padded, lengths in zip(self.read, self.lengths[:, self.going], strict=True):
            longest = int(lengths.max(initial=1))
            read.append(padded[rows, :longest])
            seen = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
            self.masks.append(_additive(seen[:, None, None].to(device), dtype))
        self.cache = _Rows(self.batch, tuple(write[rows] for write in self.write), tuple(read))
        self.calls_now = _of_rows(self.calls, rows, self.count)
        self.gone = torch.from_numpy(np.setdiff1d(np.arange(self.count), self.going)).to(device)
        if len(self.gone):
            self.only = _Rows(self.batch, tuple(write[self.gone] for write in self.write), None)
            self.calls_gone = _of_rows(self.calls, self.gone, self.count)

    def run(self) -> Tensor:
        """Each row as deep as it goes: [rows, vocabulary]."""
        loop, stops = self.loop, self.loop.contender.stops
        for index in range(loop.engine.layers):
            if index in stops and len(self.going):
                self._at(stops.index(index), index)
            if len(self.gone):
                states = self.states[self.gone]
                arguments, keywords = loop.given(self.calls_gone[index], states, self.only, None)
                with contextlib.suppress(CacheWritten):
                    loop.engine.stack.layers[index].forward(*arguments, **keywords)
            if len(self.going):
                call, self.before = self.calls_now[index], self.hidden
                self.hidden = loop.run_layer(index, self.hidden, call, self.cache, self.masks)
        if len(self.going):
            for row, logits in zip(self.going.tolist(), loop.read_out(self.hidden), strict=True):
                self.logits[row] = logits
        return torch.stack([logits.float() for logits in self.logits if logits is not None])

    def _at(self, place: int, stop: int) -> None:
        """Ask at a stop, and let those leave that may."""
        loop, found = self.loop, dict[int, Tensor]()
        having = np.array([stop in rung.stops for rung in loop.contender.rungs])[self.rungs]
        for rung, driver in self.drivers.items():
            own = self.going[((self.rungs == rung) & having & ~self.free)[self.going]]
            if not len(own) or not self._asks(place, len(own)):
                continue
            among = torch.from_numpy(np.searchsorted(self.going, own)).to(self.hidden.device)
            hidden, before = self.hidden[among], self.before[among]
            self.asked[place] += len(own)
            leaving = np.flatnonzero(driver.at(stop, hidden, before, own)[own])
            if len(leaving):
                logits = driver.logits(stop, hidden, torch.from_numpy(leaving).to(hidden.device))
                found |= zip(own[leaving].tolist(), logits, strict=True)
                self.free[own[leaving]] = True
        wants = (self.free & having)[self.going]
        if wants.any() and self._leaves(place, int(wants.sum())):
            self._leave(place, stop, wants, found)

    def _asks(self, place: int, rows: int) -> bool:
        prices = self.loop.prices
        return prices is None or bool(prices.asks(self.loop.rule, place, np.array(rows)))

    def _leaves(self, place: int, leaving: int) -> bool:
        prices, left = self.loop.prices, len(self.going)
        if prices is None:
            return self.loop.rule == "gain" or leaving == left
        rows, out, gone = (np.array([count]) for count in (left, leaving, self.count - left))
        at = Places.of_contexts(prices.contexts, self.context)
        return bool(prices.leave(self.loop.rule, place, rows, out, gone, at)[0])

    def _leave(self, place: int, stop: int, wants: NDArray[np.bool_], found: Mapping[int, Tensor]) -> None:
        going, stays = (np.flatnonzero(mask) for mask in (wants, ~wants))
        for among, row in zip(going.tolist(), self.going[going].tolist(), strict=True):
            state = self.hidden[among : among + 1]
            self.states[row] = state[0]
            # One that was let go at an earlier stop is read out here.
            reader = self.loop.readers[int(self.rungs[row])]
            self.logits[row] = found[row] if row in found else reader.logits(stop, state)[0]
        self.left[place] += len(going)
        self.exits[self.going[going]] = stop
        self.hidden = self.hidden[torch.from_numpy(stays).to(self.hidden.device)]
        self.going = self.going[stays]
        self._view()


def _of_rows(calls: list[LayerCall], rows: Tensor, count: int) -> list[LayerCall]:
    """What layers are called with, of some of `count` rows; what several share is selected once."""
    if len(rows) == count:
        return calls
    known: dict[int, Any] = {}

    def chosen(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(chosen, value))
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != count:
            return value
        if id(value) not in known:
            known[id(value)] = value[rows]
        return known[id(value)]

    return [call.changed(chosen) for call in calls]
