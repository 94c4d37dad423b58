"""The decoder's own reading of exits, as it is timed: every kind of probe, with random weights."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.costs.probes import ProbeSizes, timed_map_layers
from offramp.costs.timings import LENS, MAPS
from offramp.decoding.engine.engine import DeviceClock, Engine, Moment
from offramp.decoding.exit_readout.facts import rows_of
from offramp.decoding.exit_readout.reader import ExitReader, FactValues
from offramp.decoding.strategies.propagate import StateMaps
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.parts import Classifier, ExitMaps, ExitReading, Lens, Weights
from offramp.models.model import Model
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows
from offramp.policies.signals import OPENING_FACT

FACTS: Mapping[str, str] = {
    "full head": "margin",
    "restricted head": "restricted_margin",
    "candidates": "candidate_score",
    "cosine": "hidden_cosine_to_previous",
    "classifier": "correctness",
    "network": "correctness_network",
}
"""The fact that is read to time a kind of probe."""

# Exits with heads of their own, which lie apart in memory as a decoder's do; more would only take room.
MOST_EXITS = 8
CANDIDATES, CHOICE = "candidates", "choice of candidates"
OF_COLUMNS = ("restricted head", CANDIDATES)


def probe_sizes(model: Model) -> ProbeSizes:
    """The usual sizes, cut where the model has fewer tokens."""
    usual, vocabulary = ProbeSizes(), model.shape.vocabulary_size
    return ProbeSizes(
        shortlist=min(usual.shortlist, vocabulary),
        hidden=usual.hidden,
        candidates=min(usual.candidates, vocabulary),
        map_rank=min(usual.map_rank, model.shape.hidden_size),
    )


class _Stays(Decider):
    """Compares what it is given, and never leaves."""

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        leaving = np.zeros(self.streams, dtype=np.bool_)
        for values in facts.values():
            leaving |= np.asarray(values, dtype=np.float64) >= math.inf
        return leaving


@dataclass(frozen=True)
class Asks(ExitPolicy):
    """Asks for given facts at some exits and never lets a token leave: what probes are timed with."""

    kind: ClassVar[str] = "asks"
    asked: Mapping[int, tuple[str, ...]]

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The given facts by exit, ascending."""
        return dict(sorted(self.asked.items()))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that never lets a token leave."""
        return _Stays()


class Probing:
    """Readers with random heads at some exits, lens and K,V maps, ready to be placed anew in every step.

    exits: where probes can be placed, ascending, below L. kinds: of probe, the lens and the maps. clock: of
    the device that reads them.
    """

    def __init__(self, model: Model, engine: Engine, sizes: ProbeSizes) -> None:
        layers = engine.layers
        spread = np.linspace(max(layers // 4, 1), max(layers - 1, 1), MOST_EXITS).round()
        self.exits = tuple(sorted({int(exit) for exit in spread if exit < layers}))
        linear = engine.stack.readout_kind == "fast" and engine.stack.head_weight is not None
        kinds = [kind for kind in FACTS if linear or kind not in OF_COLUMNS]
        if len(self.exits) < 2 and CANDIDATES in kinds:
            kinds.remove(CANDIDATES)  # chosen at one exit and looked at again at a later one
        self.kinds = (*kinds, LENS, MAPS) if self.exits else ()
        heads = _random_heads(model, self.exits, sizes)
        self.reader = ExitReader(
            engine,
            heads,
            dict.fromkeys(self.exits, tuple(FACTS[kind] for kind in kinds if kind != CANDIDATES)),
        )
        self.candidates = self.reader
        if CANDIDATES in kinds:
            later = dict.fromkeys(self.exits[1:], (FACTS[CANDIDATES],))
            self.candidates = ExitReader(engine, heads, {self.exits[0]: (OPENING_FACT,), **later})
        device, lens = engine.stack.device, _random_lens(model, len(self.exits))
        self.clock = DeviceClock(device)
        lenses = {exit: ExitReading(lens.at(place, device)) for place, exit in enumerate(self.exits)}
        maps = {exit: _maps_of(model, exit, sizes) for exit in self.exits}
        self.alone: Mapping[str, Mapping[int, Callable[[Tensor], object]]] = {LENS: lenses, MAPS: maps}
        self.position_axis = engine.stack.position_axis

    def draw(self, source: random.Random, waiting: list[str]) -> dict[int, str]:
        """Kinds by exit for one step, each at an exit drawn anew.

        waiting: kinds that have not had their turn yet, refilled when it is empty.
        """
        places, kinds = len(self.exits), list[str]()
        while len(kinds) < min(len(self.kinds), places):
            if not waiting:
                waiting.extend(source.sample(self.kinds, k=len(self.kinds)))
            if (waiting[-1] == CANDIDATES and len(kinds) + 2 > places) or waiting[-1] in kinds:
                break
            kinds.append(waiting.pop())
            places -= kinds[-1] == CANDIDATES  # the first exit is where they are chosen
        exits = self.exits[1:] if CANDIDATES in kinds else self.exits
        placed = dict(zip(source.sample(exits, k=len(kinds)), kinds, strict=True))
        return {self.exits[0]: CHOICE, **placed} if CANDIDATES in kinds else placed

    @staticmethod
    def asks(kinds: Mapping[int, str]) -> Asks:
        """What asks for kinds by exit; in the place of lens and maps for something whose time is not kept."""
        return Asks({exit: (FACTS.get(kind, OPENING_FACT),) for exit, kind in sorted(kinds.items())})


class PlacedReader:
    """Reads as `ExitReader` does, candidates by a reader of their own, lens and maps alone.

    kinds: of probe by exit, as `Probing.draw` gives them.
    """

    def __init__(self, probing: Probing, kinds: Mapping[int, str]) -> None:
        self._probing = probing
        self._kinds = kinds
        self._alone: dict[str, tuple[Moment, Moment]] = {}

    @property
    def seconds_alone(self) -> dict[str, float]:
        """Of lens and maps in this step, as far as they had a turn."""
        return {kind: self._probing.clock.seconds(*moments) for kind, moments in self._alone.items()}

    def begin(self) -> None:
        """A new token."""
        self._probing.reader.begin()
        self._probing.candidates.begin()

    def wants_before(self, exit: int) -> bool:
        """Whether a cosine is read there."""
        return self._kinds.get(exit) == "cosine"

    def read(self, exit: int, facts: tuple[str, ...], hidden: Tensor, before: Tensor | None) -> FactValues:
        """The fact that was placed at this exit."""
        kind, probing = self._kinds[exit], self._probing
        if kind in probing.alone:
            rows = rows_of(hidden, probing.position_axis)
            began = probing.clock.moment()
            probing.alone[kind][exit](rows)
            self._alone[kind] = (began, probing.clock.moment())
            return {fact: np.zeros(len(rows), np.float32) for fact in facts}
        reader = probing.candidates if kind in (CANDIDATES, CHOICE) else probing.reader
        return reader.read(exit, facts, hidden, before)

    def logits(self, exit: int, hidden: Tensor) -> Tensor:
        """The exit's own logits, without a lens."""
        return self._probing.reader.logits(exit, hidden)

    def final(
        self, facts: tuple[str, ...], logits: Tensor, hidden: Tensor, before: Tensor | None
    ) -> FactValues:
        """Nothing is asked at L."""
        return {}

    def keep_rows(self, rows: NDArray[np.int64]) -> None:
        """No row ever leaves alone."""
        self._probing.reader.keep_rows(rows)


