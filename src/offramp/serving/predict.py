"""Every contender at every rate, on the same demands: predicted, without a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offramp.costs.machine import machine_fingerprint
from offramp.costs.machine_registry import kept_notes
from offramp.defaults import LOCAL
from offramp.errors import InputError
from offramp.policies.decisions import task_of
from offramp.policies.prices import machine_for, price_notes
from offramp.scoring.documents import DocumentRows, document_rows
from offramp.scoring.estimate import Estimate
from offramp.serving.arrivals import Demand, demand_of
from offramp.serving.contenders import POLICY, LoadContender, answers_of, contenders_of
from offramp.serving.figures import figures_of, over_seeds, ratio_over_seeds, sample_of
from offramp.serving.prices import MachinePrices, StepPrices
from offramp.serving.request import OF_A_LOAD, RATES_TRIED, Load, Rule
from offramp.serving.results import Benefit, LoadExecution, LoadPoint, LoadResult, LoadServer, RungShare
from offramp.serving.simulator import ServedDemand, ServerLimits, simulate
from offramp.tracing.manifest import MANIFEST, REQUEST
from offramp.tracing.progress import stage
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
Samples = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class LoadSetting:
    """What all contenders are asked to serve, and how. floor: that a rival without exits has to keep."""

    asked: Load
    limits: ServerLimits
    documents: DocumentRows
    floor: float | None

    @property
    def seeds(self) -> range:
        """Of the demands at a rate."""
        return range(self.asked.seed, self.asked.seed + self.asked.seeds)

    def demand(self, rate: float, seed: int) -> Demand:
        """What arrives at a rate."""
        asked = self.asked
        return demand_of(asked.how_arrive, asked.how_long, rate, asked.requests, seed)

    @cached_property
    def longest(self) -> int:
        """Positions of a request at most."""
        demands = [self.demand(1.0, seed) for seed in self.seeds]
        return max(int((demand.prompt + demand.output).max()) for demand in demands)

    def serve(self, contender: LoadContender, prices: StepPrices, demand: Demand) -> ServedDemand:
        """Serve a demand."""
        return simulate(demand, answers_of(self.documents, demand), contender, prices, self.limits)

    def samples(self, served: Sequence[ServedDemand]) -> list[dict[str, float]]:
        """The figures of each."""
        return [sample_of(demand, self.asked.objectives) for demand in served]

    def capacity(self, contender: LoadContender, prices: StepPrices) -> Estimate[float]:
        """Requests per second where all are there from the start, until the last one is begun."""
        rates = []
        for seed in self.seeds:
            served = self.serve(contender, prices, at_once(self.demand(1.0, seed)))
            begun, ends = max(times[0] for times in served.times), [times[-1] for times in served.times]
            done = sum(end <= begun for end in ends)
            rates.append(done / begun if 2 * done >= len(ends) else len(ends) / max(ends))
        return over_seeds(rates)


def at_once(demand: Demand) -> Demand:
    """The same requests, all there at the beginning."""
    return replace(demand, arrival=np.zeros(len(demand)))


def predicted(asked: Load) -> LoadResult:
    """The answer to what was asked for, from a trace and a machine's prices."""
    trace = trace_of(asked.subject)
    contenders = contenders_of(trace, asked.policies, asked.steps)
    machine = machine_for(trace, asked.hardware)
    padded = asked.padded if asked.padded is not None else asked.hardware == LOCAL
    setting = setting_of(asked, trace, contenders, padded=padded)
    of_machine = MachinePrices(machine, trace)
    with said(asked, "pricing steps"):
        prices = {
            contender.name: of_machine.step_prices(contender, asked.rows, setting.longest)
            for contender in contenders
        }
    lookup = kept_notes(machine) if isinstance(asked.hardware, str) else ()
    notes = (*lookup, *price_notes(machine, trace, (1, asked.rows)), DERIVED)
    fingerprint = machine_fingerprint(machine)
    return result_of(setting, trace, contenders, prices, machine.name, notes, fingerprint=fingerprint)


def is_trace(subject: Any) -> bool:
    """Whether a trace is meant, or the folder of one."""
    is_path = isinstance(subject, str | Path)
    return isinstance(subject, Trace) or (
        is_path and any((Path(subject) / name).is_file() for name in (MANIFEST, REQUEST))
    )


def trace_of(subject: Any) -> Trace:
    """The trace that is meant. Raises InputError for a model, which nothing is predicted of without one."""
    if not is_trace(subject):
        fix = "give a trace of it (offramp trace MODEL --workload W -o FOLDER), or add --execute"
        what = "a model says nothing of where its tokens leave"
        raise InputError(what, where=str(subject), fix=fix)
    return subject if isinstance(subject, Trace) else Trace.load(Path(subject))


def setting_of(
    asked: Load, trace: Trace, contenders: Sequence[LoadContender], *, padded: bool
) -> LoadSetting:
    """What all contenders are asked to serve. A rival without exits keeps the loosest certified floor."""
    floors = [rung.floor for contender in contenders for rung in contender.rungs if rung.floor is not None]
    limits = ServerLimits(asked.rows, asked.budget, asked.rule, padded)
    return LoadSetting(asked, limits, document_rows(trace), min(floors, default=None))


