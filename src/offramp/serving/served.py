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
from offramp.decoding.rerun.trace_sequences import TracedSequence, require_model, traced_sequences
from offramp.errors import ModelError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads
from offramp.models.model import Model
from offramp.policies.binding import require_heads
from offramp.serving.arrivals import Demand
from offramp.serving.batching import BatchedRequests, require_batching
from offramp.serving.contenders import PLAIN, LoadContender, contenders_of, policy_of
from offramp.serving.figures import ratio_over_seeds
from offramp.serving.loop import ServedLoop, StepLog
from offramp.serving.predict import (
    LoadSetting,
    at_once,
    is_trace,
    points_at,
    rates_for,
    result_of,
    said,
    setting_of,
    trace_of,
)
from offramp.serving.prices import StepPrices
from offramp.serving.request import Load
from offramp.serving.results import LoadExecution, LoadPoint, LoadResult, ServedAside
from offramp.serving.served_prices import FittedSteps, ServedSteps
from offramp.serving.simulator import ServedDemand, run_steps
from offramp.timing.defects import MachineLoad, describe
from offramp.tracing.facts import SIGNAL_FACTS
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace as traced

AGAIN = "plain, again"
LOADS = (0.3, 0.6, 0.85)
"""Of what the full model serves at most, at which is served where no rates are given."""
COMPARED = ("request_throughput", "mean_e2el", "p95_e2el", "p95_ttft", "p95_tpot")
CHANGE = "saved of mean_e2el"
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


class LoadServed:
    """One server at work on a demand.

    loop: None for transformers' own. now: seconds of its own clock; time in which nothing waits is skipped.
    """

    def __init__(
        self,
        demand: Demand,
        prompts: Sequence[Sequence[int]],
        batch: BatchedRequests,
        loop: ServedLoop | None,
        clock: Clock,
    ) -> None:
        self.demand, self.prompts, self.batch, self.loop, self.clock = demand, prompts, batch, loop, clock
        self.now, self.next, self.row_steps = 0.0, 0, 0
        self.seconds: list[float] = []
        self.times: list[list[float]] = [[] for _ in prompts]
        self.rung, self.layers = np.zeros((2, len(prompts)), dtype=np.int64)

    def run(self) -> Iterator[None]:
        """Serve; stops before each step."""
        while any(len(times) < output for times, output in zip(self.times, self.demand.output, strict=True)):
            while self.next < len(self.prompts) and self.demand.arrival[self.next] <= self.now:
                self._join(self.next)
                self.next += 1
            yield
            began = self.clock()
            speaking = self.batch.step(self.loop)
            took = self.clock() - began
            if speaking is None:
                self.now = max(self.now, float(self.demand.arrival[self.next]))
            else:
                self._passed(took, speaking)
        self.batch.close()

    def _join(self, place: int) -> None:
        if self.loop is not None:
            came = zip(self.times[:place], self.demand.output, strict=False)
            queue = 1 + sum(len(times) < output for times, output in came)
            self.rung[place] = self.loop.rung[str(place)] = self.loop.contender.rung_at(queue)
        self.batch.add(str(place), list(self.prompts[place]), int(self.demand.output[place]))

    def _passed(self, took: float, speaking: Sequence[str]) -> None:
        self.now += took
        self.seconds.append(took)
        exits = iter(() if self.loop is None else self.loop.log[-1].exits)
        for name in map(int, speaking):
            if self.times[name]:
                self.layers[name] += next(exits, 0)
                self.row_steps += 1
            self.times[name].append(self.now)

    @property
    def served(self) -> ServedDemand:
        """What it came to; whose tokens are the full model's nobody judged."""
        counts = (sum(self.seconds), len(self.seconds), self.row_steps)
        times = tuple(map(np.array, self.times))
        return ServedDemand(self.demand, times, self.rung, self.layers, None, *counts)


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
        """Let several serve a demand, in turns. rows: side by side at most, by default as was asked for."""
        prompts, tokens = self.prompts(demand), int((demand.prompt + demand.output).max())
        limits = {"rows": rows or self.setting.limits.rows, "budget": rows or self.setting.limits.budget}
        servers = {}
        for name, loop in loops.items():
            batch = BatchedRequests(self.engine.hf, tokens=tokens, **limits)
            servers[name] = LoadServed(demand, prompts, batch, loop, self.clock)
        in_turns(servers, seed)
        return servers

    def loop(self, contender: LoadContender, prices: StepPrices | None = None) -> ServedLoop:
        """The layers of a contender's steps."""
        return ServedLoop(self.engine, contender, self.heads, self.setting.limits.rule, prices)

    def some_demand(self, seed: int, **arrays: Any) -> Demand:
        """Requests of the lengths that were asked for, all there at once, or as said."""
        return replace(at_once(self.setting.demand(1.0, seed)), **arrays)

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
    setting = setting_of(asked, trace, contenders, padded=True)
    engine = engine_of(model)
    if engine.recurrent:
        raise _recurrent(model.name)
    _, clock = clock_of(engine.stack.device)
    place = ServingPlace(setting, model, engine, traced_sequences(model, trace), heads, clock)
    require_batching(engine.hf, lambda: _differing(place, contenders[0]))
    return place, contenders, trace


