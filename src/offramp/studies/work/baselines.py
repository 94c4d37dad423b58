"""Baselines of a text timed in turns, before anything is certified: what exits have to be faster than."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offramp.defaults import FLOORS
from offramp.errors import DamagedFileError, DiskFullError, OfframpError
from offramp.kit.given import given_of
from offramp.kit.numbers import Number
from offramp.studies.work.inputs import TurnsWork, heads_of, profile_of, trace_of
from offramp.studies.work.work import Needed, WorkContext
from offramp.timing.accelerations import PROMPT_LOOKUP
from offramp.timing.results import LOOKUP, PLAIN, BenchResult
from offramp.tuning.baseline import Baseline

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.scoring.estimate import Estimate
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes
    from offramp.timing.decoder import Setting
    from offramp.tracing.trace import Trace
    from offramp.workloads.workload import Workload

NEW_TOKENS = 8
"""Of each answer."""
BASELINES_PROMPTS = 4
"""As many as show that one is slower than another."""
JUDGED, FAR, FAR_ELSEWHERE = 24, 0.1, 0.2
"""Prompts that a baseline is judged on, and how far below the loosest floor it may be on the timed ones: on
those of this text, and of another."""
BASELINES_SECONDS = 35.0
"""That it takes, about, on two cores: what is timed is little, and all of it."""


@dataclass(frozen=True)
class TimedBaselines:
    """What takes what, and keeps what."""

    bench: BenchResult | None
    """Of the full model with its output head cut, beside what else has no exits; None without a timing."""
    elsewhere: bool = False
    """Whether they were timed on another text, and what they keep was judged on this one: then without those
    whose speed depends on the text."""
    why_none: str | None = None
    """None if there is one."""

    @property
    def known(self) -> tuple[Baseline, ...]:
        """The fastest first; none without a timing, or where something is wrong with it."""
        return () if self.bench is None or self.bench.defects else known_of(self.bench)

    def slower(self, floors: Iterable[float]) -> dict[str, str]:
        """What need not be timed again: each of the baselines beside plain decoding that is clearly slower
        than plain decoding, or than another one at every floor, by the name of that at the strictest."""
        timed = {} if self.bench is None else {one.name: one for one in self.bench.contenders}
        limits = {name: one.ratio.low for name, one in timed.items() if one.ratio is not None}
        found = dict[str, str]()
        for name, contender in timed.items():
            high = None if contender.ratio is None else contender.ratio.high
            if not contender.full_depth or contender.role == PLAIN or high is None:
                continue
            clearly = [one for one in self.known if (limits[one.name] or 0.0) > high]
            faster = [best_at(clearly, [floor]) for floor in sorted(floors, reverse=True)]
            if all(faster):
                found[name] = faster[0][0]
            elif self.bench is not None and high < 1.0:
                found[name] = self.bench.plain
        return found


@dataclass(frozen=True, kw_only=True)
class BaselinesWork(TurnsWork[TimedBaselines]):
    """Times the baselines by rule on a few prompts.

    Where one of them is faster than any policy is predicted to be, nothing need be certified.

    What they keep is judged on more prompts, untimed: of the fastest first, until one keeps every floor.

    beside: these, by name. before: the same of another text; then only what they keep is judged here.
    """

    kind = "baselines"

    trace: Needed
    profile: Needed | None = None
    heads: Needed | None = None
    before: Needed | None = None
    beside: tuple[str, ...]
    floors: tuple[Number, ...] = FLOORS

    def cost(self, sizes: Sizes) -> TaskCost:
        """They decode in turns, for so long."""
        return self.cost_of_turns(sizes, NEW_TOKENS, 1 + len(self.beside))

    def run(self, context: WorkContext) -> TimedBaselines:
        """Time them. Raises OfframpError for inputs that are not the recipe's."""
        self.require_here()
        machine = None if self.profile is None else profile_of(context, self.profile)
        before = None if self.before is None else context.result(BaselinesWork, self.before).bench
        model, heads = self.load_model(context), heads_of(context, self.heads)
        workload, trace = self.load_workload(), trace_of(context, self.trace)
        try:
            setting, prompts = self._setting(model, heads, workload, trace)
            # What is not given as token ids alone is not decoded side by side.
            alone = any(map(given_of, prompts))
            if before is None or before.defects or alone:
                return TimedBaselines(self._timed(setting, () if alone else prompts, machine))
            return TimedBaselines(self._judged(setting, prompts, before), elsewhere=True)
        except (DiskFullError, DamagedFileError):
            raise  # of today's disk, and no answer about the model
        except OfframpError as error:  # a family that is only traced, or no prompts
            return TimedBaselines(None, why_none=error.what)

    def _setting(
        self, model: Model, heads: ExitHeads | None, workload: Workload, trace: Trace
    ) -> tuple[Setting, Sequence[Sequence[int]]]:
        """What they share, with the prompts that are timed, and all that are judged."""
        from offramp.decoding.openings import pick_prompts
        from offramp.decoding.options import DecodingOptions
        from offramp.timing.bench import settle
        from offramp.timing.contenders import CUT_HEAD

        prompts = pick_prompts(
            model, workload, trace, JUDGED, new_tokens=NEW_TOKENS, seed=self.seed, heads=heads
        ).ids
        cell = DecodingOptions.read(CUT_HEAD, heads=heads, new_tokens=NEW_TOKENS).for_task(workload.name)
        return settle(model, [cell], prompts=prompts[: self.prompts], task=workload.name), prompts

    def _timed(
        self, setting: Setting, prompts: Sequence[Sequence[int]], machine: TimingsProfile | None
    ) -> BenchResult:
        """Their timing, judged on these prompts too. Raises what `offramp.timing` raises."""
        from offramp.timing.accelerations import read_beside
        from offramp.timing.bench import judge_measurement, kept_in_batch, run
        from offramp.timing.contenders import BASELINES_ALONE
        from offramp.timing.stopping import TimeLimits

        extent = replace(BASELINES_ALONE, beside=read_beside(self.beside, setting.model.dtype))
        limits = TimeLimits(None, self.rounds)
        measured = run(setting, limits=limits, extent=extent, seed=self.seed, machine=machine)
        bench = judge_measurement(measured, None, predicted={}, seed=self.seed).result.without_date()
        hopeful = self._hopeful(bench, FAR)
        if not hopeful or len(prompts) <= self.prompts:
            return bench
        decoders = measured.decoders
        return _with_kept(
            bench, kept_in_batch(setting, decoders, hopeful, prompts, max(self.floors), seed=self.seed)
        )

    def _judged(self, setting: Setting, prompts: Sequence[Sequence[int]], before: BenchResult) -> BenchResult:
        """A timing on another text with what is kept on these prompts."""
        from offramp.timing.accelerations import read_beside
        from offramp.timing.bench import kept_in_batch
        from offramp.timing.combined_contenders import contenders_beside
        from offramp.timing.contenders import BASELINES_ALONE, candidates_of
        from offramp.timing.decoder import parted
        from offramp.timing.stopping import Budget

        hopeful = self._hopeful(before, FAR_ELSEWHERE)
        asked = read_beside([text for text in self.beside if text in hopeful], setting.model.dtype)
        extent = replace(BASELINES_ALONE, beside=asked)
        beside = contenders_beside(setting, asked, Budget(None))
        decoders, _ = parted([*beside, *candidates_of(setting, extent)])
        kept = kept_in_batch(setting, decoders, hopeful, prompts, max(self.floors), seed=self.seed)
        same = [one for one in before.contenders if LOOKUP not in one.name and PROMPT_LOOKUP not in one.name]
        return _with_kept(replace(before, contenders=tuple(same)), kept)

    def _hopeful(self, bench: BenchResult, far: float) -> list[str]:
        """Baselines that may keep a floor, the fastest first."""
        return [one.name for one in known_of(bench) if one.kept >= min(self.floors) - far]


def _with_kept(bench: BenchResult, kept: Mapping[str, Estimate[float]]) -> BenchResult:
    contenders = [
        replace(one, executed_agreement=kept.get(one.name, one.executed_agreement))
        for one in bench.contenders
    ]
    return replace(bench, contenders=tuple(contenders))


def known_of(bench: BenchResult) -> tuple[Baseline, ...]:
    """The baselines of a timing whose output the full model judged, the fastest first."""
    found = [
        Baseline(contender.name, 1.0 / (ratio.low or ratio.value), contender.executed_agreement.value)
        for contender in bench.contenders
        if contender.full_depth
        and contender.left_out is None
        and (ratio := contender.ratio) is not None
        and ratio.value is not None
        and contender.executed_agreement is not None
        and contender.executed_agreement.value is not None
    ]
    return tuple(sorted(found, key=lambda baseline: baseline.cost))


def best_at(baselines: Sequence[Baseline], floors: Iterable[float]) -> tuple[str, ...]:
    """Of each floor the fastest that keeps it, by name; each once."""
    best = (next((one for one in baselines if one.kept >= floor), None) for floor in floors)
    return tuple(dict.fromkeys(one.name for one in best if one is not None))