def rates_for(asked: Load, capacities: Mapping[str, float], auto: Sequence[float]) -> tuple[float, ...]:
    """The rates that were asked for, or these in two digits; capacities: by contender.

    Raises InputError for rates at which nothing can be told.
    """
    if isinstance(asked.rates, str):
        return tuple(sorted({float(f"{rate:.2g}") for rate in auto}))
    name, most = max(capacities.items(), key=lambda pair: pair[1])
    if asked.rates[-1] > BEYOND * most:
        what = f"{asked.rates[-1]:g} requests/s is more than {BEYOND:g} times what {name} serves, {most:.3g}"
        fix = f"choose rates of up to {HIGHEST * most:.2g}, or auto"
        raise InputError(what, where="--rates", fix=fix)
    return tuple(asked.rates)


def result_of(
    setting: LoadSetting,
    trace: Trace,
    contenders: Sequence[LoadContender],
    prices: Mapping[str, StepPrices],
    machine: str,
    notes: Sequence[str],
    *,
    fingerprint: str | None = None,
    execution: LoadExecution | None = None,
) -> LoadResult:
    """Every contender at every rate. fingerprint: of the machine that priced, None of served prices."""
    asked = setting.asked
    with said(asked, "finding what each contender serves at most"):
        servers = tuple(
            LoadServer(
                contender.name,
                contender.role,
                contender.text,
                contender.certificate,
                setting.capacity(contender, prices[contender.name]),
                1.0 - contender.rungs[-1].loss,
                asks_at(prices[contender.name], setting.limits.rule) if contender.stops else None,
            )
            for contender in contenders
        )
    capacities = {server.name: server.capacity.value for server in servers}
    most = max(capacities.values())
    rates = rates_for(asked, capacities, np.geomspace(LOWEST * most, HIGHEST * most, RATES_TRIED).tolist())
    points: list[LoadPoint] = []
    with said(asked, f"serving at {len(rates)} rates"):
        for rate in rates:
            served = {
                contender.name: [
                    setting.serve(contender, prices[contender.name], setting.demand(rate, seed))
                    for seed in setting.seeds
                ]
                for contender in contenders
                if rate < capacities[contender.name]
            }
            points += points_at(rate, contenders, served, setting)
    own = bool(trace.generated.all())
    return LoadResult(
        model=str((trace.request.get("model") or {}).get("name", "unknown")),
        workload=task_of(trace) or "unknown",
        machine=machine,
        padded=setting.limits.padded,
        asked={name: getattr(asked, name) for name in ASKED}
        | {
            "policies": [contender.text for contender in contenders if contender.role == POLICY],
            "ladder": asked.steps and str(asked.steps),
        },
        floor=setting.floor,
        servers=servers,
        rates=rates,
        points=tuple(points),
        notes=(*notes, *(() if own else (GIVEN_TEXT,))),
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
    rows = range(1, len(prices.final))
    return tuple(count for count in rows if rule == "lockstep" or prices.worth_asking[:, count].any())


def points_at(
    rate: float,
    contenders: Sequence[LoadContender],
    served: Mapping[str, Sequence[ServedDemand]],
    setting: LoadSetting,
) -> Iterator[LoadPoint]:
    """The contenders at one rate, each held against the best without exits that keeps the floor.

    served: of those that are not saturated, by seed.
    """
    samples = {name: setting.samples(found) for name, found in served.items()}
    rivals = [
        contender.name
        for contender in contenders
        if contender.without_exits
        and contender.name in samples
        and 1.0 - contender.rungs[0].loss >= (setting.floor or 0.0)
    ]
    best = min(rivals, key=lambda name: _mean(samples[name], "p95_e2el"), default=None)
    for contender in contenders:
        own = samples.get(contender.name)
        if own is None:
            yield LoadPoint(contender.name, rate, True, None, over=best)
            continue
        ratio, benefit = None, _alone(contender)
        if best is not None:
            columns = ([sample["p95_e2el"] for sample in of] for of in (samples[best], own))
            ratio, benefit = ratio_over_seeds(*columns), _benefit(samples[best], own)
        shares = rung_shares(contender, served[contender.name])
        yield LoadPoint(contender.name, rate, False, figures_of(own), ratio, best, benefit, shares)


def _alone(contender: LoadContender) -> Benefit | None:
    """What is gained where nothing without exits keeps up."""
    return None if contender.without_exits else "capacity"


def _benefit(over: Samples, own: Samples) -> Benefit | None:
    """What is gained: mostly waiting for the first token (capacity), or time after it (latency)."""
    saved, waited = (_mean(over, name) - _mean(own, name) for name in ("mean_e2el", "mean_ttft"))
    if saved <= HARDLY * _mean(over, "mean_e2el"):
        return None
    return "capacity" if waited > saved / 2 else "latency"


def _mean(samples: Samples, name: str) -> float:
    return math.fsum(sample[name] for sample in samples) / len(samples)


def rung_shares(contender: LoadContender, served: Sequence[ServedDemand]) -> tuple[RungShare, ...]:
    """What the requests of each rung lost, of a ladder that was judged; nothing of others."""
    columns = [(run.rung, run.demand.output, run.lost) for run in served if run.lost is not None]
    if len(contender.rungs) == 1 or not columns:
        return ()
    rung, output, lost = (np.concatenate(column) for column in zip(*columns, strict=True))
    found = []
    for place, (own, least) in enumerate(zip(contender.rungs, contender.least, strict=True)):
        mine = rung == place
        tokens = int((output[mine] - 1).sum())
        loss = int(lost[mine].sum()) / tokens if tokens else None
        found.append(RungShare(least, str(own.policy), int(mine.sum()), loss, own.promise))
    return tuple(found)


@contextlib.contextmanager
def said(asked: Load, what: str) -> Iterator[None]:
    """Say what goes on, if that was asked for."""
    with stage(what) if asked.progress else contextlib.nullcontext():
        yield
