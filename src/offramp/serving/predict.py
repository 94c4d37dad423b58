"""Every contender at every rate, on the same demands: predicted, without a model."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import machine_fingerprint
from offramp.costs.machine_registry import kept_notes
from offramp.defaults import LOCAL, SEED
from offramp.errors import InputError
from offramp.models.source import may_be_model
from offramp.policies.decisions import task_of
from offramp.policies.prices import machine_for, price_notes
from offramp.scoring.documents import DocumentRows, document_rows
from offramp.scoring.estimate import LEVEL, Estimate
from offramp.serving.contenders import POLICY, LoadContender, contenders_of
from offramp.serving.prices import MachinePrices, Seconds, StepPrices
from offramp.serving.request import OF_A_LOAD, RATES_TRIED, Load, Rule
from offramp.serving.results import (
    Benefit,
    Figures,
    LoadExecution,
    LoadPoint,
    LoadResult,
    LoadServer,
    RungShare,
)
from offramp.serving.simulator import Demand, ServedDemand, answers_of, simulate
from offramp.timing.ratios import student_reach
from offramp.tracing.manifest import MANIFEST, REQUEST
from offramp.tracing.progress import SECONDS_BETWEEN_LINES, progress_bar, say, stage
from offramp.tracing.trace import Trace

LOWEST, HIGHEST = 0.04, 1.1
"""Of the largest capacity, between which rates are chosen."""
BEYOND = 10.0
"""Times the largest capacity at which a rate asks nothing any more."""
HARDLY = 1e-3
"""Share of the time of which a saving is none."""
DERIVED = (
    "Prompts are priced as so many rows without a context, their attention by its FLOPs at the pace of those "
    "products; selecting the rows that go on is not priced."
)
GIVEN_TEXT = (
    "The texts were given, not the model's own answers: where tokens leave may differ (trace prompts: chat, "
    "math)."
)
ASKED = (*OF_A_LOAD, "kv", "seed", "worth")
"""Options that a result repeats."""
PERCENTILES = (50, 95, 99)
WARM = 0.1
"""Share of the requests that come first and are not counted: the server is empty before them."""
BLOCK, LOAD_DRAWS = 16, 400
"""Neighbouring requests that are drawn together, and draws, for intervals over requests."""
Samples = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class LoadSetting:
    """Who is asked to serve, and what. asked: with `padded` settled. prices: of each one's steps, by name."""

    asked: Load
    trace: Trace
    contenders: tuple[LoadContender, ...]
    prices: Mapping[str, StepPrices] = field(default_factory=dict)

    def priced(self, of: Callable[[LoadContender, int, int], StepPrices]) -> LoadSetting:
        """The same with prices. of: those of a contender, for so many rows and positions at most."""
        prices = {own.name: of(own, self.asked.rows, self.longest) for own in self.contenders}
        return replace(self, prices=prices)

    def scaled(self, factor: float) -> LoadSetting:
        """The same where everything takes so many times as long."""
        return replace(self, prices={name: own.scaled(factor) for name, own in self.prices.items()})

    @property
    def floor(self) -> float | None:
        """That a rival without exits has to keep: the loosest that is certified of a rung."""
        rungs = [rung for contender in self.contenders for rung in contender.rungs]
        return min((rung.floor for rung in rungs if rung.floor is not None), default=None)

    def keeps_floor(self, contender: LoadContender) -> bool:
        """Whether exits have to be better than it: it has none, and keeps the floor."""
        return contender.without_exits and 1.0 - contender.rungs[0].loss >= (self.floor or 0.0)

    @cached_property
    def documents(self) -> DocumentRows:
        """Of which answers are."""
        return document_rows(self.trace)

    @cached_property
    def longest(self) -> int:
        """Positions of a request at most."""
        return sum(self.asked.longest_request)

    def serve(self, contender: LoadContender, demand: Demand) -> ServedDemand:
        """Serve a demand."""
        answers = answers_of(self.documents, demand)
        return simulate(demand, answers, contender, self.prices[contender.name], self.asked)

    def samples(self, served: Sequence[ServedDemand]) -> list[dict[str, float]]:
        """The figures of each."""
        return [sample_of(demand, self.asked.objectives) for demand in served]

    def capacities(self, passed: Callable[[], None] = lambda: None) -> dict[str, Estimate[float]]:
        """Of each contender the requests per second that it serves at most: where all are there from the
        start, until the last one is begun. passed: called after each demand.
        """
        rates: dict[str, list[float]] = {}
        for contender in self.contenders:
            for seed in self.asked.every_seed:
                times = self.serve(contender, at_once(self.asked.demand(1.0, seed))).times
                begun, ends = max(own[0] for own in times), [own[-1] for own in times]
                done = sum(end <= begun for end in ends)
                rate = done / begun if 2 * done >= len(ends) else len(ends) / max(ends)
                rates.setdefault(contender.name, []).append(rate)
                passed()
        return {name: over_seeds(own) for name, own in rates.items()}


