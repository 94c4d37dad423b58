"""Servers side by side: their steps in turns, each on a clock of its own that only its own steps move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from offramp.commands import loadable_name
from offramp.costs.counting import is_recurrent
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine
from offramp.decoding.generation.generate import generate
from offramp.decoding.options import check_exits
from offramp.decoding.rerun.trace_sequences import TracedSequence, require_model, traced_sequences
from offramp.errors import InputError, ModelError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads
from offramp.models.model import Model
from offramp.policies.binding import require_heads
from offramp.serving.batching import BatchedRequests, require_batching
from offramp.serving.contenders import PLAIN, LoadContender, admitted, contenders_of
from offramp.serving.loop import ServedLoop, StepLog
from offramp.serving.predict import (
    LoadSetting,
    at_once,
    is_trace,
    mean_of,
    pieces,
    points_at,
    rates_for,
    ratio_over_seeds,
    result_of,
    said,
    trace_of,
)
from offramp.serving.prices import StepPrices
from offramp.serving.request import Load
from offramp.serving.results import LoadExecution, LoadPoint, LoadResult, ServedAside
from offramp.serving.served_prices import FittedSteps, ServedSteps
from offramp.serving.simulator import Demand, ServedDemand, run_steps
from offramp.timing.defects import MachineLoad, describe
from offramp.tracing.facts import SIGNAL_FACTS
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace as traced

AGAIN = "plain, again"
LOADS = (0.3, 0.6, 0.85)
"""Of what the full model serves at most, at which is served where no rates are given."""
COMPARED = ("request_throughput", "mean_e2el", "p95_e2el", "p95_ttft", "p95_tpot")
CHANGED = ("mean_e2el", "p95_e2el")
"""Whose change is compared, too: the share that is saved of the best without exits."""
TRACED_TOKENS = 4096
"""Of a model that is traced first."""
PROFILED = 10_007
"""The first seed of the demands that steps are profiled on."""
TRIED_ROWS, TRIED_TOKENS = (1, 4, 8, 16), 8
"""Requests at once, and their tokens, with which our loop is held against transformers' own."""

Clock = Callable[[], float]


def clock_of(device: torch.device) -> tuple[str, Clock]:
    """What sees a device's work, and its name.

    With one thread of torch the processor time of this thread, so that nothing else counts; with several, or
    on an accelerator, no such clock sees the work, and it is the wall clock: turns share out what others do.
    """
    if device.type == "cpu":
        alone = torch.get_num_threads() == 1
        return ("the thread's processor", time.thread_time) if alone else ("the wall", time.perf_counter)

    def waited() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return "the wall", waited


class LoadServed(ServedDemand):
    """One server at work on a demand; nobody judges its tokens.

    loop: None for transformers' own. now: of its own clock; time in which nothing waits is skipped. seconds:
    of each step.
    """

    times: list[list[float]]

    def __init__(
        self,
        demand: Demand,
        prompts: Sequence[Sequence[int]],
        batch: BatchedRequests,
        loop: ServedLoop | None,
        clock: Clock,
    ) -> None:
        rung, layers = np.zeros((2, len(prompts)), dtype=np.int64)
        super().__init__(demand, [[] for _ in prompts], rung, layers, None)
        self.prompts, self.batch, self.loop, self.clock = prompts, batch, loop, clock
        self.seconds: list[float] = []

    @property
    def queue(self) -> int:
        """Requests that have arrived, and wait or are served."""
        return sum(len(self.times[place]) < self.demand.output[place] for place in range(self.come))

    @property
    def decoding(self) -> float:
        """Seconds of steps that only decode: once every request has its first token."""
        return self.now - max(times[0] for times in self.times)

    def run(self) -> Iterator[None]:
        """Serve; stops before each step."""
        while self.come < len(self.demand) or self.queue:
            for place in self.arriving():
                if self.loop is not None:
                    self.rung[place] = self.loop.rung[str(place)] = self.loop.contender.rung_at(self.queue)
                self.batch.add(str(place), list(self.prompts[place]), int(self.demand.output[place]))
            yield
            began = self.clock()
            speaking = self.batch.step(self.loop)
            took = self.clock() - began
            if speaking is None:
                self.now = max(self.now, float(self.demand.arrival[self.come]))
            else:
                self._passed(took, speaking)
        self.batch.close()

    def _passed(self, took: float, speaking: Sequence[str]) -> None:
        self.now, self.busy, self.steps = self.now + took, self.busy + took, self.steps + 1
        self.seconds.append(took)
        exits = iter(() if self.loop is None else self.loop.log[-1].exits)
        for place in map(int, speaking):
            if self.times[place]:
                self.layers[place] += next(exits, 0)
                self.row_steps += 1
            self.times[place].append(self.now)


