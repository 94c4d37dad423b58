"""What one run hands to the report: models, workloads, scores, verdicts and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offramp.commands import RunCall
from offramp.costs.machine import Machine
from offramp.costs.token import TokenCosts
from offramp.decoding.measurement.combined import CombineResult
from offramp.decoding.measurement.results import BenchResult, Contender, Forecast, FreeRunning
from offramp.errors import InputError
from offramp.policies.frontier import Frontier
from offramp.scoring.card import ScoreCard
from offramp.scoring.estimate import Estimate
from offramp.studies.work.passage import Passage, PredictionGrid
from offramp.studies.work.training_cost import Training
from offramp.tracing.trace import Trace
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer, RankedPolicy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict
from offramp.workloads.workload import Mode


@dataclass(frozen=True)
class Timing:
    """A figure of the stopwatch with a 95 % interval, and the circumstances it was taken in.

    threads: compute threads. load: the machine's load average at the start.
    """

    value: float
    low: float | None
    high: float | None
    threads: int
    load: float


@dataclass(frozen=True)
class WorkloadResult:
    """Everything known about one workload.

    seconds: wall time of tracing and scoring it. league: families of policies at every floor, in any order.
    tuned: the tuner's answer, one per floor tried. machines: the best policy on other machines and batch
    sizes. break_even: what would have to change for a policy to pay. replayed: the verdicts by replay alone,
    which those that are shown are settled from.
    """

    name: str
    mode: Mode
    trace: Trace
    card: ScoreCard
    frontiers: tuple[Frontier, ...]
    verdicts: tuple[Verdict, ...]
    passage: Passage
    grid: PredictionGrid
    notes: tuple[str, ...]
    trace_folder: str
    seconds: float
    league: tuple[RankedPolicy, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    machines: tuple[MachineAnswer, ...] = ()
    break_even: tuple[BreakEven, ...] = ()
    replayed: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class DecodedPolicy:
    """One policy that was decoded with its skipped layers not executed.

    contender: its name in the measurement. kv: how later tokens find the keys and values of skipped layers.
    floor: that it was chosen for. why: how it came to be chosen, in words. free_running: None if its answers
    were not judged. answer: its text for `Decoded.prompt`, None if that was not kept.
    """

    contender: str
    policy: str
    kv: str
    why: str
    floor: float | None = None
    forecast: Forecast | None = None
    free_running: FreeRunning | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Decoded:
    """One workload's measurement: everything in `bench` took turns on the same prompts.

    policies: the main one first, then those of other floors. measured_on: date and time (UTC) at which it
    ended. prompt, plain_answer: the texts of one prompt and of the full model's answer, None if not kept.
    """

    workload: str
    bench: BenchResult
    policies: tuple[DecodedPolicy, ...]
    measured_on: str
    prompt: str | None = None
    plain_answer: str | None = None

    @property
    def sound(self) -> bool:
        """Whether the measurement has no defect: noise is none, it makes intervals wide."""
        return not self.bench.defects

    @property
    def chosen(self) -> DecodedPolicy | None:
        """The main policy of this text, None if none was decoded."""
        return next(iter(self.policies), None)

    def timed(self, policy: DecodedPolicy) -> Contender:
        """The policy's entry in the measurement."""
        return self.bench.contender(policy.contender)

    def speedup(self, policy: DecodedPolicy) -> Estimate[float] | None:
        """Net speedup over the fastest plain decoder of the measurement, None if the policy was left out."""
        return self.timed(policy).ratio

    @property
    def plain_seconds(self) -> float | None:
        """Seconds per token of the fastest plain decoder of the measurement."""
        timed = self.bench.contender(self.bench.plain).seconds_per_token
        return None if timed is None else timed.value


@dataclass(frozen=True)
class Progress:
    """How far a run had come when a page was written. done, running, to_come: stages in words."""

    done: tuple[str, ...]
    running: str
    to_come: tuple[str, ...]


@dataclass(frozen=True)
class RunResult:
    """One run of `offramp run`.

    provenance: JSON values by name (versions, fingerprints, machine, date); shown in this order. The names
    model, layers, command and workloads are the summary's own and are replaced there.
    measured: stopwatch figures by name; "plain_seconds_per_token" is that of plain decoding.
    command: the command line that repeats the run.
    hardware: the machine that speed is predicted for, made by `price_list`; None if
    no profile was at hand.
    heads: what was fitted on documents of its own, None if nothing was. Keys: "documents" (fitted on),
    "exits", what they are read by (see `offramp.tracing.described_heads.read_by`), "lens_explained" (mean
    share of the last state's variance that a lens explains on held-out documents, None if not known),
    "imported" (whether others trained them) and "classifiers": by name, "exits", "better_than_chance" (at how
    many of them, on held-out documents), "auroc" (median, or None).
    decoding: what was decoded for real, one per workload. not_decoded: by workload, why nothing was, or not
    all of it. progress: how far the run had come; None when it is over.
    combined: what `offramp bench --combine` left in the run's folder, None without it. training: of the
    exits, None if none were trained.
    """

    model_name: str
    layers: int
    workloads: tuple[WorkloadResult, ...]
    provenance: Mapping[str, Any]
    measured: Mapping[str, Timing] | None
    command: str
    hardware: Mapping[str, Any] | None = None
    heads: Mapping[str, Any] | None = None
    decoding: tuple[Decoded, ...] = ()
    not_decoded: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = None
    combined: CombineResult | None = None
    training: Training | None = None
    call: RunCall | None = None
    """What it was asked for, which further commands follow from; None of an older run."""
    folder: str = ""
    """Where it lies, as it was named."""
    minutes: float | None = None
    """Of decoding for real that it was given, None where nothing was to be decoded."""

    def decoded(self, workload: str) -> Decoded | None:
        """What was decoded for real on a workload, None if nothing was."""
        return next((decoded for decoded in self.decoding if decoded.workload == workload), None)

    @property
    def plain_seconds_per_token(self) -> Timing | None:
        """Measured seconds per token of plain decoding, None if it was not timed."""
        return None if self.measured is None else self.measured.get("plain_seconds_per_token")


def price_list(
    machine: Machine,
    costs: TokenCosts,
    *,
    self_check_ratio: float | None = None,
    threads: int | None = None,
    load: float | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """`RunResult.hardware` of a machine whose prices of one token are `costs`, in seconds.

    self_check_ratio: predicted over measured seconds of plain decoding. threads, load: when it was measured.
    note: how the timings were come by, None where nothing needs to be said.

    Raises InputError for prices in another unit, or of a step of several sequences.
    """
    if costs.unit != "seconds" or costs.batch != 1:
        raise InputError(
            f"a price list in {costs.unit} at batch {costs.batch} cannot be shown in seconds per token",
            where=machine.name,
            fix="give the machine's token costs in seconds at batch 1",
        )
    return {
        "name": machine.name,
        "source": machine.source,
        "layer_seconds": float(costs.layers.mean()),
        "head_seconds": float(costs.head),
        "probe_seconds": {kind: float(seconds) for kind, seconds in costs.probes.items()},
        "overhead_seconds": float(costs.overhead),
        "plain_seconds_per_token": float(costs.plain),
        "key_value_seconds": float(costs.key_value.mean()),
        "self_check_ratio": self_check_ratio,
        "threads": threads,
        "load": load,
        "note": note,
    }