def _random_heads(model: Model, exits: tuple[int, ...], sizes: ProbeSizes) -> ExitHeads:
    width = model.shape.hidden_size
    inputs = {"correctness": (width, 0), "correctness_network": (width, sizes.hidden),
              "candidate_score": (3 * sizes.candidates, sizes.hidden)}  # fmt: skip
    return ExitHeads(
        model={"name": model.name},
        exits=exits,
        lens=None,
        classifiers={
            fact: _random_classifier(len(exits), features, hidden)
            for fact, (features, hidden) in inputs.items()
        },
        shortlist=None,
        candidate_exit=exits[0] if exits else None,
        documents={},
    )


def _random_classifier(exits: int, features: int, hidden: int) -> Classifier[Weights]:
    widths = (features, hidden, 1) if hidden else (features, 1)
    pairs = list(itertools.pairwise(widths))
    return Classifier(
        mean=_random(exits, features),
        scale=np.ones((exits, features), np.float32),
        weights=tuple(_random(exits, before, after) for before, after in pairs),
        biases=tuple(_random(exits, after) for _, after in pairs),
        auroc=np.full(exits, math.nan),
        base_rate=np.full(exits, 0.5),
        better_than_chance=np.ones(exits, np.bool_),
    )


def _random_lens(model: Model, exits: int) -> Lens[Weights]:
    width = model.shape.hidden_size
    return Lens(weight=_random(exits, width, width), bias=_random(exits, width))


def _maps_of(model: Model, exit: int, sizes: ProbeSizes) -> Callable[[Tensor], object]:
    """What maps states of an exit to as many layers as are timed, whichever exit it is."""
    width, layers = model.shape.hidden_size, timed_map_layers(model.shape)
    rank = min(sizes.map_rank, width)
    maps = ExitMaps(
        centre=_random(width),
        bias=_random(layers, width),
        explained=np.zeros((rank, layers)),
        penalty=0.0,
        inward=_random(rank, width),
        outward=_random(layers, width, rank),
    )
    found = StateMaps(KeyValueMaps({exit: maps}), exit + 1 + layers, model.stack.device)
    return partial(found.inputs_after, exit)


def _random(*shape: int) -> NDArray[np.float32]:
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(*shape, generator=generator, device="cpu")
    scaled: NDArray[Any] = (drawn / math.sqrt(shape[-1])).numpy()
    return scaled.astype(np.float32)