def in_turns(servers: Mapping[str, LoadServed], seed: int) -> None:
    """Let servers serve, a step of one after a step of another, in random order."""
    draw = np.random.default_rng(seed)
    running = {name: server.run() for name, server in servers.items()}
    while running:
        name = list(running)[int(draw.integers(len(running)))]
        if next(running[name], running) is running:
            del running[name]


@dataclass(frozen=True)
class ServingPlace:
    """Where requests are served: the model, its traced texts, and what reads its exits."""

    setting: LoadSetting
    model: Model
    engine: Engine
    sequences: Sequence[TracedSequence]
    heads: ExitHeads | None
    clock_name: str
    clock: Clock

    def prompts(self, demand: Demand) -> list[list[int]]:
        """Stretches of traced texts, one for each request, behind the first token of what is in front."""
        found = []
        for text, length in zip(demand.text, demand.prompt.tolist(), strict=True):
            own = self.sequences[int(text[0] * len(self.sequences))]
            front, rest = own.ids[: own.first_row][:1], np.array(own.ids[own.first_row :])
            stretch = rest[(int(text[1] * len(rest)) + np.arange(length)) % len(rest)]
            found.append([*front, *stretch.tolist()][:length])
        return found

    def serve(
        self, demand: Demand, loops: Mapping[str, ServedLoop | None], seed: int = 0, rows: int | None = None
    ) -> dict[str, LoadServed]:
        """Let several serve a demand, in turns. rows: side by side at most, by default as was asked for.

        Requests of ours, such as those for a profile, are cut to the model's context.
        """
        if (most := self.model.context_length) is not None:
            output = np.minimum(demand.output, most - 1)
            demand = replace(demand, output=output, prompt=np.minimum(demand.prompt, most - output))
        prompts, tokens = self.prompts(demand), int((demand.prompt + demand.output).max())
        asked = self.setting.asked
        limits = {"rows": rows or asked.rows, "budget": rows or asked.budget}
        servers = {}
        for name, loop in loops.items():
            batch = BatchedRequests(self.engine.hf, tokens=tokens, **limits)
            servers[name] = LoadServed(demand, prompts, batch, loop, self.clock)
        in_turns(servers, seed)
        return servers

    def loop(self, contender: LoadContender, prices: StepPrices | None = None) -> ServedLoop:
        """The layers of a contender's steps."""
        return ServedLoop(self.engine, contender, self.heads, self.setting.asked.rule, prices)

    def some_demand(self, seed: int) -> Demand:
        """Requests of the lengths that were asked for, all there at once."""
        return at_once(self.setting.asked.demand(1.0, seed))

    def first(self, demand: Demand, count: int) -> Demand:
        """Its first requests alone."""
        return Demand(*(getattr(demand, name)[:count] for name in ("arrival", "prompt", "output", "text")))


def opened_place(asked: Load) -> tuple[ServingPlace, tuple[LoadContender, ...], Trace]:
    """Where what was asked for is served, who serves, and the trace that says where their tokens leave.

    Raises ModelError for a model, or a transformers, that cannot do it.
    """
    heads = None if asked.heads is None else read_heads(asked.heads)
    model, trace = _model_and_trace(asked, heads)
    contenders = contenders_of(trace, asked.policies, asked.steps)
    setting, engine = LoadSetting(replace(asked, padded=True), trace, contenders), engine_of(model)
    if engine.recurrent:
        raise _recurrent(model.name)
    texts, clock = traced_sequences(model, trace), clock_of(engine.stack.device)
    place = ServingPlace(setting, model, engine, texts, heads, *clock)
    require_batching(engine.hf, lambda: _differing(place, contenders[0]))
    return place, contenders, trace


