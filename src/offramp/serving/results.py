"""What a load comes to: every contender at every rate, and from where to where exits pay, in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen

from offramp.kit.numbers import Number, Positive, Proportion, Whole
from offramp.kit.sealed_file import SealedFile
from offramp.policies.figures import NotNegativeOf, PositiveOf
from offramp.scoring.estimate import Estimate

Benefit = Literal["latency", "capacity"]
"""What exits gain at a load: time while a request is served, or time that it would have waited."""


NOT_CERTIFIED = "not certified"

Figures = Mapping[str, NotNegativeOf[Estimate[Number]]]
"""By name, in seconds, and requests or tokens per second: request_throughput, output_throughput,
request_goodput (of requests that keep all objectives, where there are any), mean_ttft, p50_ttft, p95_ttft,
p99_ttft, likewise of tpot, itl and e2el; rows (that decode side by side in a step), layers (of a token),
agreement (share of the tokens that are the full model's, as replayed)."""


@dataclass(frozen=True)
class RungShare:
    """What requests that were admitted with one rung of a ladder, from a queue on, came to; all seeds.

    loss: share of their tokens that are not the full model's, None of no request. promise: what it may be, of
    the certificate, else that of the policy on all documents of its replay.
    """

    queue: Whole
    policy: str
    requests: Whole
    loss: Proportion | None
    promise: Number

    @property
    def loss_over_promise(self) -> float | None:
        """1 or less where it is kept; None where nothing is promised or nobody came."""
        return None if self.loss is None or not self.promise else self.loss / self.promise


@dataclass(frozen=True)
class LoadPoint:
    """One contender at one rate, in requests per second.

    saturated: more arrive than it can serve, its queue only grows, and no figure of it means anything (None).
    ratio: p95 of `e2el` of the best without exits (`over`) over its own; None where one of them is saturated.
    mean_ratio: the same of the means.
    benefit: what it gains, None where it is no faster.
    """

    IF_ANY: ClassVar[tuple[str, ...]] = ("mean_ratio",)

    contender: str
    rate: Positive
    saturated: bool
    figures: Figures | None
    ratio: PositiveOf[Estimate[Number]] | None = None
    over: str | None = None
    benefit: Benefit | None = None
    rungs: tuple[RungShare, ...] = ()
    mean_ratio: PositiveOf[Estimate[Number]] | None = None

    def is_faster(self, worth: float) -> bool:
        """Whether it is surely faster by what is worth it, or serves where nothing without exits can."""
        if self.saturated or self.ratio is None:
            return not self.saturated and self.over is None
        surely = self.ratio.value if self.ratio.low is None else self.ratio.low
        return surely > 1.0 + worth


@dataclass(frozen=True)
class LoadServer:
    """One contender."""

    name: str
    role: str
    policy: str
    """As a text."""
    certificate: str
    """What of it is certified, in words."""
    capacity: NotNegativeOf[Estimate[Number]]
    """Requests per second that it serves at most."""
    agreement: Proportion
    """Share of its tokens that are the full model's, as replayed where nothing holds rows back."""
    asks_at: tuple[Whole, ...] | None = None
    """Rows that decode in a step in which some exit is asked; None without exits."""

    @property
    def certified(self) -> bool:
        """Whether all that it decodes with is; what is not pays at no load."""
        return NOT_CERTIFIED not in self.certificate


@dataclass(frozen=True)
class PayingInterval:
    """Rates between which a contender pays; None where the rates that were tried end."""

    low: float | None
    high: float | None
    benefit: Benefit

    def __str__(self) -> str:
        low, high = (None if end is None else rate_text(end) for end in (self.low, self.high))
        if low is None or high is None:
            return f"below {high}" if low is None else f"above {low}"
        return f"from {low} to {high}"


@dataclass(frozen=True)
class ServedAside:
    """A figure as it was predicted and as it was served, at one rate."""

    contender: str
    rate: Positive
    figure: str
    predicted: Number
    served: Number

    @property
    def error(self) -> float:
        """Predicted over served, less 1."""
        return self.predicted / self.served - 1.0 if self.served else 0.0


@dataclass(frozen=True)
class LoadExecution:
    """Requests that were really served, in turns, beside what was predicted of the same demands.

    a_a: seconds of the full model's steps over those of the same once more. own: seconds of our loop at full
    depth over those of transformers' own, by requests at once. clock: what seconds are of. drift: seconds of
    plain steps over those that they were priced at, by which all prices are scaled.
    """

    points: tuple[LoadPoint, ...]
    compared: tuple[ServedAside, ...]
    a_a: PositiveOf[Estimate[Number]]
    own: Mapping[str, Number]
    clock: str
    drift: Number
    circumstances: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """Contenders under load.

    padded: attention reads the longest row's context for every row. asked: options by their
    names. floor: the agreement that a rival without exits has to keep, None for any.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("answer",)

    model: str
    workload: str
    machine: str
    padded: bool
    asked: Mapping[str, Any]
    floor: Proportion | None
    servers: Annotated[tuple[LoadServer, ...], MinLen(1)]
    rates: tuple[Positive, ...]
    points: tuple[LoadPoint, ...]
    notes: tuple[str, ...]
    execution: LoadExecution | None = None
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"LoadResult({self.model} on {self.machine}: {self.answer})"

    @property
    def worth(self) -> float:
        """What exits must gain to be worth it."""
        return float(self.asked["worth"])

    def of(self, contender: str) -> list[LoadPoint]:
        """A contender at every rate, as predicted."""
        return [point for point in self.points if point.contender == contender]

    def decided_on(self, contender: str) -> list[LoadPoint]:
        """The points that an answer is of: served ones where the load was served, else predicted ones."""
        if self.execution is None:
            return self.of(contender)
        return [point for point in self.execution.points if point.contender == contender]

    @property
    def with_exits(self) -> tuple[LoadServer, ...]:
        """The contenders that the question is about."""
        return tuple(server for server in self.servers if server.role in ("policy", "ladder"))

    def paying(self, contender: str) -> tuple[PayingInterval, ...]:
        """From where to where a contender pays, ascending; nowhere without a certificate."""
        return self._faster(contender) if self._server(contender).certified else ()

    def _faster(self, contender: str) -> tuple[PayingInterval, ...]:
        """From where to where it is faster by what is worth it."""
        return paying_intervals(self.decided_on(contender), self.worth)

    def _server(self, contender: str) -> LoadServer:
        return next(server for server in self.servers if server.name == contender)

    @property
    def best(self) -> LoadServer | None:
        """The contender with exits that is certified, is faster at most rates, and gains most."""

        def gain(server: LoadServer) -> tuple[bool, int, float]:
            points = self.decided_on(server.name)
            ratios = [math.log(point.ratio.value) for point in points if point.ratio is not None]
            faster = sum(point.is_faster(self.worth) for point in points)
            return server.certified, faster, sum(ratios) / max(1, len(ratios))

        return max(self.with_exits, key=gain, default=None)

    @property
    def answer(self) -> str:
        """At which loads exits pay, of the best contender that has them."""
        return "no exits were asked about" if self.best is None else self.answer_of(self.best.name)

    def answer_of(self, contender: str) -> str:
        """The same of one: "pays below 1.4 and above 9 requests/s: the gain is latency, then capacity"."""
        intervals, server = self._faster(contender), self._server(contender)
        points = self.decided_on(contender)
        if not intervals:
            if all(point.saturated for point in points):
                return "cannot be told: every rate that was tried is beyond what it serves"
            unasked = server.asks_at == ()
            why = ", since a check costs more than leaving saves, and nobody is asked" if unasked else ""
            return f"does not pay at any load{why}"
        said = " and ".join(map(str, intervals))
        if intervals[0].low is intervals[0].high is None:
            rates = [point.rate for point in points]
            said = f"at every load that was tried, {rate_text(min(rates))} to {rate_text(max(rates))}"
        if not server.certified:
            return (
                f"is inconclusive: it is faster {said} requests/s, but no certificate says what it keeps "
                f"({100 * server.agreement:.3g} % of the tokens, as replayed)"
            )
        gains = ", then ".join(dict.fromkeys(interval.benefit for interval in intervals))
        return f"pays {said} requests/s: the gain is {gains}"


def paying_intervals(points: Sequence[LoadPoint], worth: float) -> tuple[PayingInterval, ...]:
    """Runs of rates at which a contender is faster by what is worth it. points: of one, by rising rate.

    An end lies where the ratio would pass 1 + worth between two rates, on a straight line over their
    logarithms; in the middle where one of them has no ratio. What is gained is said of the outermost rate.
    """
    found = []
    for faster, run in itertools.groupby(range(len(points)), lambda place: points[place].is_faster(worth)):
        places = list(run)
        if faster:
            first, last = places[0], places[-1]
            low = _between(points[first - 1], points[first], worth) if first else None
            high = _between(points[last], points[last + 1], worth) if last + 1 < len(points) else None
            benefit = points[last if high is None else first].benefit
            found.append(PayingInterval(low, high, benefit or "latency"))
    return tuple(found)


def _between(low: LoadPoint, high: LoadPoint, worth: float) -> float:
    share = 0.5
    if low.ratio is not None and high.ratio is not None:
        left, right = (math.log(ratio / (1.0 + worth)) for ratio in (low.ratio.value, high.ratio.value))
        share = left / (left - right) if left * right < 0 else share
    return float(low.rate ** (1.0 - share) * high.rate**share)


def rate_text(rate: float) -> str:
    """Requests per second in two digits."""
    return f"{rate:.2g}" if rate < 100 else f"{rate:.0f}"


LOADS = SealedFile(
    LoadResult,
    "this is no file of offramp load",
    "ask again: offramp load TRACE --policy P -o FILE",
    version=1,
    kind="load",
    under="result",
)
