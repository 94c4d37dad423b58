"""One measurement of a machine: streams of several batch sizes and positions that take turns."""

from __future__ import annotations

import random
from dataclasses import dataclass

from offramp.costs.probes import ProbeSizes
from offramp.decoding.engine.build import engine_of
from offramp.decoding.loop_steps import LoopSteps
from offramp.decoding.stopwatch import Probe, StepTimes, Stopwatch
from offramp.decoding.stream import Stream, cache_keyword, prefill, widen
from offramp.decoding.timed_probes import build_probes, probe_sizes
from offramp.decoding.timing_tables import PLAIN, PROBED, WHOLE, Samples
from offramp.errors import ModelError
from offramp.models.model import Model

# One sequence is what most decoding runs: its times are to be the surest.
TURNS_OF_THE_FEWEST = 3
# Steps of one cache before it is filled anew, so that its position stays near the one asked for.
GROWTH = 128


@dataclass(frozen=True)
class KindOfStep:
    """whole, plain, probed, or cut: layers from `cut_from` on (0 = the first) run only until their K and V.

    Whole steps are plain ones without a clock inside them.
    """

    name: str
    cut_from: int | None = None


class Session:
    """The streams of one measurement and the samples taken so far.

    loop: the decoder's own steps, None where it cannot run this model (`why_no_loop`): steps are then those
    of the model's own forward pass, and none is cut. probed_layers: after which layers (0 = the first) probes
    may run then: the middle ones.
    """

    def __init__(self, model: Model, batches: tuple[int, ...], positions: tuple[int, int]) -> None:
        self.model = model
        self.batches = batches
        self.positions = positions
        self.keyword = cache_keyword(model)
        self.stopwatch = Stopwatch(model.stack)
        self.sizes = probe_sizes(model)
        self.loop, self.why_no_loop = _decoder_steps(model, self.sizes)
        self.probes = {} if self.loop is not None else build_probes(model, self.sizes)
        self.probed_layers = range(model.layers // 4, max(model.layers - 1, model.layers // 4 + 1))
        self.random = random.Random(0)
        self.waiting: dict[int, list[str]] = {}
        self.rounds = 0
        self.samples = Samples(model.shape, batches, positions)
        self.singles = {position: prefill(model, self.keyword, 1, position) for position in positions}
        self.streams = {
            (batch, position): widen(self.singles[position], batch)
            for batch in batches
            for position in positions
        }
        self.cuttable = frozenset() if self.loop is None else self.loop.cuttable

    @property
    def kinds_of_probe(self) -> tuple[str, ...]:
        """What probed steps time, the lens included."""
        return tuple(self.probes) if self.loop is None else self.loop.probing.kinds

    def kinds(self) -> list[KindOfStep]:
        """The kinds of step of one round."""
        cuts = sorted({0, self.model.layers // 2}) if self.cuttable else []
        names = (WHOLE, PLAIN, PROBED)
        return [*map(KindOfStep, names), *[KindOfStep(f"cut {cut}", cut) for cut in cuts]]

    def warm_up(self) -> None:
        """One probed step of every stream, not kept."""
        for key in self.streams:
            self._run(self._fresh(key), KindOfStep(PROBED))

    def round(self) -> None:
        """Steps of every kind at every batch size, in random order.

        Several sequences cut layers at one of the positions only, which take turns.
        """
        turns = [
            (key, kind)
            for key in self.streams
            for kind in self.kinds()
            for _ in range(self._turns(*key, kind))
        ]
        self.random.shuffle(turns)
        for (batch, position), kind in turns:
            times, cut = self._run(self._fresh((batch, position)), kind)
            self.samples.add(batch, position, kind.name, times, cut)
        self.rounds += 1

    def _turns(self, batch: int, position: int, kind: KindOfStep) -> int:
        """How often a kind of step has its turn in this round."""
        if batch == self.batches[0]:
            return TURNS_OF_THE_FEWEST
        return int(kind.cut_from is None or self.positions[self.rounds % 2] == position)

    def _run(self, stream: Stream, kind: KindOfStep) -> tuple[StepTimes, frozenset[int]]:
        """One step, and which of its layers (0 = the first) were cut."""
        if kind.name == WHOLE:
            return (stream.whole_step() if self.loop is None else self.loop.whole(stream)), frozenset()
        if self.loop is not None:
            waiting = self.waiting.setdefault(stream.batch, [])
            kinds = self.loop.probing.draw(self.random, waiting) if kind.name == PROBED else {}
            return self.loop.run(stream, cut_from=kind.cut_from, kinds=kinds)
        stopwatch = self.stopwatch
        stopwatch.start(self._placed_probes(stream.batch) if kind.name == PROBED else None)
        with stopwatch.attached():
            return stream.step(stopwatch), frozenset()

    def _fresh(self, key: tuple[int, int]) -> Stream:
        """The stream, filled anew if it grew too far from its position or has no room left."""
        batch, position = key
        end = position + GROWTH
        if self.model.context_length is not None:
            end = min(end, self.model.context_length)
        if self.streams[key].length >= end:
            self.streams[key] = widen(self.singles[position], batch)
        return self.streams[key]

    def _placed_probes(self, batch: int) -> dict[int, tuple[str, Probe]]:
        """Each probe after another layer, drawn anew; in a model of few layers they take turns."""
        waiting = self.waiting.setdefault(batch, [])
        names: list[str] = []
        while len(names) < min(len(self.probes), len(self.probed_layers)):
            if not waiting:
                waiting.extend(self.random.sample(sorted(self.probes), k=len(self.probes)))
            name = waiting.pop()
            if name not in names:
                names.append(name)
        places = self.random.sample(self.probed_layers, k=len(names))
        return {place: (name, self.probes[name]) for place, name in zip(places, names, strict=True)}


def _decoder_steps(model: Model, sizes: ProbeSizes) -> tuple[LoopSteps | None, str | None]:
    """Steps of the decoder's own loop, or why it cannot run this model."""
    try:
        engine = engine_of(model)
    except ModelError as error:
        return None, error.what
    reason = engine.abilities.never_exit
    return (None, reason) if reason else (LoopSteps(model, engine, sizes), None)