def at_once(demand: Demand) -> Demand:
    """The same requests, all there at the beginning."""
    return replace(demand, arrival=np.zeros(len(demand)))


def predicted(asked: Load) -> LoadResult:
    """The answer to what was asked for, from a trace and a machine's prices."""
    trace = trace_of(asked.subject)
    asked.require_room(trace.shape.context_length)
    contenders = contenders_of(trace, asked.policies, asked.steps)
    machine = machine_for(trace, asked.hardware)
    if asked.padded is None:
        asked = replace(asked, padded=asked.hardware == LOCAL)
    setting = LoadSetting(asked, trace, contenders)
    with said(asked, "pricing steps"):
        setting = setting.priced(MachinePrices(machine, trace).step_prices)
    lookup = kept_notes(machine) if isinstance(asked.hardware, str) else ()
    notes = (*lookup, *price_notes(machine, trace, (1, asked.rows)), DERIVED)
    return result_of(setting, machine.name, notes, fingerprint=machine_fingerprint(machine))


def is_trace(subject: Any) -> bool:
    """Whether a trace is meant, or the folder of one."""
    is_path = isinstance(subject, str | Path)
    return isinstance(subject, Trace) or (
        is_path and any((Path(subject) / name).is_file() for name in (MANIFEST, REQUEST))
    )


def trace_of(subject: Any) -> Trace:
    """The trace that is meant. Raises InputError for a model, which nothing is predicted of without one."""
    if isinstance(subject, str | Path) and not may_be_model(str(subject)):
        return Trace.load(Path(subject))  # which says what is there instead
    if not is_trace(subject):
        fix = "give a trace of it (offramp trace MODEL --workload W -o FOLDER), or add --execute"
        what = "a model says nothing of where its tokens leave"
        raise InputError(what, where=str(subject), fix=fix)
    return subject if isinstance(subject, Trace) else Trace.load(Path(subject))


def rates_for(
    asked: Load, capacities: Mapping[str, Estimate[float]], auto: Sequence[float]
) -> tuple[float, ...]:
    """The rates that were asked for, or these in two digits. Raises InputError for those that say nothing."""
    if isinstance(asked.rates, str):
        return tuple(sorted({float(f"{rate:.2g}") for rate in auto}))
    name, most = max(((name, of.value) for name, of in capacities.items()), key=lambda pair: pair[1])
    if asked.rates[-1] > BEYOND * most:
        what = f"{asked.rates[-1]:g} requests/s is more than {BEYOND:g} times what {name} serves, {most:.3g}"
        fix = f"choose rates of up to {HIGHEST * most:.2g}, or auto"
        raise InputError(what, where="--rates", fix=fix)
    return tuple(asked.rates)


def result_of(
    setting: LoadSetting,
    machine: str,
    notes: Sequence[str],
    *,
    fingerprint: str | None = None,
    execution: LoadExecution | None = None,
) -> LoadResult:
    """Every contender at every rate. fingerprint: of the machine that priced, None of served prices."""
    asked, trace, contenders = setting.asked, setting.trace, setting.contenders
    loads = 1 + (RATES_TRIED if isinstance(asked.rates, str) else len(asked.rates))
    points: list[LoadPoint] = []
    with pieces(asked, "simulating", loads, len(contenders)) as passed:
        capacities = setting.capacities(passed)
        most = max(capacity.value for capacity in capacities.values())
        auto = np.geomspace(LOWEST * most, HIGHEST * most, RATES_TRIED).tolist()
        rates = rates_for(asked, capacities, auto)
        for rate in rates:
            served: dict[str, list[ServedDemand]] = {}
            for contender in contenders:
                if rate < capacities[contender.name].value:
                    for seed in asked.every_seed:
                        run = setting.serve(contender, asked.demand(rate, seed))
                        served.setdefault(contender.name, []).append(run)
                        passed()
            points += points_at(rate, setting, served)
    return LoadResult(
        model=str((trace.request.get("model") or {}).get("name", "unknown")),
        workload=task_of(trace) or "unknown",
        machine=machine,
        padded=bool(asked.padded),
        asked={name: getattr(asked, name) for name in ASKED}
        | {
            "policies": [contender.text for contender in contenders if contender.role == POLICY],
            "ladder": asked.steps and str(asked.steps),
        },
        floor=setting.floor,
        servers=tuple(
            LoadServer(
                contender.name,
                contender.role,
                contender.text,
                contender.certificate,
                capacities[contender.name],
                1.0 - contender.rungs[-1].loss,
                asks_at(setting.prices[contender.name], asked.rule) if contender.stops else None,
            )
            for contender in contenders
        ),
        rates=rates,
        points=tuple(points),
        notes=(*notes, *(() if trace.generated.all() else (GIVEN_TEXT,))),
        execution=execution,
        provenance={
            "trace": trace.provenance.get("request_fingerprint"),
            "machine": fingerprint,
            "documents": len(setting.documents.starts),
            "tokens": trace.token_count,
        },
    )