def served_answer(asked: Load) -> LoadResult:
    """Serve what was asked for, and hold the prediction against it."""
    place, contenders, trace = opened_place(asked)
    with said(asked, "profiling served steps"):
        fitted = profiled(place, contenders)
    setting = place.setting.priced(lambda own, *sizes: fitted[own.name].step_prices(own, *sizes))
    execution = _executed(replace(place, setting=setting))
    worst = max(steps.error for steps in fitted.values())
    notes = [
        f"Prices are fitted to steps that were served before, at a median error of {100 * worst:.1f} % at "
        f"most, and scaled by {execution.drift:.3f}, what plain steps took over them.",
    ]
    if (made := trace.request.get("dtype")) != place.model.dtype:
        notes.append(f"The trace was made in {made}, and is served in {place.model.dtype}.")
    machine = f"this machine, served ({torch.get_num_threads()} threads)"
    return result_of(setting.scaled(execution.drift), machine, notes, execution=execution)


def _model_and_trace(asked: Load, heads: ExitHeads | None) -> tuple[Model, Trace]:
    """The model of a trace, or a model and a trace of it at the exits and with the facts that are needed."""
    subject: Any = asked.subject
    if is_trace(subject):
        if asked.workload is not None:
            what, fix = "a workload means nothing beside a trace, which has its own", "leave it out"
            raise InputError(what, where="--workload", fix=fix)
        trace = trace_of(subject)
        asked.require_room(trace.shape.context_length)
        if is_recurrent(trace.shape).any():  # before its model is loaded
            raise _recurrent(str(trace.folder or "the trace"))
        require_heads(trace, heads)
        own = {**(trace.request.get("model") or {}), "dtype": trace.request.get("dtype")}
        model = _loaded(asked, asked.model or loadable_name(own))
        require_model(model, trace)
        return model, trace
    model = _loaded(asked, subject)
    policies = [admitted(policy)[0] for policy in asked.every_policy]
    needs = [policy.needs(len(model.stack)) for policy in policies]
    read = {fact for need in needs for facts in need.values() for fact in facts}
    read |= {"restricted_top1" for policy in policies if policy.short_list}
    signals = [name for name, facts in SIGNAL_FACTS.items() if read & {fact.name for fact in facts}]
    exits = sorted({exit for need in needs for exit in need})
    return model, traced(model, asked.workload or "prose", TRACED_TOKENS, exits or "all", signals, heads)


def _loaded(asked: Load, model: Any) -> Model:
    if isinstance(model, Model):
        asked.require_room(model.context_length)
        return model
    found = asked.find(str(model))
    for policy in asked.every_policy:
        check_exits(admitted(policy)[0], found)
    loaded = found.load()
    asked.require_room(loaded.context_length)
    return loaded


def _recurrent(where: str) -> ModelError:
    what = "some layers keep a recurrent state, which no paged cache holds"
    return ModelError(what, where=where, fix="leave --execute out: a trace predicts")


def _differing(place: ServingPlace, plain: LoadContender) -> str | None:
    """What is wrong with a few requests that are served at full depth; None if nothing is."""
    few = np.arange(3)
    demand = place.first(place.some_demand(0), 3)
    demand = replace(demand, prompt=5 - few, output=2 + few)
    (server,) = place.serve(demand, {PLAIN: place.loop(plain)}, rows=2).values()
    for name, found in server.batch.answers.items():
        ids = torch.tensor([server.prompts[int(name)]], device=place.engine.stack.device)
        expected: Any = generate(place.model, ids, max_new_tokens=len(found))  # which ends at an end token
        if expected.tokens != found[: len(expected.tokens)]:
            return "tokens differ from those of generate"
    return None


def profiled(place: ServingPlace, contenders: Sequence[LoadContender]) -> dict[str, FittedSteps]:
    """The steps of every contender, where each row leaves as it wants to.

    Served in turns: twice from full rows down to one, and once with one request at a time.
    """
    steps = {contender.name: ServedSteps(contender, [], []) for contender in contenders}
    full = max(2 * place.setting.asked.rows, 12)
    for seed, count in enumerate((full, 8, full), start=PROFILED):
        demand = place.first(place.some_demand(seed), count)
        if count < full:
            demand = replace(demand, arrival=1e6 * np.arange(count, dtype=np.float64))
        loops = {contender.name: ServedLoop(place.engine, contender, place.heads) for contender in contenders}
        for name, server in place.serve(demand, loops, seed).items():
            assert server.loop is not None
            steps[name].logs.extend(server.loop.log)
            steps[name].seconds.extend(server.seconds)
    return dict(zip(steps, FittedSteps.of(list(steps.values())), strict=True))


