"""One measurement of a machine: streams of several batch sizes and positions that take turns."""

from __future__ import annotations

import random
from dataclasses import dataclass

from offramp.decoding.cut import cut_after_cache_update
from offramp.decoding.stopwatch import Probe, StepTimes, Stopwatch
from offramp.decoding.stream import Stream, cache_keyword, prefill, widen
from offramp.decoding.timed_probes import build_probes, probe_sizes
from offramp.decoding.timing_tables import PLAIN, PROBED, Samples
from offramp.errors import ModelError
from offramp.models.model import Model

# Steps of one cache before it is filled anew, so that its position stays near the one asked for.
GROWTH = 128


@dataclass(frozen=True)
class KindOfStep:
    """plain, probed, or cut: layers from `cut_from` on (0 = the first) run only until their K and V."""

    name: str
    cut_from: int | None = None


class Session:
    """The streams of one measurement and the samples taken so far.

    probed_layers: after which layers (0 = the first) probes may run: the middle ones.
    """

    def __init__(self, model: Model, batches: tuple[int, ...], positions: tuple[int, int]) -> None:
        self.model = model
        self.batches = batches
        self.positions = positions
        self.keyword = cache_keyword(model)
        self.stopwatch = Stopwatch(model.stack)
        self.sizes = probe_sizes(model)
        self.probes = build_probes(model, self.sizes)
        self.probed_layers = range(model.layers // 4, max(model.layers - 1, model.layers // 4 + 1))
        self.random = random.Random(0)
        self.waiting: dict[int, list[str]] = {}
        self.samples = Samples(model.shape, batches, positions)
        self.singles = {position: prefill(model, self.keyword, 1, position) for position in positions}
        self.streams = {
            (batch, position): widen(self.singles[position], batch)
            for batch in batches
            for position in positions
        }
        self.cuttable = self._find_cuttable()

    def _find_cuttable(self) -> frozenset[int]:
        """Attention layers that can stop after their K and V, none if the model fails after such a step.

        A family that keeps something beside K and V in its cache (an indexer's keys, say) would miss it.
        """
        self.cuttable = frozenset(
            index
            for index, layer in enumerate(self.model.shape.layers)
            if layer.key_value_width and layer.kind not in ("recurrent", "hybrid")
        )
        trial = widen(self.singles[self.positions[0]], 1)
        if not hasattr(trial.cache, "update"):
            return frozenset()
        try:
            for kind in (KindOfStep("cut", 0), KindOfStep(PLAIN), KindOfStep("cut", 0), KindOfStep(PLAIN)):
                self._run(trial, kind)
        except ModelError:
            return frozenset()
        return self.cuttable

    def kinds(self) -> list[KindOfStep]:
        """The kinds of step of one round."""
        cuts = sorted({0, self.model.layers // 2}) if self.cuttable else []
        return [KindOfStep(PLAIN), KindOfStep(PROBED), *[KindOfStep(f"cut {cut}", cut) for cut in cuts]]

    def warm_up(self) -> None:
        """One probed step of every stream, not kept."""
        for key in self.streams:
            self._run(self._fresh(key), KindOfStep(PROBED))

    def round(self) -> None:
        """One step of every kind in every stream, in random order."""
        turns = [(key, kind) for key in self.streams for kind in self.kinds()]
        self.random.shuffle(turns)
        for (batch, position), kind in turns:
            times, cut = self._run(self._fresh((batch, position)), kind)
            self.samples.add(batch, position, kind.name, times, cut)

    def _run(self, stream: Stream, kind: KindOfStep) -> tuple[StepTimes, frozenset[int]]:
        """One step, and which of its layers (0 = the first) were cut."""
        stopwatch = self.stopwatch
        stopwatch.start(self._placed_probes(stream.batch) if kind.name == PROBED else None)
        if kind.cut_from is None:
            with stopwatch.attached():
                return stream.step(stopwatch), frozenset()
        indices = {index for index in self.cuttable if index >= kind.cut_from}
        with (
            cut_after_cache_update(self.model.stack, stream.cache, indices, stopwatch) as cut,
            stopwatch.attached(),
        ):
            return stream.step(stopwatch), frozenset(cut)

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
