"""What one run hands to the report: models, workloads, scores, verdicts, heads, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.commands import RunCall
from offramp.costs.token import TokenCosts
from offramp.defaults import DEFAULT_WORKLOADS
from offramp.errors import InputError
from offramp.heads.described import read_by, reading_parts
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.numbers import Count, NotNegative, Proportion, Whole
from offramp.policies.frontier import Frontier
from offramp.scoring.card import ScoreCard
from offramp.studies.work.decode import DecodedChoice, DecodedPolicies
from offramp.studies.work.heads import Training
from offramp.studies.work.trace import Passage
from offramp.timing.prediction import PredictionVerdict, when_it_counts
from offramp.timing.results import CombineResult, Contender, Timing
from offramp.tracing.trace import Trace
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer, RankedPolicy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict
from offramp.workloads.workload import Mode


@dataclass(frozen=True)
class ClassifierQuality:
    """How well a classifier does on documents that fitting did not see."""

    exits: Whole
    """That have one."""
    better_than_chance: Whole
    """At how many of them it is."""
    auroc: Proportion | None
    """Their median, None where it is undefined."""


@dataclass(frozen=True)
class HeadsSummary:
    """What was fitted on documents of its own, or imported; of several texts the least that holds of each."""

    documents: Whole
    exits: Whole
    reading: tuple[str, ...]
    """What exits are read through, in words, nothing where it is the model's own head."""
    lens_explained: float | None
    """Mean share of the last state's variance that a lens explains on held-out documents; None: not known."""
    classifiers: Mapping[str, ClassifierQuality]
    imported: bool = False
    """Whether others trained them."""


def summarised_heads(several: Sequence[ExitHeads]) -> HeadsSummary | None:
    """What the page shows of fitted heads: of those of all texts the least that holds for each."""
    if not several:
        return None
    first = several[0]
    lenses = [heads.lens for heads in several if heads.lens is not None]
    explained = [lens.explained for lens in lenses if lens.explained is not None]
    return HeadsSummary(
        documents=sum(len(ids) for heads in several for ids in heads.seen_documents.values()),
        exits=len(first.exits),
        reading=tuple(reading_parts(read_by(first))),
        lens_explained=min((float(np.mean(shares)) for shares in explained), default=None),
        classifiers={name: _quality(several, name) for name in first.classifiers},
        imported="imported" in first.provenance,
    )


def _quality(several: Sequence[ExitHeads], name: str) -> ClassifierQuality:
    classifiers = [heads.classifiers[name] for heads in several]
    medians = (_median(classifier.auroc) for classifier in classifiers)
    return ClassifierQuality(
        exits=len(several[0].exits),
        better_than_chance=min(int(np.sum(classifier.better_than_chance)) for classifier in classifiers),
        auroc=min((median for median in medians if median is not None), default=None),
    )


def _median(values: NDArray[np.float64]) -> float | None:
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if defined.size else None


@dataclass(frozen=True)
class WorkloadResult:
    """Everything known about one workload."""

    name: str
    mode: Mode
    trace: Trace
    card: ScoreCard
    frontiers: tuple[Frontier, ...]
    verdicts: tuple[Verdict, ...]
    passage: Passage
    notes: tuple[str, ...]
    trace_folder: str
    seconds: float
    """Wall time of tracing and scoring it."""
    league: tuple[RankedPolicy, ...] = ()
    """Families of policies at every floor, in any order."""
    tuned: tuple[Tuned, ...] = ()
    """The tuner's answer, one per floor tried."""
    machines: tuple[MachineAnswer, ...] = ()
    """The best policy on other machines and batch sizes."""
    break_even: tuple[BreakEven, ...] = ()
    """What would have to change for a policy to pay."""


@dataclass(frozen=True)
class Decoded(DecodedPolicies):
    """One workload's measurement: everything in `bench` took turns on the same prompts."""

    INLINE: ClassVar[tuple[str, ...]] = ("bench",)
    READ_OFF: ClassVar[tuple[str, ...]] = ("policies", "prediction_counts")
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("chosen", "characters_per_token", "verdicts")

    workload: str = field(kw_only=True)

    @property
    def policies(self) -> tuple[DecodedChoice, ...]:
        """The main one first, then those of other floors."""
        return self.chosen

    @property
    def prediction_counts(self) -> PredictionVerdict | None:
        """Whether the predictions of this measurement count; None with fewer than three of them."""
        forecasts = [choice.forecast for choice in self.policies if choice.forecast is not None]
        predicted = [forecast for forecast in forecasts if forecast.predicted is not None]
        return None if len(predicted) < 3 else when_it_counts(predicted, defect=not self.sound)

    @property
    def sound(self) -> bool:
        """Whether the measurement has no defect: noise is none, it makes intervals wide."""
        return not self.bench.defects

    @property
    def main(self) -> DecodedChoice | None:
        """The main policy of this text, None if none was decoded."""
        return next(iter(self.policies), None)

    def contender_of(self, policy: DecodedChoice) -> Contender:
        """The policy's entry in the measurement."""
        return self.bench.contender(policy.contender)

    @property
    def plain_seconds(self) -> float | None:
        """Seconds per token of the fastest plain decoder of the measurement."""
        timed = self.bench.contender(self.bench.plain).seconds_per_token
        return None if timed is None else timed.value


