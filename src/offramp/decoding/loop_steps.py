"""Single steps of the decoder's own loop, timed: what a policy's decoding is made of."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from offramp.costs.probes import ProbeSizes
from offramp.decoding.engine.engine import Engine
from offramp.decoding.engine.meter import Meter
from offramp.decoding.generation.answers import Answers
from offramp.decoding.generation.choosing import Chooser
from offramp.decoding.generation.loop import Loop, Plan
from offramp.decoding.loop_probes import CHOICE, PlacedReader, Probing
from offramp.decoding.options import DecodingOptions
from offramp.decoding.reading.reader import Reader
from offramp.decoding.step_meter import HEADS, StepMeter
from offramp.decoding.stopwatch import StepTimes
from offramp.decoding.strategies.descent import Landing, choose, feed, land, run_to
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.strategy import Advance, Strategy, Work
from offramp.decoding.stream import Stream, failing_clearly
from offramp.models.model import Model
from offramp.policies.policy import ExitPolicy


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
        able = engine.abilities.propagate is None
        self.cuttable = frozenset(index for index, keeps in enumerate(engine.keeps) if keeps and able)

    def whole(self, stream: Stream) -> StepTimes:
        """One plain step without a clock inside it, as generation makes them. Raises ModelError as `run`."""
        loop = self._loop(stream, Meter(), {}, PlacedReader(self.probing, {}))
        position = stream.length
        return StepTimes(position, (), 0.0, {}, self._advance(stream, loop, Propagate(loop.work({}))))

    def run(
        self, stream: Stream, *, cut_from: int | None = None, kinds: Mapping[int, str] | None = None
    ) -> tuple[StepTimes, frozenset[int]]:
        """One step, and which of its layers (0 = the first) only left their K and V.

        cut_from: layers from this one on (0 = the first). kinds: of probe by exit, as `Probing.draw` gives.

        Raises ModelError if the model fails.
        """
        kinds = {} if kinds is None else kinds
        meter, reader = StepMeter(), PlacedReader(self.probing, kinds)
        loop = self._loop(stream, meter, kinds, reader)
        work, position = loop.work({}), stream.length
        seconds = self._advance(
            stream, loop, Propagate(work) if cut_from is None else _Cut(work, exit=cut_from)
        )
        layers = self.engine.layers
        times = StepTimes(
            position=position,
            layers=tuple(meter.by_layer.get(layer, 0.0) for layer in range(1, layers + 1)),
            head=meter.seconds[HEADS],
            probes=_by_kind(kinds, meter, reader),
            whole=seconds,
        )
        return times, frozenset(layer - 1 for layer in meter.left)

    def _loop(self, stream: Stream, meter: Meter, kinds: Mapping[int, str], reader: PlacedReader) -> Loop:
        return loop_after(stream, self.engine, self.probing.asks(kinds), reader, meter)

    def _advance(self, stream: Stream, loop: Loop, strategy: Strategy) -> float:
        """Seconds of one step, which the stream then has made."""
        with failing_clearly(self.model, stream.length):
            began = time.perf_counter()
            loop.meter.start()
            loop.step(strategy)
            ended = time.perf_counter()
        stream.cache, stream.tokens = loop.sequences.cache, loop.answers.last
        stream.length += 1
        return ended - began


def loop_after(stream: Stream, engine: Engine, policy: ExitPolicy, reader: Reader, meter: Meter) -> Loop:
    """The decoder's loop with a policy, K and V propagated, as if it had decoded what a stream holds.

    It stops at no token; its steps move the stream's cache, and nothing else of the stream.
    """
    plan = Plan(
        engine=engine,
        options=DecodingOptions(policy),
        reader=reader,
        limit=1,
        end_tokens=frozenset(),
        decode=lambda tokens: "",
    )
    # Only the tokens that are fed now are looked up.
    past = torch.zeros((stream.batch, stream.length), dtype=torch.long, device=stream.tokens.device)
    answers = Answers(past, stops=_never, pad=None, streamer=None, keep_scores=False)
    loop = Loop(plan, answers, None, Chooser(_unchanged, prompt=stream.length), meter)
    answers.ids = torch.cat([past, stream.tokens], 1)
    loop.sequences.cache = stream.cache
    loop.sequences.lengths = [stream.length] * engine.layers
    return loop


class _Cut(Propagate):
    """A step in which every row leaves at one exit, unasked; exit 0: before the first layer."""

    def __init__(self, work: Work, exit: int) -> None:
        super().__init__(work)
        self.exit = exit

    def advance(self, tokens: Tensor) -> Advance:
        """Run the layers up to the exit, read it, and leave K and V in all others."""
        work = self.work
        inputs = feed(work, tokens)
        _, hidden = run_to(work, inputs.hidden, inputs, 0, self.exit)
        logits = land(work, Landing(self.exit, hidden, None, inputs))
        work.sequences.write(hidden, inputs, self.exit, work.engine.layers)
        return choose(work, logits, self.exit)


def _by_kind(kinds: Mapping[int, str], meter: StepMeter, reader: PlacedReader) -> dict[str, float]:
    """Seconds by kind of probe, those of lens and maps without what was asked in their place."""
    seconds = {kind: meter.by_exit[exit] for exit, kind in kinds.items() if kind != CHOICE}
    return seconds | reader.seconds_alone


def _unchanged(ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def _never(ids: Tensor, scores: object) -> Tensor:
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
