"""Timed steps of the decoder's own loop, on sequences whose cache is filled, and the probes in them."""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.costs.probes import ProbeSizes, timed_map_layers
from offramp.costs.timings import LENS, MAPS
from offramp.decoding.engine.engine import DeviceClock, Engine, Meter, Moment
from offramp.decoding.exit_readout.exit_facts import rows_of
from offramp.decoding.exit_readout.reader import ExitReader, FactValues, Reader
from offramp.decoding.generation.loop import Loop, Plan
from offramp.decoding.generation.transcript import Transcript
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.mapped import StateMaps
from offramp.decoding.strategies.next_token import Advance, Chooser
from offramp.decoding.strategies.propagate import ExitStep, Propagate, choose, exit_logits, feed, run_to
from offramp.decoding.strategies.strategy import Gear, Strategy
from offramp.errors import ModelError
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.parts import Classifier, ExitMaps, ExitReading, Lens, Weights
from offramp.models.calls import UNFIT_ERRORS, held_tensors
from offramp.models.devices import synchronise
from offramp.models.model import Model
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows
from offramp.policies.signals import OPENING_FACT


@dataclass
class Stream:
    """`batch` sequences that a model decodes greedily, all of one length; see `LoopSteps` for their steps."""

    model: Model
    keyword: str
    """Under which the model takes it and returns it."""
    cache: Any
    """transformers' own, after `length` tokens."""
    tokens: Tensor
    """int64 [batch, 1], the next ones to be fed."""
    length: int

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return len(self.tokens)


@contextmanager
def failing_clearly(model: Model, position: int) -> Iterator[None]:
    """Errors of a model that decodes at some position as ModelError."""
    try:
        yield
    except UNFIT_ERRORS as error:
        raise ModelError(
            f"decoding at position {position} fails: {type(error).__name__}: {error}",
            where=model.name,
            fix="judge the model on a roofline profile instead: offramp list hardware",
        ) from error


def prompt_ids(model: Model, batch: int, length: int) -> Tensor:
    """Random tokens, the same at every call: int64 [batch, length]."""
    generator = torch.Generator("cpu").manual_seed(length)
    shape = (batch, length)
    ids = torch.randint(model.shape.vocabulary_size, shape, generator=generator, device="cpu")
    return ids.to(model.stack.device)


def prefill(model: Model, keyword: str, batch: int, length: int) -> Stream:
    """A stream whose cache holds `length` random tokens.

    Raises ModelError if the model cannot read so many.
    """
    with torch.no_grad(), failing_clearly(model, length):
        output = model.hf(input_ids=prompt_ids(model, batch, length), use_cache=True)
    return Stream(model, keyword, output[keyword], output.logits[:, -1].argmax(-1, keepdim=True), length)


def widen(stream: Stream, batch: int) -> Stream:
    """`batch` sequences with the past of a stream of one, each with another next token.

    A cache that cannot be repeated is filled anew.
    """
    cache = copy.deepcopy(stream.cache)
    tokens = prompt_ids(stream.model, batch, 1)
    if batch > 1:
        try:
            cache.batch_repeat_interleave(batch)
            whole = all(len(tensor) == batch for tensor in held_tensors(nn.Module(), [cache]))
        except UNFIT_ERRORS:
            whole = False
        if not whole:
            return prefill(stream.model, stream.keyword, batch, stream.length)
    return Stream(stream.model, stream.keyword, cache, tokens, stream.length)


LAYERS, REPAIR, PROBES, HEADS = "layers", "K,V repair", "probes", "heads"


WHOLE, PLAIN, PROBED = "whole", "plain", "probed"


@dataclass(frozen=True)
class KindOfStep:
    """whole, plain, probed, or cut: layers from `cut_from` on (0 = the first) run only until their K and V.

    Whole steps are plain ones without a clock inside them.
    """

    name: str
    cut_from: int | None = None


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of one decoding step, timed while it ran."""

    position: int
    """Of the decoded token (0 = first)."""
    layers: tuple[float, ...]
    """One entry per layer executed, in order; none of a step that was timed only as a whole."""
    head: float
    """From the last layer's end to the chosen token."""
    probes: Mapping[str, float]
    """By name."""
    whole: float
    """The step from its token to the next."""
    cut: frozenset[int] = frozenset()
    """The layers (0 = the first) that only left their K and V."""

    @property
    def unprobed(self) -> float:
        """The step without its probes."""
        return self.whole - sum(self.probes.values())

    @property
    def overhead(self) -> float:
        """What is left of the step: embedding, masks, positions, and the program around the layers."""
        return self.unprobed - sum(self.layers) - self.head


