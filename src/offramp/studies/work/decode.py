"""Policies of one text decoded for real, timed in turns beside plain decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offramp.decoding.free_running import FreeRunning
from offramp.errors import OfframpError
from offramp.kit.defaults import LOCAL
from offramp.policies.figures import shared_fields
from offramp.scoring.estimate import Estimate
from offramp.studies.entries import AUTO
from offramp.studies.work.context import Context
from offramp.studies.work.decoding_choice import (
    Choice,
    best_of_ranking,
    of_verdicts,
    prompts_within,
    seconds_after,
    seconds_for,
    within_budget,
)
from offramp.studies.work.inputs import (
    TurnsWork,
    heads_of,
    profile_of,
    require_this_machine,
    trace_of,
)
from offramp.studies.work.league import LeagueWork, Ranking
from offramp.studies.work.tune import TuneWork
from offramp.studies.work.work import Needed
from offramp.timing.results import BenchResult, Forecast
from offramp.tuning.splits import split_documents
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Speed, TimedPolicy, Verdict, judged_policy, settle_all

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.decoding.openings import Prompts
    from offramp.models.model import Model
    from offramp.policies.replay import ReplayResult
    from offramp.studies.estimates import Sizes
    from offramp.studies.task import TaskCost
    from offramp.timing.bench import Measurement
    from offramp.tracing.trace import Trace

STRATEGIES = ("propagate", "recompute")
"""For K and V of skipped layers: the ranking charges the first; the second is for families that refuse it."""

DRAFT_LENGTH = 1
"""Drafts before a verification: ordinary models reject most drafts, so that longer ones cost time."""
PARTS_OF = 1
"""Prompts on which the parts of a policy's tokens are timed."""
NO_STATIC_CACHE = (
    "plain decoding is the fastest of never exit and generate(); a static cache was not tried here"
)
NO_EXITS = "no policy of the ranking exits"
TOO_LONG = (
    "timing it would take too long (more seconds allow it); `offramp bench MODEL --policy FILE` times a "
    "policy on its own"
)


@dataclass(frozen=True, kw_only=True)
class DecodedChoice(Choice):
    """One policy that was decoded with its skipped layers not executed.

    contender: its name in the measurement. forecast, free_running: None of one that was left out.
    characters_per_token: of its answers, special tokens included, None without any. answer: the text of its
    answer to `Decoding.prompt`, None if that was not kept.
    """

    contender: str
    forecast: Forecast | None = None
    free_running: FreeRunning | None = None
    characters_per_token: float | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Decoding:
    """A measurement with every sample and forecast; None where nothing was decoded, and why.

    prompt, plain_answer: the texts of one prompt that all contenders decoded and of the full model's answer.
    verdicts: at every floor of the ranking, settled by the tuner's answers and this measurement.
    """

    bench: BenchResult | None
    chosen: tuple[DecodedChoice, ...] = ()
    characters_per_token: float | None = None
    why_nothing: str | None = None
    prompt: str | None = None
    plain_answer: str | None = None
    verdicts: tuple[Verdict, ...] = ()

    def timed(self, tuned: Tuned) -> TimedPolicy | None:
        """What the stopwatch said of the policy that a verdict is about (`judged_policy`); None if it was not
        timed, or with a defect."""
        bench, judged = self.bench, judged_policy(tuned)
        if bench is None or bench.defects:
            return None
        for choice in self.chosen:
            ratio = bench.contender(choice.contender).ratio
            if (choice.policy, choice.kv) == judged and ratio is not None:
                speed = Speed(
                    ratio.value, ratio.low, ratio.high, "measured", LOCAL, True, bench.seconds_spent
                )
                credit = bench.credit(choice.contender, tuned.floor.value)
                kept = None if choice.free_running is None else choice.free_running.agreement
                if credit is None or bench.untimed_rivals:
                    return TimedPolicy(
                        speed, kept=kept
                    )  # what needs no exits was not timed: it may be the best
                over = Estimate(credit.value, credit.low, credit.high)
                return TimedPolicy(speed, over, credit.over, kept)
        return None