def served_answer(asked: Load) -> LoadResult:
    """Serve what was asked for, and hold the prediction against it."""
    place, contenders, trace = opened_place(asked)
    setting, (clock, _) = place.setting, clock_of(place.engine.stack.device)
    with said(asked, "profiling served steps"):
        fitted = profiled(place, contenders)
    prices = {
        contender.name: fitted[contender.name].step_prices(contender, asked.rows, setting.longest)
        for contender in contenders
    }
    with said(asked, "serving in turns"):
        execution = _executed(place, contenders, prices, clock)
    scaled = {name: of.scaled(execution.drift) for name, of in prices.items()}
    worst = max(steps.error for steps in fitted.values())
    notes = (
        f"Prices are fitted to steps that were served before, at a median error of {100 * worst:.1f} % at "
        f"most, and scaled by {execution.drift:.3f}, what plain steps took over them.",
    )
    machine = f"this machine, served ({torch.get_num_threads()} threads)"
    return result_of(setting, trace, contenders, scaled, machine, notes, execution=execution)


def _model_and_trace(asked: Load, heads: ExitHeads | None) -> tuple[Model, Trace]:
    """The model of a trace, or a model and a trace of it at the exits and with the facts that are needed."""
    subject: Any = asked.subject
    if is_trace(subject):
        trace = trace_of(subject)
        if is_recurrent(trace.shape).any():  # before its model is loaded
            raise _recurrent(str(trace.folder or "the trace"))
        require_heads(trace, heads)
        own = {**(trace.request.get("model") or {}), "dtype": trace.request.get("dtype")}
        named: Any = asked.model or loadable_name(own)
        model = named if isinstance(named, Model) else asked.find(str(named)).load()
        require_model(model, trace)
        return model, trace
    model = subject if isinstance(subject, Model) else asked.find(str(subject)).load()
    rungs = asked.steps.rungs if asked.steps else ()
    policies = [policy_of(policy) for policy in (*asked.policies, *(own for _, own in rungs))]
    needs = [policy.needs(len(model.stack)) for policy in policies]
    read = {fact for need in needs for facts in need.values() for fact in facts}
    read |= {"restricted_top1" for policy in policies if policy.short_list}
    signals = [name for name, facts in SIGNAL_FACTS.items() if read & {fact.name for fact in facts}]
    exits = sorted({exit for need in needs for exit in need})
    return model, traced(model, asked.workload or "prose", TRACED_TOKENS, exits or "all", signals, heads)


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
    full = max(2 * place.setting.limits.rows, 12)
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