class StepMeter(Meter):
    """Times one step of the decoder's own loop.

    left: the layers (1 = the first) of which only K and V were left behind.
    """

    def __init__(self, clock: DeviceClock) -> None:
        super().__init__(timing=True, clock=clock)
        self.left: set[int] = set()
        self._layers: list[tuple[int, Moment, Moment]] = []
        self._probes: list[tuple[int, Moment, Moment]] = []
        self._open: tuple[int, Moment] | None = None
        self._exit = 0

    @property
    def by_layer(self) -> dict[int, float]:
        """Seconds of each layer (1 = the first), run or only its K and V left behind."""
        return self._sums(self._layers)

    @property
    def by_exit(self) -> dict[int, float]:
        """Seconds of the probe at each exit, until the host has decided by what was read."""
        return self._sums(self._probes)

    def _sums(self, noted: Sequence[tuple[int, Moment, Moment]]) -> dict[int, float]:
        found: dict[int, float] = {}
        for place, sooner, later in noted:
            found[place] = found.get(place, 0.0) + self.clock.seconds(sooner, later)
        return found

    def count(self, part: str, place: int = 0, rows: int = 1, probe: str = "") -> None:
        """Something begins that runs once for so many rows (a probe has just ended)."""
        super().count(part, place, rows, probe)
        if part in ("layers", "K,V projection"):
            now = self.clock.moment()
            self._close(now)
            self._open = (place, now)
            if part == "K,V projection":
                self.left.add(place)
        elif part == "probe":
            self._exit = place

    def lap(self, part: str) -> None:
        """What ran since the last lap belongs to this part of time, and to the place that was counted."""
        before = self._last
        super().lap(part)
        if part in (LAYERS, REPAIR):
            self._close(self._last)
        elif part == PROBES and self._exit:
            self._probes.append((self._exit, before, self._last))
            self._exit = 0

    def _close(self, now: Moment) -> None:
        if self._open is not None:
            self._layers.append((*self._open, now))
            self._open = None


class LoopSteps:
    """Advances streams by single steps of the loop that policies decode with, `Loop.step`.

    cuttable: layers (0 = the first) that leave something behind when they are skipped, none if the family
    cannot do it.

    A plain step is the strategy's own, with nothing asked; a probed one is asked at some exits, where nobody
    ever leaves; a cut one runs the first layers, reads their exit, and leaves K and V in the others.
    """

    def __init__(self, model: Model, engine: Engine, sizes: ProbeSizes) -> None:
        self.model = model
        self.engine = engine
        self.probing = Probing(model, engine, sizes)
        able = engine.abilities.reason("propagate") is None
        self.cuttable = frozenset(index for index, state in enumerate(engine.kept) if state.entries and able)

    def run(
        self, stream: Stream, kind: KindOfStep, probes: Mapping[int, str] = MappingProxyType({})
    ) -> StepTimes:
        """One step. probes: kinds of probe by exit, as `Probing.draw` gives them.

        Raises ModelError if the model fails.
        """
        clock, position = self.probing.clock, stream.length
        meter = Meter() if kind.name == WHOLE else StepMeter(clock)
        reader = PlacedReader(self.probing, probes)
        loop = self._loop_after(stream, self.probing.asks(probes), reader, meter)
        gear = loop.gear({})
        strategy = Propagate(gear) if kind.cut_from is None else _Cut(gear, exit=kind.cut_from)
        whole = self._advance(stream, loop, strategy)
        if not isinstance(meter, StepMeter):
            return StepTimes(position, (), 0.0, {}, whole)
        by_layer, by_exit = meter.by_layer, meter.by_exit
        asked = {kind: by_exit[exit] for exit, kind in probes.items() if kind != CHOICE}
        return StepTimes(
            position=position,
            layers=tuple(by_layer.get(layer, 0.0) for layer in range(1, self.engine.layers + 1)),
            head=meter.seconds[HEADS],
            # Those of lens and maps are without what was asked in their place.
            probes=asked | reader.seconds_alone,
            whole=whole,
            cut=frozenset(layer - 1 for layer in meter.left),
        )

    def _loop_after(self, stream: Stream, policy: ExitPolicy, reader: Reader, meter: Meter) -> Loop:
        """The decoder's loop with a policy, K and V propagated, as if it had decoded what a stream holds.

        It stops at no token; its steps move the stream's cache, and nothing else of the stream.
        """
        plan = Plan(
            engine=self.engine,
            options=DecodingOptions(policy),
            reader=reader,
            limit=1,
            end_tokens=frozenset(),
            decode=lambda tokens: "",
        )
        # Only the tokens that are fed now are looked up.
        past = torch.zeros((stream.batch, stream.length), dtype=torch.long, device=stream.tokens.device)
        answers = Transcript(past, stops=_never, pad=None, streamer=None, keep_scores=False)
        loop = Loop(plan, answers, None, Chooser(_unchanged, prompt=stream.length), meter)
        answers.ids = torch.cat([past, stream.tokens], 1)
        loop.sequences.cache = stream.cache
        loop.sequences.lengths = [stream.length] * self.engine.layers
        return loop

    def _advance(self, stream: Stream, loop: Loop, strategy: Strategy) -> float:
        """Seconds of one step, which the stream then has made."""
        with failing_clearly(self.model, stream.length):
            synchronise(stream.tokens.device)
            began = time.perf_counter()
            loop.meter.start()
            loop.step(strategy)
            synchronise(stream.tokens.device)
            ended = time.perf_counter()
        stream.cache, stream.tokens = loop.sequences.cache, loop.answers.last
        stream.length += 1
        return ended - began


class _Cut(Propagate):
    """A step in which every row leaves at one exit, unasked; exit 0: before the first layer."""

    def __init__(self, gear: Gear, exit: int) -> None:
        super().__init__(gear)
        self.exit = exit

    def advance(self, tokens: Tensor) -> Advance:
        """Run the layers up to the exit, read it, and leave K and V in all others."""
        gear = self.gear
        inputs = feed(gear, tokens)
        _, hidden = run_to(gear, inputs.hidden, inputs, 0, self.exit)
        logits = exit_logits(gear, ExitStep(self.exit, hidden, None, inputs))
        gear.sequences.write(hidden, inputs, self.exit, gear.engine.layers)
        return choose(gear, logits, self.exit)


def _unchanged(ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def _never(ids: Tensor, scores: object) -> Tensor:
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


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