def asks_at(prices: StepPrices, rule: Rule) -> tuple[int, ...]:
    """Rows with which a step asks somewhere."""
    rows = np.arange(len(prices.final))
    asked = [prices.asks(rule, place, rows) for place in range(len(prices.stops))]
    return tuple(np.flatnonzero(np.any(asked, axis=0)).tolist())


def points_at(
    rate: float, setting: LoadSetting, served: Mapping[str, Sequence[ServedDemand]]
) -> Iterator[LoadPoint]:
    """The contenders at one rate, each held against the best without exits that keeps the floor.

    served: of those that are not saturated, by seed.
    """
    samples = {name: setting.samples(runs) for name, runs in served.items()}
    rivals = [
        contender.name
        for contender in setting.contenders
        if contender.name in samples and setting.keeps_floor(contender)
    ]
    best = min(rivals, key=lambda name: mean_of(samples[name], "p95_e2el"), default=None)
    for contender in setting.contenders:
        own = samples.get(contender.name)
        if own is None:
            yield LoadPoint(contender.name, rate, True, None, over=best)
            continue
        ratio = mean_ratio = None
        benefit: Benefit | None = None if contender.without_exits else "capacity"
        if best is not None:
            ratio, mean_ratio = (
                ratio_over_requests(served[best], served[contender.name], figure) for figure in (p95, np.mean)
            )
            benefit = _benefit(samples[best], own)
        shares = rung_shares(contender, served[contender.name])
        yield LoadPoint(
            contender.name, rate, False, figures_of(own), ratio, best, benefit, shares, mean_ratio
        )


def _benefit(over: Samples, own: Samples) -> Benefit | None:
    """What is gained: mostly waiting for the first token (capacity), or time after it (latency)."""
    saved, waited = (mean_of(over, name) - mean_of(own, name) for name in ("mean_e2el", "mean_ttft"))
    if saved <= HARDLY * mean_of(over, "mean_e2el"):
        return None
    return "capacity" if waited > saved / 2 else "latency"


def mean_of(samples: Samples, name: str) -> float:
    """Of a figure over seeds."""
    return fmean(sample[name] for sample in samples)


def sample_of(served: ServedDemand, objectives: Mapping[str, float], warm: float = WARM) -> dict[str, float]:
    """The figures of one demand, by the names of vLLM's benchmark.

    Seconds to a request's first token, per token after it, between two tokens, and to the last one.
    """
    demand, first = served.demand, int(warm * len(served.demand))
    times, arrival, counts = served.times[first:], demand.arrival[first:], demand.output[first:]
    starts, ends = (np.array([of[place] for of in times]) for place in (0, -1))
    seconds = {
        "ttft": starts - arrival,
        "tpot": (ends - starts) / np.maximum(counts - 1, 1),
        "itl": np.concatenate([np.diff(of) for of in times]),
        "e2el": ends - arrival,
    }
    span = float(ends.max() - arrival[0])
    found = {
        "request_throughput": len(times) / span,
        "output_throughput": int(counts.sum()) / span,
        "rows": served.row_steps / max(1, served.steps),
        "layers": float(served.layers[first:].sum()) / max(1, int((counts - 1).sum())),
    }
    if served.lost is not None:
        found["agreement"] = 1.0 - float(served.lost[first:].sum()) / int(counts.sum())
    if objectives:
        good = np.all([seconds[name] <= limit for name, limit in objectives.items()], axis=0)
        found["request_goodput"] = int(good.sum()) / span
    seconds["tpot"] = seconds["tpot"][counts > 1]
    for name, values in seconds.items():
        if len(values):
            found[f"mean_{name}"] = float(values.mean())
            for percent in PERCENTILES:
                found[f"p{percent}_{name}"] = float(np.percentile(values, percent))
    return found