@dataclass(frozen=True)
class RunProgress:
    """How far a run had come when a page was written. done, running, to_come: stages in words."""

    done: tuple[str, ...]
    running: str
    to_come: tuple[str, ...]


@dataclass(frozen=True)
class PriceList:
    """What a machine charges for one token at batch 1.

    Raises InputError for costs in another unit, or of a step of several sequences.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = (
        "layer_seconds",
        "head_seconds",
        "probe_seconds",
        "overhead_seconds",
        "plain_seconds_per_token",
        "key_value_seconds",
    )
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("costs",)

    name: str
    source: str
    costs: TokenCosts
    """In seconds."""
    self_check_ratio: float | None = None
    """Predicted over measured seconds of plain decoding."""
    threads: Count | None = None
    """When it was measured, as `load`."""
    load: float | None = None
    note: str | None = None
    """How the timings were come by, None where nothing needs to be said."""

    def __post_init__(self) -> None:
        if self.costs.unit != "seconds" or self.costs.batch != 1:
            raise InputError(
                f"a price list in {self.costs.unit} at batch {self.costs.batch} cannot be shown in seconds "
                "per token",
                where=self.name,
                fix="give the machine's token costs in seconds at batch 1",
            )

    @property
    def layer_seconds(self) -> NotNegative:
        """Of a layer, the mean of all."""
        return float(self.costs.layers.mean())

    @property
    def head_seconds(self) -> NotNegative:
        """Of the final norm and the output head."""
        return float(self.costs.head)

    @property
    def probe_seconds(self) -> Mapping[str, NotNegative]:
        """Of one check at an exit, by kind of probe."""
        return {kind: float(seconds) for kind, seconds in self.costs.probes.items()}

    @property
    def overhead_seconds(self) -> NotNegative:
        """Of what a step costs whatever it runs."""
        return float(self.costs.overhead)

    @property
    def plain_seconds_per_token(self) -> NotNegative:
        """Of the full model."""
        return float(self.costs.plain)

    @property
    def key_value_seconds(self) -> NotNegative:
        """Of what later tokens need of a skipped layer, the mean of all."""
        return float(self.costs.key_value.mean())


@dataclass(frozen=True)
class RunResult:
    """One run of `offramp run`."""

    model_name: str
    layers: int
    workloads: tuple[WorkloadResult, ...]
    provenance: Mapping[str, Any]
    """JSON values by name (versions, fingerprints, machine, date), shown in this order. The names model,
    layers, command and workloads are the summary's own and are replaced there."""
    plain_seconds_per_token: Timing | None
    """Measured, of plain decoding; None if it was not timed."""
    command: str
    """The command line that repeats the run."""
    hardware: PriceList | None = None
    """The machine that speed is predicted for; None if no profile was at hand."""
    heads: HeadsSummary | None = None
    """None if nothing was fitted."""
    decoding: tuple[Decoded, ...] = ()
    """What was decoded for real, one per workload."""
    not_decoded: Mapping[str, str] = field(default_factory=dict)
    """By workload, why nothing was, or not all of it."""
    progress: RunProgress | None = None
    """How far the run had come; None when it is over."""
    combined: CombineResult | None = None
    """What `offramp bench --combine` left in the run's folder, None without it."""
    training: Training | None = None
    """Of the exits, None if none were trained."""
    call: RunCall | None = None
    """What it was asked for, which further commands follow from; None of an older run."""
    folder: str = ""
    """Where it lies, as it was named."""
    minutes: float | None = None
    """Of decoding for real that it was given, None where nothing was to be decoded."""
    other_texts: tuple[str, ...] = ()
    """That earlier runs into the folder answered, and that are not shown."""

    @property
    def all_texts(self) -> str | None:
        """The command that shows those too; None without any, and of an older run."""
        if not self.other_texts or self.call is None:
            return None
        shown = self.call.options.get("workload", DEFAULT_WORKLOADS)
        return self.call.again(workload=[*shown, *self.other_texts])

    def decoded(self, workload: str) -> Decoded | None:
        """What was decoded for real on a workload, None if nothing was."""
        return next((decoded for decoded in self.decoding if decoded.workload == workload), None)
