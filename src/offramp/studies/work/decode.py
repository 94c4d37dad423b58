"""Policies of one text decoded for real, timed in turns beside plain decoding: which ones, and how long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from offramp.defaults import FEWEST_PROMPTS, LOCAL
from offramp.errors import OfframpError
from offramp.kit.given import given_of
from offramp.kit.numbers import NotNegative, Number, Positive, Whole
from offramp.policies.figures import PLAIN_DECODING, FreeRunning, shared_fields
from offramp.policies.policy import ExitPolicy
from offramp.studies.work.baselines import BaselinesWork, TimedBaselines, best_at
from offramp.studies.work.inputs import TurnsWork, heads_of, profile_of, require_this_machine, trace_of
from offramp.studies.work.league import LeagueWork, Ranking, fastest_exiting
from offramp.studies.work.tune import AnsweredWork
from offramp.studies.work.work import Needed, WorkContext
from offramp.timing.results import BenchResult, Forecast
from offramp.tuning.splits import split_documents
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Speed, TimedPolicy, Verdict, from_main, judged_policy, settle_all
from offramp.tuning.verdict_words import percent_down

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.decoding.openings import Prompts
    from offramp.models.model import Model
    from offramp.policies.replay import ReplayResult
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes
    from offramp.timing.bench import Measurement
    from offramp.timing.contenders import Extent
    from offramp.tracing.trace import Trace


CHARGED_KV = "propagate"
PROMPT_WORTH = 2.5
"""A prompt takes as long as so many plain tokens, about."""
LONGEST = 6.0
"""So many times the seconds that are asked for the smallest measurement that there is may take."""


@dataclass(frozen=True)
class DecodingChoice:
    """One policy to decode."""

    NOT_KEPT: ClassVar[tuple[str, ...]] = ("prices",)  # its contender keeps them

    family: str
    policy: ExitPolicy
    kv: str
    """Its strategy for K and V, "" for whichever the model's family allows."""
    why: str
    """How it came to be chosen, in words."""
    floor: Number
    """That it was chosen for."""
    predicted: Number | None = None
    """Its net speedup, None where the ranking does not have it."""
    prices: tuple[Positive, ...] = ()
    """Of what was decoded with it, as of a `Candidate`."""


def best_of_ranking(ranking: Ranking, *, floor: float, count: int) -> list[DecodingChoice]:
    """The fastest distinct policies of a ranking that a decoder can follow and that exit, at one floor.

    The same policy may be the best of several families: it counts once.
    """
    able = [
        DecodingChoice(entry.family, entry.policy, "", "one of the ranking's fastest", entry.floor, speed)
        for entry in ranking.entries
        if entry.reachable
        and entry.exits_early
        and math.isclose(entry.floor, floor)
        and (speed := entry.net_speedup.value) is not None
    ]
    distinct: dict[ExitPolicy, DecodingChoice] = {}
    for choice in sorted(able, key=lambda choice: (-(choice.predicted or 0.0), str(choice.policy))):
        distinct.setdefault(choice.policy, choice)
    return list(distinct.values())[:count]


def of_verdicts(ranking: Ranking, tuned: Sequence[Tuned]) -> list[DecodingChoice]:
    """The policies of a workload's verdicts, that of the main floor or of the nearest to it first.

    Of a floor where nothing is certified, the candidate that was tried last; where nothing was tuned, the
    policy that replay proposes. Without any, the fastest of the ranking that exits; empty if none does.
    """
    choices: dict[tuple[ExitPolicy, str], DecodingChoice] = {}
    for answer in sorted(tuned, key=lambda answer: from_main(answer.floor.value)):
        judged, floor = judged_policy(answer), percent_down(answer.floor.value)
        if judged is not None and judged not in choices:
            certified = answer.standing == "certified"
            why = f"certified at {floor} agreement" if certified else f"what was tried for {floor} agreement"
            own = (one.prices for one in answer.candidates if (one.policy, one.kv) == judged)
            choice = _choice(*judged, why, answer.floor.value)
            choices[judged] = replace(choice, prices=max(own, key=len, default=()))
    for verdict in () if tuned else sorted(ranking.verdicts, key=lambda verdict: from_main(verdict.floor)):
        replayed = (verdict.policy, verdict.kv or CHARGED_KV)
        if verdict.policy != PLAIN_DECODING and replayed not in choices:
            why = f"the replay's policy at {percent_down(verdict.floor)} agreement"
            choices[replayed] = _choice(*replayed, why, verdict.floor)
    if choices:
        return list(choices.values())
    entry = fastest_exiting(ranking.entries)
    if entry is None:
        return []
    why = (
        f"the best choice at {percent_down(entry.floor)} agreement is never to exit; this is the fastest "
        "policy of the ranking that exits"
    )
    return [_choice(entry.policy, CHARGED_KV, why, entry.floor)]