@dataclass(frozen=True, kw_only=True)
class DecodeWork(TurnsWork[Decoding]):
    """Decodes policies: those of the verdicts where these were certified, else of the best of the ranking.

    certify, tune: the tuner's answers, which the measurement settles with the ranking's verdicts. profile:
    timings of this machine to predict with, None where verdicts are of another one. heads: that the trace is
    read through. best, floor: as of a study's table [decode].
    """

    kind = "decode"

    trace: Needed
    league: Needed
    certify: Needed | None = None
    tune: Needed | None = None
    profile: Needed | None = None
    heads: Needed | None = None
    best: int
    floor: float
    new_tokens: int | str

    def cost(self, sizes: Sizes) -> TaskCost:
        """It decodes in turns, for so long."""
        return self.cost_of_turns(sizes, self.new_tokens, self.best)

    def run(self, context: Context) -> Decoding:
        """Decode. Raises OfframpError if the model cannot be decoded layer by layer, or inputs are not the
        recipe's; and what `offramp.timing` raises.
        """
        self.require_here()
        machine = None if self.profile is None else profile_of(context, self.profile)
        if machine is not None:
            require_this_machine(self, machine.details["machine"])
        ranking, answers = context.result(LeagueWork, self.league), self.answers(context)
        decoding = self.decoding(context, machine, self.choices(ranking, answers))
        return replace(decoding, verdicts=settle_all(ranking.verdicts, answers, decoding.timed))

    def decoding(
        self, context: Context, machine: TimingsProfile | None, choices: Sequence[Choice]
    ) -> Decoding:
        """The measurement of some policies. Raises as `run`."""
        if not choices:
            return Decoding(None, why_nothing=NO_EXITS)
        model = self.load_model(context)
        fitting, refused = _able(model, choices)
        asked = {choice.kv for choice in choices}
        notes = tuple(f"{kv} is left out: {why}" for kv, why in refused.items() if kv in asked)
        return self._measured(context, model, machine, fitting, notes)

    def answers(self, context: Context) -> tuple[Tuned, ...]:
        """The tuner's, none where it was not asked."""
        from offramp.studies.work.certify import CertifyWork

        if self.certify is not None:
            return context.result(CertifyWork, self.certify).tuned
        return () if self.tune is None else context.result(TuneWork, self.tune).tuned

    def choices(self, ranking: Ranking, answers: Sequence[Tuned]) -> Sequence[Choice]:
        """What is to be decoded."""
        if self.certify is not None:
            return of_verdicts(ranking, answers)
        return best_of_ranking(ranking, floor=self.floor, count=self.best)

    def _measured(
        self,
        context: Context,
        model: Model,
        machine: TimingsProfile | None,
        choices: Sequence[Choice],
        notes: tuple[str, ...],
    ) -> Decoding:
        from offramp.decoding.openings import FEWEST_NEW_TOKENS, pick_prompts
        from offramp.decoding.options import DecodingOptions
        from offramp.timing.answers import TimeLimits
        from offramp.timing.bench import run, settle
        from offramp.timing.contenders import SHORT
        from offramp.timing.judged import judge_measurement, predict_cells

        trace, workload = trace_of(context, self.trace), self.load_workload()
        heads, seconds = heads_of(context, self.heads), self.seconds
        new_tokens = FEWEST_NEW_TOKENS if isinstance(self.new_tokens, str) else self.new_tokens
        prompts = pick_prompts(
            model, workload, trace, self.prompts, new_tokens=new_tokens, seed=self.seed, heads=heads
        )
        if self.new_tokens == AUTO:
            plain = _plain_seconds(model, machine, prompts)
            kept, new_tokens = within_budget(choices, plain, seconds)
            if not kept:
                return Decoding(None, why_nothing=TOO_LONG)
            if len(kept) < len(choices):
                others = ", ".join(str(choice.policy) for choice in choices[1:])
                notes = (*notes, f"policies of other floors are left out, it would take too long: {others}")
            choices = kept
            whole = max(seconds, seconds_for(len(choices), plain, new_tokens))
            count = min(len(prompts.ids), prompts_within(len(choices), plain, new_tokens, whole))
            seconds = whole - seconds_after(len(choices), plain, new_tokens, count)
        if model.context_length is not None:
            new_tokens = min(new_tokens, model.context_length - max(map(len, prompts.ids)))
        options = [
            DecodingOptions.read(
                choice.policy, kv=choice.kv, heads=heads, draft_length=DRAFT_LENGTH, new_tokens=new_tokens
            ).for_task(workload.name)
            for choice in choices
        ]
        setting = settle(model, options, prompts=prompts.ids, task=workload.name)
        predicted: Mapping[str, ReplayResult] = {}
        if machine is not None:
            unseen = unseen_part(trace, self.seed)
            predicted = predict_cells(setting, unseen, machine, where_possible=True)
        measured = run(setting, limits=TimeLimits(seconds, self.rounds), extent=SHORT, seed=self.seed)
        judged = judge_measurement(
            measured,
            machine,
            predicted=predicted,
            parts_of=PARTS_OF,
            notes=(NO_STATIC_CACHE, *notes, *_prompt_notes(prompts, self.prompts)),
            seed=self.seed,
        )
        return _decoding(model, judged, choices, [cell.name for cell in options])


