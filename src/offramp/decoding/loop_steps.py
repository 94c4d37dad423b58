"""Single steps of the decoder's own loop, timed: what a policy's decoding is made of."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from offramp.costs.probes import ProbeSizes
from offramp.decoding.engine.engine import Engine
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.generation.answers import Answers
from offramp.decoding.generation.asking import Asking
from offramp.decoding.generation.choosing import Chooser
from offramp.decoding.loop_probes import CHOICE, Asks, PlacedReader, Probing
from offramp.decoding.step_meter import HEADS, StepMeter
from offramp.decoding.stopwatch import StepTimes
from offramp.decoding.strategies.descent import Landing, choose, feed, land, run_to
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.strategy import Advance, Work
from offramp.decoding.stream import Stream, failing_clearly
from offramp.models.model import Model


class LoopSteps:
    """Advances streams by single steps of the loop that policies decode with.

    cuttable: layers (0 = the first) that leave something behind when they are skipped, none if the family
    cannot do it.

    A plain step is the strategy's own, with nothing asked; a probed one is asked at some exits, where nobody
    ever leaves; a cut one runs the first layers, reads their exit, and leaves K and V in the others.
    """

    def __init__(self, model: Model, engine: Engine, sizes: ProbeSizes) -> None:
        self.model = model
        self.engine = engine
        self.probing = Probing(model, engine, sizes)
        able = engine.abilities.propagate is None
        self.cuttable = frozenset(index for index, keeps in enumerate(engine.keeps) if keeps and able)

    @torch.no_grad()
    def run(
        self, stream: Stream, *, cut_from: int | None = None, kinds: Mapping[int, str] | None = None
    ) -> tuple[StepTimes, frozenset[int]]:
        """One step, and which of its layers (0 = the first) only left their K and V.

        cut_from: layers from this one on (0 = the first). kinds: of probe by exit, as `Probing.draw` gives.

        Raises ModelError if the model fails.
        """
        kinds = {} if kinds is None else kinds
        meter, reader = StepMeter(), PlacedReader(self.probing, kinds)
        work = self._work(stream, meter, reader, self.probing.asks(kinds))
        ids = torch.cat([work.sequences.ids, stream.tokens], 1)
        answers = Answers(ids, stops=_never, pad=0, streamer=None, keep_scores=False)
        strategy = Propagate(work)
        with failing_clearly(self.model, stream.length):
            began = time.perf_counter()
            meter.start()
            if cut_from is None:
                advance = strategy.advance(answers.last)
            else:
                advance = self._cut(work, answers.last, cut_from)
            answers.add(advance.tokens, advance.chosen, advance.exits, advance.scores)
            ended = time.perf_counter()
        layers = self.engine.layers
        times = StepTimes(
            position=stream.length,
            layers=tuple(meter.by_layer.get(layer, 0.0) for layer in range(1, layers + 1)),
            head=meter.seconds[HEADS],
            probes=_by_kind(kinds, meter, reader),
            whole=ended - began,
        )
        stream.cache, stream.tokens = work.sequences.cache, answers.last
        stream.length += 1
        return times, frozenset(layer - 1 for layer in meter.left)

    def _work(self, stream: Stream, meter: StepMeter, reader: PlacedReader, asks: Asks) -> Work:
        # Only the tokens that are fed now are looked up.
        ids = torch.zeros((stream.batch, stream.length), dtype=torch.long, device=stream.tokens.device)
        sequences = Sequences(self.engine, ids, None, meter)
        sequences.cache = stream.cache
        sequences.lengths = [stream.length] * self.engine.layers
        return Work(
            engine=self.engine,
            sequences=sequences,
            asking=Asking(asks, self.engine.layers, stream.batch, reader, meter),
            chooser=Chooser(_unchanged, prompt=stream.length),
            meter=meter,
            tokens=lambda: sequences.ids,
        )

    def _cut(self, work: Work, tokens: Tensor, exit: int) -> Advance:
        """What a token that leaves at an exit makes the loop do; exit 0: before the first layer."""
        inputs = feed(work, tokens)
        _, hidden = run_to(work, inputs.hidden, inputs, 0, exit)
        logits = land(work, Landing(exit, hidden, None, inputs))
        work.sequences.write(hidden, inputs, exit, work.engine.layers)
        return choose(work, logits, exit)


def _by_kind(kinds: Mapping[int, str], meter: StepMeter, reader: PlacedReader) -> dict[str, float]:
    """Seconds by kind of probe, those of lens and maps without what was asked in their place."""
    seconds = {kind: meter.by_exit[exit] for exit, kind in kinds.items() if kind != CHOICE}
    return seconds | reader.seconds_alone


def _unchanged(ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def _never(ids: Tensor, scores: object) -> Tensor:
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