def _choice(policy: ExitPolicy, kv: str, why: str, floor: float) -> DecodingChoice:
    return DecodingChoice(policy.kind, policy, kv, why, floor)


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
class DecodedChoice(DecodingChoice):
    """One policy that was decoded with its skipped layers not executed.

    forecast, free_running: None of one that was left out.
    """

    contender: str
    """Its name in the measurement."""
    forecast: Forecast | None = None
    free_running: FreeRunning | None = None
    characters_per_token: NotNegative | None = None
    """Of its answers, special tokens included, None without any."""
    answer: str | None = None
    """The text of its answer to `DecodedPolicies.prompt`, None if that was not kept."""


@dataclass(frozen=True)
class NothingDecoded:
    """What is left where no policy was decoded."""

    why_nothing: str
    """A sentence."""
    verdicts: tuple[Verdict, ...] = ()
    """At every floor of the ranking, settled by the tuner's answers."""


@dataclass(frozen=True)
class DecodedPolicies:
    """A measurement with every sample and forecast.

    prompt, plain_answer: the texts of one prompt that all contenders decoded and of the full model's answer.
    """

    bench: BenchResult
    chosen: tuple[DecodedChoice, ...] = ()
    characters_per_token: NotNegative | None = None
    prompt: str | None = None
    plain_answer: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    """At every floor of the ranking, settled by the tuner's answers and this measurement."""

    def timed(self, tuned: Tuned) -> TimedPolicy | None:
        """What the stopwatch said of the policy that a verdict is about (`judged_policy`); None if it was not
        timed, or with a defect."""
        bench = self.bench
        if bench.defects:
            return None
        for choice in self.chosen:
            ratio = bench.contender(choice.contender).ratio
            if (choice.policy, choice.kv) != judged_policy(tuned) or ratio is None:
                continue
            speed = Speed(ratio.value, ratio.low, ratio.high, "measured", LOCAL, True, bench.seconds_spent)
            credit = bench.credit(choice.contender, tuned.floor.value)
            kept = None if choice.free_running is None else choice.free_running.agreement
            if credit is None or bench.untimed_rivals:
                # What needs no exits was not timed: it may be the best.
                return TimedPolicy(speed, kept=kept)
            return TimedPolicy(speed, credit.estimate, credit.over, kept)
        return None


DecodingResult = DecodedPolicies | NothingDecoded


