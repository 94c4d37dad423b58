"""What was decoded for real: the policies, their forecasts, and the measurement they stand on."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.decoding.measurement.results import BenchResult, Contender, Forecast, FreeRunning, Interval


@dataclass(frozen=True)
class DecodedPolicy:
    """One policy that was decoded with its skipped layers not executed.

    contender: its name in the measurement. kv: how later tokens find the keys and values of skipped layers.
    floor: that it was chosen for. why: how it came to be chosen, in words. free_running: None if its answers
    were not judged.
    """

    contender: str
    policy: str
    kv: str
    why: str
    floor: float | None = None
    forecast: Forecast | None = None
    free_running: FreeRunning | None = None


@dataclass(frozen=True)
class Decoded:
    """One workload's measurement: everything in `bench` took turns on the same prompts.

    policies: the main one first, then those of other floors. measured_on: date and time (UTC) at which it
    ended.
    """

    workload: str
    bench: BenchResult
    policies: tuple[DecodedPolicy, ...]
    measured_on: str

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

    def speedup(self, policy: DecodedPolicy) -> Interval | None:
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