def _executed(
    place: ServingPlace,
    contenders: Sequence[LoadContender],
    prices: Mapping[str, StepPrices],
    clock: str,
) -> LoadExecution:
    setting, plain, load = place.setting, contenders[0], MachineLoad()
    capacities = {
        contender.name: setting.capacity(contender, prices[contender.name]).value for contender in contenders
    }
    rates = rates_for(setting.asked, capacities, [load * capacities[plain.name] for load in LOADS])
    points: list[LoadPoint] = []
    cells: dict[float, list[dict[str, LoadServed]]] = {}
    for rate in rates:
        for seed in setting.seeds:
            loops: dict[str, ServedLoop | None] = {
                contender.name: place.loop(contender, prices[contender.name]) for contender in contenders
            }
            loops[AGAIN] = place.loop(plain)
            cells.setdefault(rate, []).append(place.serve(setting.demand(rate, seed), loops, seed))
        names = [contender.name for contender in contenders if rate < capacities[contender.name]]
        served = {name: [cell[name].served for cell in cells[rate]] for name in names}
        points += points_at(rate, contenders, served, setting)
    every = [cell for row in cells.values() for cell in row]
    seconds, again = ([sum(cell[name].seconds) for cell in every] for name in (plain.name, AGAIN))
    drift = drift_of(plain.name, prices[plain.name], every)
    compared = [
        row
        for rate, cell in cells.items()
        if rate < min(capacities.values())
        for row in _compared(setting, contenders, prices, rate, cell)
    ]
    a_a = ratio_over_seeds(seconds, again)
    own = own_ratios(place, plain)
    around = describe(place.model, load, {})
    return LoadExecution(tuple(points), tuple(compared), a_a, own, clock, drift, around)


def drift_of(name: str, prices: StepPrices, cells: Sequence[Mapping[str, LoadServed]]) -> float:
    """Seconds of the full model's steps over those that they were priced at."""
    servers = [cell[name] for cell in cells]
    logs = [log for server in servers if server.loop is not None for log in server.loop.log]
    return sum(sum(server.seconds) for server in servers) / sum(priced_step(prices, log) for log in logs)


def priced_step(prices: StepPrices, log: StepLog) -> float:
    """What a step at full depth is priced at."""
    seconds, rows = sum(prices.prompt(tokens, past) for tokens, past in log.prompts), len(log.exits)
    if not rows:
        return seconds + float(prices.overhead[0])
    own, asks = np.array([log.exits]).T, np.zeros((len(prices.stops), rows), dtype=np.bool_)
    context = np.array([float(max(log.contexts))])
    return seconds + float(run_steps(prices, "gain", own, asks, context)[0][0])


def _compared(
    setting: LoadSetting,
    contenders: Sequence[LoadContender],
    prices: Mapping[str, StepPrices],
    rate: float,
    cells: Sequence[Mapping[str, LoadServed]],
) -> Iterator[ServedAside]:
    """Figures of the very demands that were served, predicted and measured, means over seeds.

    Prices are scaled by the drift of the same minutes, as what plain steps took then is no error of a policy.
    The last one of each but the first is the change: the share of the full model's mean seconds saved.
    """
    plain: dict[str, float] = {}
    drift = drift_of(contenders[0].name, prices[contenders[0].name], cells)
    for contender in contenders:
        scaled = prices[contender.name].scaled(drift)
        servers = [cell[contender.name] for cell in cells]
        sides = {
            "predicted": [setting.serve(contender, scaled, server.demand) for server in servers],
            "served": [server.served for server in servers],
        }
        samples = {side: setting.samples(runs) for side, runs in sides.items()}
        for figure in COMPARED:
            if figure not in samples["served"][0]:  # no request has a second token
                continue
            means = {side: float(np.mean([run[figure] for run in runs])) for side, runs in samples.items()}
            yield ServedAside(contender.name, rate, figure, **means)
            if figure == "mean_e2el" and contender is not contenders[0]:
                saved = {side: 1.0 - seconds / plain[side] for side, seconds in means.items()}
                yield ServedAside(contender.name, rate, CHANGE, **saved)
            elif figure == "mean_e2el":
                plain = means


def own_ratios(place: ServingPlace, plain: LoadContender) -> dict[str, float]:
    """Seconds of our loop at full depth over those of transformers' own, by requests at once.

    Of steps that only decode: once every request has its first token.
    """
    found = {}
    for rows in sorted({min(rows, place.setting.limits.rows) for rows in TRIED_ROWS}):
        demand = place.first(place.some_demand(rows), rows)
        demand = replace(demand, output=np.full(len(demand), TRIED_TOKENS))
        servers = place.serve(demand, {PLAIN: place.loop(plain), "own": None}, rows)
        ours, own = (
            server.now - max(times[0] for times in server.times)
            for server in (servers[PLAIN], servers["own"])
        )
        found[str(rows)] = ours / own
    return found