@dataclass(frozen=True, kw_only=True)
class DecodeWork(TurnsWork[DecodingResult], AnsweredWork[DecodingResult]):
    """Decodes policies: those of the verdicts where these were certified, else of the best of the ranking.

    The measurement settles the ranking's verdicts with the tuner's answers. best, floor, beside: as of a
    study's table [decode], those by rule by name. by_rule: these. Where they were timed before, those stand
    beside that are the best at some floor.
    """

    kind = "decode"

    trace: Needed
    league: Needed
    profile: Needed | None = None
    """Timings of this machine to predict with, None where verdicts are of another one."""
    heads: Needed | None = None
    """That the trace is read through."""
    best: Whole
    floor: Number
    new_tokens: Whole
    beside: tuple[str, ...] = ()
    by_rule: tuple[str, ...] = ()
    baselines: Needed | None = None
    """Those that were timed before."""

    def cost(self, sizes: Sizes) -> TaskCost:
        """It decodes in turns, for so long."""
        return self.cost_of_turns(sizes, self.new_tokens, self.best + len(self.beside))

    def run(self, context: WorkContext) -> DecodingResult:
        """Decode. Raises OfframpError if the model cannot be decoded layer by layer, or inputs are not the
        recipe's; and what `offramp.timing` raises.
        """
        self.require_here()
        machine = None if self.profile is None else profile_of(context, self.profile)
        if machine is not None:
            require_this_machine(self, machine.details["machine"])
        ranking, answers = context.result(LeagueWork, self.league), self.answers(context)
        decoding = self.decoding(context, machine, self.choices(ranking, answers))
        timed = decoding.timed if isinstance(decoding, DecodedPolicies) else lambda tuned: None
        return replace(decoding, verdicts=settle_all(ranking.verdicts, answers, timed))

    def decoding(
        self, context: WorkContext, machine: TimingsProfile | None, choices: Sequence[DecodingChoice]
    ) -> DecodingResult:
        """The measurement of some policies. Raises as `run`."""
        if not choices:
            return NothingDecoded(NO_EXITS)
        model = self.load_model(context)
        fitting, refused = _able(model, choices)
        strategies = {choice.kv for choice in choices}
        notes = tuple(f"{kv} is left out: {why}" for kv, why in refused.items() if kv in strategies)
        return self._measured(context, model, machine, fitting, notes)

    def choices(self, ranking: Ranking, answers: Sequence[Tuned]) -> Sequence[DecodingChoice]:
        """What is to be decoded."""
        if self.certify is not None:
            return of_verdicts(ranking, answers)
        return best_of_ranking(ranking, floor=self.floor, count=self.best)

    def _measured(
        self,
        context: WorkContext,
        model: Model,
        machine: TimingsProfile | None,
        choices: Sequence[DecodingChoice],
        notes: tuple[str, ...],
    ) -> DecodingResult:
        from offramp.decoding.openings import FEWEST_NEW_TOKENS, pick_prompts
        from offramp.decoding.options import DecodingOptions
        from offramp.timing.bench import judge_measurement, predict_cells, run, settle
        from offramp.timing.contenders import SHORT
        from offramp.timing.stopping import TimeLimits

        trace, workload = trace_of(context, self.trace), self.load_workload()
        heads, new_tokens = heads_of(context, self.heads), self.new_tokens
        prompts = pick_prompts(
            model, workload, trace, self.prompts, new_tokens=new_tokens, seed=self.seed, heads=heads
        )
        if self.certify is not None:
            # Where time is short the first policy alone takes part, with those that every timing has.
            least = FEWEST_PROMPTS * (1 + len(SHORT.invited)) * (PROMPT_WORTH + FEWEST_NEW_TOKENS)
            if least * _plain_seconds(model, machine, prompts) > LONGEST * self.seconds:
                return NothingDecoded(TOO_LONG)
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
        extent = self._worth_timing(context, SHORT, model.dtype)
        limits = TimeLimits(self.seconds, self.rounds)
        prices = {
            cell.name: choice.prices
            for cell, choice in zip(options, choices, strict=True)
            if machine is not None and choice.prices
        }
        notes += tuple(
            f"{name}: its price is that of {len(each)} decoded documents, which the timed prompts correct"
            for name, each in prices.items()
        )
        measured = run(
            setting,
            limits=limits,
            extent=extent,
            seed=self.seed,
            judged=True,
            parts_of=PARTS_OF,
            machine=machine,
            prices=prices,
        )
        judged = judge_measurement(
            measured,
            machine,
            predicted=predicted,
            parts_of=PARTS_OF,
            notes=(NO_STATIC_CACHE, *notes, *_prompt_notes(prompts, self.prompts)),
            seed=self.seed,
        )
        return _decoding(model, judged, choices, [cell.name for cell in options])

    def _worth_timing(self, context: WorkContext, invited: Extent, dtype: str) -> Extent:
        """Whom the policies take turns with: of the baselines by rule those that may be the best at a floor,
        and of the others those that were not clearly slower than these; all if none is known."""
        from offramp.timing.accelerations import read_beside

        before, beside = TimedBaselines(None), self.beside
        if self.baselines is not None:
            before = context.result(BaselinesWork, self.baselines)
        floors = [verdict.floor for verdict in context.result(LeagueWork, self.league).verdicts]
        if before.known:
            best = best_at(before.known, floors)
            beside = tuple(text for text in beside if text not in self.by_rule or text in best)
        return replace(invited, beside=read_beside(beside, dtype), slower=before.slower(floors))


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