def unseen_part(trace: Trace, seed: int) -> Trace:
    """The documents that no policy was chosen on, all of them where there are none. seed: of the choice."""
    judging = split_documents(trace, seed)[1]
    return trace.subset(judging) if len(judging) else trace


def _prompt_notes(prompts: Prompts, wanted: int) -> list[str]:
    """What to bear in mind of the prompts."""
    count = len(prompts.ids)
    notes = [] if count >= wanted else [f"{count} of {wanted} prompts were at hand"]
    if not prompts.unseen:
        notes.append("the prompts are of documents that policies were chosen on: there are no others")
    return notes


def _plain_seconds(model: Model, machine: TimingsProfile | None, prompts: Prompts) -> float:
    """About how long a token of plain decoding takes here. Raises ModelError if it cannot be told."""
    from offramp.timing.decoder import generate_repeatedly

    if machine is not None:
        return float(machine.token_costs(model.shape, float(len(prompts.ids[0]))).plain)
    (timed,) = generate_repeatedly(model, prompts.ids[0], new_tokens=4, repeats=1)
    return timed.seconds_per_token


def _able(model: Model, choices: Sequence[Choice]) -> tuple[list[Choice], dict[str, str]]:
    """The policies whose strategy for K and V the model's family allows, and why not the other strategies.

    One that asks for none takes the first of STRATEGIES that is allowed.

    Raises OfframpError if the model cannot be decoded layer by layer, or with none of the policies.
    """
    from offramp.decoding.engine.build import engine_of

    able = engine_of(model).abilities
    asked = dict.fromkeys(kv for choice in choices for kv in ((choice.kv,) if choice.kv else STRATEGIES))
    reasons = {kv: able.reason(kv) for kv in asked}
    usual = next((kv for kv in STRATEGIES if kv in reasons and reasons[kv] is None), STRATEGIES[0])
    fitting = [replace(choice, kv=choice.kv or usual) for choice in choices]
    fitting = [choice for choice in fitting if reasons[choice.kv] is None]
    why = able.reason("never_exit")
    if not fitting and why is None:
        why = f"the model's skipped layers cannot be made up for: {next(iter(reasons.values()))}"
    if why is not None:
        raise OfframpError(why, where=model.shown_name, fix="leave this model out of [decode]")
    return fitting, {kv: why for kv, why in reasons.items() if why is not None}


def _decoding(
    model: Model, measured: Measurement, choices: Sequence[Choice], names: Sequence[str]
) -> Decoding:
    answers = _answers(model, measured)
    chosen = tuple(
        DecodedChoice(
            **shared_fields(choice, Choice),
            contender=name,
            forecast=measured.forecasts.get(name),
            free_running=measured.free_running.get(name),
            characters_per_token=_characters_per_token(model, measured, name),
            answer=answers.get(name),
        )
        for choice, name in zip(choices, names, strict=True)
    )
    # When it was measured is for the journal; how busy the machine was is part of what was measured.
    circumstances = {name: one for name, one in measured.result.circumstances.items() if name != "date"}
    bench = replace(measured.result, circumstances=circumstances)
    return Decoding(
        bench,
        chosen,
        _characters_per_token(model, measured, measured.result.plain),
        prompt=answers.get(PROMPT),
        plain_answer=answers.get(measured.result.plain),
    )


PROMPT = ""
"""Stands for the prompt itself among texts by contender."""


def _answers(model: Model, measured: Measurement) -> dict[str, str]:
    """The texts of the first prompt that every contender answered, and of their answers, by contender."""
    from offramp.timing.judged import prompts_and_answers

    found: dict[str, str] = {}
    shared = set.intersection(*(set(batches) for batches in measured.decoded.values()))
    if not shared:
        return found
    place = min(shared)
    for name, batches in measured.decoded.items():
        prompts, answers = prompts_and_answers(measured.setting, {place: batches[place]})
        found[PROMPT] = model.tokenizer.decode(prompts[0], skip_special_tokens=True)
        found[name] = model.tokenizer.decode(answers[0], skip_special_tokens=True)
    return found


def _characters_per_token(model: Model, measured: Measurement, name: str) -> float | None:
    """Characters of a contender's answers over their new tokens, special ones included; None without any."""
    decoded = measured.decoded.get(name, {}).values()
    answers = [tokens for one in decoded for tokens in one.tokens]
    tokens = sum(map(len, answers))
    characters = sum(len(model.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers)
    return characters / tokens if tokens else None