def figures_of(samples: Samples) -> Figures:
    """Means over seeds, with intervals; of figures that every seed has."""
    names = [name for name in samples[0] if all(name in sample for sample in samples)]
    return {name: over_seeds([sample[name] for sample in samples]) for name in names}


def over_seeds(
    values: Sequence[float] | Seconds, shown: Callable[[float], float] = lambda value: max(0.0, value)
) -> Estimate[float]:
    """Their mean with Student's 95 % interval, without one of one seed.

    shown: what all three become; by default none of them is below 0.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(shown(mean), no_interval="one seed")
    half = student_reach(LEVEL, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(shown(mean), shown(mean - half), shown(mean + half))


def p95(seconds: NDArray[np.float64], axis: int | None = None) -> Any:
    """Of seconds, along an axis."""
    return np.percentile(seconds, 95, axis=axis)


def ratio_over_requests(
    over: Sequence[ServedDemand],
    under: Sequence[ServedDemand],
    figure: Callable[..., Any],
    warm: float = WARM,
) -> Estimate[float]:
    """A figure of the seconds of some requests over that of the same requests, served by others.

    Requests are paired, and drawn in blocks of BLOCK neighbours, which wait for each other; the geometric
    mean over seeds, with a 95 % interval over those draws.

    over, under: by seed. figure: of seconds along an axis.
    """
    random, logs, draws = np.random.default_rng(SEED), [], []
    for one, other in zip(over, under, strict=True):
        pair = np.stack([_request_seconds(one, warm), _request_seconds(other, warm)])
        count = pair.shape[1]
        starts = random.integers(0, count, (LOAD_DRAWS, -(-count // BLOCK), 1))
        places = ((starts + np.arange(BLOCK)) % count).reshape(LOAD_DRAWS, -1)[:, :count]
        logs.append(_log_ratio(figure(pair, axis=1)))
        draws.append(_log_ratio(figure(pair[:, places], axis=2)))
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    return Estimate(math.exp(float(np.mean(logs))), math.exp(low), math.exp(high))


def _log_ratio(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(figures[0]) - np.log(figures[1]))


def _request_seconds(served: ServedDemand, warm: float) -> NDArray[np.float64]:
    """From arrival to the last token: float64 [requests]; without those that come first."""
    first = int(warm * len(served.demand))
    ends = np.array([times[-1] for times in served.times[first:]])
    return np.asarray(ends - served.demand.arrival[first:])


def ratio_over_seeds(over: Sequence[float], under: Sequence[float]) -> Estimate[float]:
    """The ratio of two figures that were had on the same demands: its geometric mean, with an interval."""
    return over_seeds(np.log(over) - np.log(under), math.exp)


def rung_shares(contender: LoadContender, served: Sequence[ServedDemand]) -> tuple[RungShare, ...]:
    """What the requests of each rung lost, of a ladder that was judged; nothing of others."""
    columns = [(run.rung, run.demand.output, run.lost) for run in served if run.lost is not None]
    if len(contender.rungs) == 1 or not columns:
        return ()
    rung, output, lost = (np.concatenate(column) for column in zip(*columns, strict=True))
    shares = []
    for place, own in enumerate(contender.rungs):
        admitted = rung == place
        tokens = int((output[admitted] - 1).sum())
        loss = int(lost[admitted].sum()) / tokens if tokens else None
        shares.append(RungShare(own.queue, str(own.policy), int(admitted.sum()), loss, own.promise))
    return tuple(shares)


@contextlib.contextmanager
def pieces(asked: Load, what: str, loads: int, contenders: int) -> Iterator[Callable[[], None]]:
    """Say what takes long, after its first piece how long, and then how far it is, if that was asked for.

    Call what it yields after each contender's demand, one of each seed at each load; some may be left out.
    """
    if not asked.progress:
        yield lambda: None
        return
    total, seeds = loads * asked.seeds * contenders, f"{asked.seeds} seed{'s' * (asked.seeds > 1)}"
    what = f"{what} {asked.requests:,} requests x {loads} loads x {seeds} x {contenders} contenders"
    with progress_bar(what) as bar:
        began, done = time.monotonic(), 0

        def passed() -> None:
            nonlocal done
            done += 1
            left = (total - done) * (time.monotonic() - began)
            if done == 1 and left > SECONDS_BETWEEN_LINES and not sys.stderr.isatty():
                say(f"it takes about {left:.0f} s")
            bar(done, total)

        yield passed


@contextlib.contextmanager
def said(asked: Load, what: str) -> Iterator[None]:
    """Say what goes on, if that was asked for."""
    with stage(what) if asked.progress else contextlib.nullcontext():
        yield