def _executed(place: ServingPlace) -> LoadExecution:
    """Serve at every rate; all contenders in turns, and the full model once more."""
    setting, machine_load = place.setting, MachineLoad()
    plain, capacities = setting.contenders[0], setting.capacities()
    busiest = min(capacity.value for capacity in capacities.values())
    rates = rates_for(setting.asked, capacities, [load * capacities[plain.name].value for load in LOADS])
    runs: dict[str, list[LoadServed]] = {}
    points: list[LoadPoint] = []
    compared: list[ServedAside] = []
    asked = setting.asked
    with pieces(asked, "serving in turns", len(rates), len(setting.contenders) + 1) as passed:
        for rate in rates:
            served: dict[str, list[LoadServed]] = {}
            for seed in asked.every_seed:
                loops = {own.name: place.loop(own, setting.prices[own.name]) for own in setting.contenders}
                cell = place.serve(asked.demand(rate, seed), {**loops, AGAIN: place.loop(plain)}, seed)
                for name, server in cell.items():
                    served.setdefault(name, []).append(server)
                    runs.setdefault(name, []).append(server)
                    passed()
            kept = {name: served[name] for name, capacity in capacities.items() if rate < capacity.value}
            points += points_at(rate, setting, kept)
            if rate < busiest:
                compared += _compared(setting, rate, served)
    return LoadExecution(
        tuple(points),
        tuple(compared),
        ratio_over_seeds(*([server.busy for server in runs[name]] for name in (plain.name, AGAIN))),
        own_ratios(place, plain),
        place.clock_name,
        drift_of(setting.prices[plain.name], runs[plain.name]),
        describe(place.model, machine_load, {}),
    )


def drift_of(prices: StepPrices, servers: Sequence[LoadServed]) -> float:
    """Seconds of the full model's steps over those that they were priced at."""
    logs = [log for server in servers if server.loop is not None for log in server.loop.log]
    return sum(server.busy for server in servers) / sum(priced_step(prices, log) for log in logs)


def priced_step(prices: StepPrices, log: StepLog) -> float:
    """What a step at full depth is priced at."""
    seconds, rows = sum(prices.prompt(tokens, past) for tokens, past in log.prompts), len(log.exits)
    if not rows:
        return seconds + float(prices.overhead[0])
    own, asks = np.array([log.exits]).T, np.zeros((len(prices.stops), rows), dtype=np.bool_)
    context = np.array([float(max(log.contexts))])
    return seconds + float(run_steps(prices, "gain", own, asks, context)[0][0])


def _compared(
    setting: LoadSetting, rate: float, served: Mapping[str, Sequence[LoadServed]]
) -> Iterator[ServedAside]:
    """Figures of the very demands that were served, predicted and measured, means over seeds.

    Prices are scaled by the drift of the same minutes, as what plain steps took then is no error of a policy.
    Of all with exits also the change: the share of the seconds that is saved of the best without exits, as
    served, below 0 where it takes longer.
    """
    best: dict[str, dict[str, float]] = {}
    first = setting.contenders[0].name
    scaled = setting.scaled(drift_of(setting.prices[first], served[first]))
    for contender in setting.contenders:
        servers = served[contender.name]
        again = [scaled.serve(contender, server.demand) for server in servers]
        samples = {"predicted": setting.samples(again), "served": setting.samples(servers)}
        for figure in COMPARED:
            if figure not in samples["served"][0]:  # no request has a second token
                continue
            means = {side: mean_of(figures, figure) for side, figures in samples.items()}
            yield ServedAside(contender.name, rate, figure, **means)
            if figure in CHANGED and not contender.without_exits and figure in best:
                saved = {side: 1.0 - seconds / best[figure][side] for side, seconds in means.items()}
                yield ServedAside(contender.name, rate, f"saved of {figure}", **saved)
            elif figure in CHANGED and setting.keeps_floor(contender):
                best[figure] = min(best.get(figure, means), means, key=lambda sides: sides["served"])


def own_ratios(place: ServingPlace, plain: LoadContender) -> dict[str, float]:
    """Seconds of our loop's decoding at full depth over those of transformers' own, by requests at once."""
    ratios = {}
    for rows in sorted({min(rows, place.setting.asked.rows) for rows in TRIED_ROWS}):
        demand = place.first(place.some_demand(rows), rows)
        demand = replace(demand, output=np.full(len(demand), TRIED_TOKENS))
        ours, own = place.serve(demand, {PLAIN: place.loop(plain), "own": None}, rows).values()
        ratios[str(rows)] = ours.decoding / own.decoding
    return ratios