def _able(model: Model, choices: Sequence[DecodingChoice]) -> tuple[list[DecodingChoice], dict[str, str]]:
    """The policies whose strategy for K and V the model's family allows, and why not the other strategies.

    One that asks for none takes the first of STRATEGIES that is allowed.

    Raises OfframpError if the model cannot be decoded layer by layer, or with none of the policies.
    """
    from offramp.decoding.engine.build import engine_of

    able = engine_of(model).abilities
    strategies = dict.fromkeys(kv for choice in choices for kv in ((choice.kv,) if choice.kv else STRATEGIES))
    reasons = {kv: able.reason(kv) for kv in strategies}
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
    model: Model, measured: Measurement, choices: Sequence[DecodingChoice], names: Sequence[str]
) -> DecodedPolicies:
    answers = _answers(model, measured)
    chosen = tuple(
        DecodedChoice(
            **shared_fields(choice, DecodingChoice),
            contender=name,
            forecast=measured.forecasts.get(name),
            free_running=measured.free_running.get(name),
            characters_per_token=_characters_per_token(model, measured, name),
            answer=answers.get(name),
        )
        for choice, name in zip(choices, names, strict=True)
    )
    return DecodedPolicies(
        measured.result.without_date(),
        chosen,
        _characters_per_token(model, measured, measured.result.plain),
        prompt=answers.get(PROMPT),
        plain_answer=answers.get(measured.result.plain),
    )


PROMPT = ""
"""Stands for the prompt itself among texts by contender."""


def _answers(model: Model, measured: Measurement) -> dict[str, str]:
    """The texts of the first prompt that every contender answered, the plain one with words, and of their
    answers, by contender; none where there is no such prompt."""
    from offramp.timing.bench import prompts_and_answers

    shared = set.intersection(*(set(batches) for batches in measured.decoded.values()))
    for place in sorted(shared):
        texts: dict[str, str] = {}
        for name, batches in measured.decoded.items():
            prompts, answers = prompts_and_answers(measured.setting, {place: batches[place]})
            texts[PROMPT] = _read(model, prompts[0])
            texts[name] = model.decode(answers[0], special=False)
        if texts.get(measured.result.plain, "").strip():
            return texts
    return {}


def _read(model: Model, prompt: Sequence[int]) -> str:
    """What a model read before it answered, as text: an encoder's source, the name of a sound's or a
    picture's file with what was asked, else the prompt's own tokens."""
    given = given_of(prompt)
    tokens = prompt if given is None else given.tokens
    if tokens is not None:
        return model.decode(tokens, special=False)
    assert given is not None
    return given.text if given.kind == "text" else f"{Path(given.text).name} {given.prompt}".strip()


def _characters_per_token(model: Model, measured: Measurement, name: str) -> float | None:
    """Characters of a contender's answers over their new tokens, special ones included; None without any."""
    decoded = measured.decoded.get(name, {}).values()
    answers = [tokens for batch in decoded for tokens in batch.tokens]
    tokens = sum(map(len, answers))
    characters = sum(len(model.decode(answer, special=False)) for answer in answers)
    return characters / tokens if tokens else None
