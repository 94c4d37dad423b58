"""What a timing gives: samples, ratios with intervals and answers, forecasts' errors; of combinations, too.

Plain data without torch, for reports, files and machines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MinLen

from offramp.defaults import FEWEST_PROMPTS
from offramp.kit.numbers import Count, NotNegative, Number, Positive, Proportion, Whole
from offramp.kit.sealed_file import SealedFile
from offramp.policies.cost_breakdown import Gain
from offramp.policies.figures import FreeRunning, PositiveOf, ShareOf, SkippedOf
from offramp.scoring.estimate import LEVEL, Estimate, require_ordered
from offramp.scoring.text_quality import TextQuality

PLAIN, A_A, SHORT_LIST = "plain", "a/a", "short list"
"""Roles of contenders: the full model's output by definition, one of those a second time, and the full model
with its output head cut to the short list."""

LOOKUP = "generate(prompt_lookup_num_tokens)"
"""The name of prompt lookup."""

NO_TIME = "there was no time for it beside the policy: give more seconds"
"""Why a contender was left out that could have been timed."""

TOO_FEW_PROMPTS = "too few prompts for an interval"
"""Why a figure of a timing has no interval, or one that says nothing."""


def prompts_short(prompts: int) -> str | None:
    """Why times on so many prompts (or batches of them) are no answer, None where they may be one."""
    if prompts >= FEWEST_PROMPTS:
        return None
    return f"inconclusive: {prompts} of {FEWEST_PROMPTS} prompts"


PLAIN_NAME = "plain"
"""The name of the combination of nothing."""

Effect = Literal["help each other", "get in each other's way", "multiply"]

NEAR = 0.1
"""How far the interval of an interaction may reach from 1 for gains that multiply."""

Answer = Literal["faster", "slower", "equivalent", "unresolved", "defect"]
"""Of a contender against the fastest plain decoder; "defect" where something is wrong with it."""

Stopped = Literal["answered", "seconds", "rounds"]
"""Why nothing more was timed: the questions are answered, or the budget or the rounds are over."""


@dataclass(frozen=True)
class Timing:
    """Seconds per token by the stopwatch, and the circumstances they were taken in."""

    value: NotNegative
    low: NotNegative | None
    high: NotNegative | None
    """The 95 % interval, None with too few samples for one."""
    threads: Count
    """Threads that compute."""
    load: NotNegative
    """The machine's load average over one minute at the start."""

    def __post_init__(self) -> None:
        require_ordered(self.low, self.high)


@dataclass(frozen=True)
class Cluster:
    """One prompt (or batch of prompts) in one process, timed side by side with plain decoding."""

    process: Whole
    prompt: Whole
    log_ratio: Number
    """log(plain seconds / its seconds), both summed over the pairs of blocks."""
    pairs: Whole
    """How many. More of them make the figure better; they are no further prompts."""
    priced: Number | None = None
    """log(plain price / its price) of what ran; None where something that ran has no price."""
    weight: Positive = 1.0
    """What its stopwatch counts for: one over the variance of the log-ratio by the noise of its blocks."""


@dataclass(frozen=True)
class Counted:
    """What one decoded token runs on average, counted and not timed: the same on every machine."""

    layers: NotNegative
    """Layers executed."""
    heads: NotNegative
    """Products with the output head, the short list's included."""
    probes: NotNegative
    """Checks of the policy."""
    flops: NotNegative
    bytes: NotNegative
    """Of all of it, as moved from memory at batch 1."""


@dataclass(frozen=True)
class Contender:
    """One way to decode, timed beside the others."""

    name: str
    """As shown."""
    role: str
    """"policy", "plain" (the full model's output by definition), "short list" (the full model with its output
    head cut to that), "peer", "combination", or "a/a" (a plain decoder a second time)."""
    answer: Answer = "unresolved"
    """What `ratio` says of it."""
    ratio: PositiveOf[Estimate[Number]] | None = None
    """Seconds of the fastest plain decoder over its own (of an "a/a": of the decoder that it repeats);
    without an interval for one prompt, or where it was timed in the pilot only. The interval covers that the
    fastest was told by the same times."""
    resolution: NotNegative | None = None
    """The half-width of its interval, as a share."""
    clusters: tuple[Cluster, ...] = ()
    """What the ratio comes of, by prompt; none of the fastest plain decoder itself."""
    samples: tuple[NotNegative, ...] = ()
    """Seconds per new token (of all rows together) after the first, one per visit, in order."""
    seconds_per_token: PositiveOf[Estimate[Number]] | None = None
    """Of the fastest plain decoder the mean over prompts, with a 95 % interval; of others that over their
    ratio, so that the machine's load cancels between them."""
    first_token_seconds: NotNegative | None = None
    """Median time to the first new token."""
    tokens_per_second: NotNegative | None = None
    """Of the whole batch."""
    peak_memory_bytes: Whole | None = None
    """Above what the process held before, None if unknown."""
    counted: Counted | None = None
    """What a token of the timed decodings runs, None where nothing says."""
    layers_per_token: NotNegative | None = None
    """Executed layers of a fed new token of an untimed trial, counted by hooks."""
    claimed_layers_per_token: NotNegative | None = None
    """What the decoder says of the same trial."""
    same_output: Proportion | None = None
    """Share of prompts whose output equals the full model's, token for token."""
    output_must_match: bool = False
    """Whether it has to (lossless in float32)."""
    executed_agreement: ShareOf[Estimate[Number]] | None = None
    """Share of its tokens that are the full model's choice on the same prefix, None if nobody judged."""
    gain: Gain | None = None
    """Shares of the plain decoder's seconds per token, None if it was not split."""
    left_out: str | None = None
    """Why it was not timed, None if it was."""
    full_depth: bool = False
    """Whether it runs every layer for every token, whatever else it saves."""
    prices: tuple[Positive, ...] = ()
    """What a token of each document that was decoded with it before takes over one of the full model, by
    price: the ratio is that of these documents, corrected by the timed ones. None where there are none."""
    level: Proportion = LEVEL
    """Of the ratio's interval: that of the last look, so that it holds however the timing was stopped."""

    @property
    def shortage(self) -> str | None:
        """Why its times are no answer, however narrow their interval; None where there are prompts enough."""
        prompts = len({cluster.prompt for cluster in self.clusters})
        return prompts_short(prompts) if prompts else None

    @property
    def without_exits(self) -> bool:
        """Whether what it saves needs no early exit, so that early exit has to be faster than it."""
        return self.role == PLAIN or self.full_depth

    def keeps(self, floor: float | None) -> bool:
        """Whether its output is good enough for a floor on agreement; any is for none, or unless judged."""
        kept = self.executed_agreement
        return floor is None or kept is None or kept.value >= floor


RIVALS: Mapping[str, Callable[[Contender], bool]] = {
    "the output head cut to the short list": lambda contender: (
        contender.role == SHORT_LIST
        or contender.name == "shortlist"
        or contender.name.startswith("shortlist:")
    ),
    "prompt lookup": lambda contender: contender.name in (LOOKUP, "prompt_lookup"),
}
"""What needs no exits and might be faster than plain decoding, in words, and whether a contender is that."""


@dataclass(frozen=True)
class Credit:
    """What exits add: how many times as fast as the best decoder without exits that keeps a floor."""

    value: NotNegative
    low: NotNegative
    high: NotNegative
    """At the level of the measurement, chosen though that decoder is by the same times."""
    over: str
    """That decoder's name."""

    def __post_init__(self) -> None:
        require_ordered(self.low, self.high)

    @property
    def estimate(self) -> Estimate[float]:
        """With its interval."""
        return Estimate(self.value, self.low, self.high)


@dataclass(frozen=True)
class PartError:
    """One part of a token's time (`offramp.decoding.engine.engine.PARTS_OF_TIME`), in seconds per token."""

    part: str
    priced: NotNegative
    """What the cost model says of the items that really ran, as in `Forecast`."""
    measured: NotNegative
    """By a stopwatch within the decoding loop, in runs apart from those that were timed as a whole."""


@dataclass(frozen=True)
class Forecast:
    """A policy's predicted time beside its measured one, all in seconds per token.

    What is predicted is a ratio to the plain decoder, from a hardware profile that was measured before and
    has timed no policy; in seconds it is that ratio times what plain decoding took at the moment of timing
    (`plain_measured`), so that a machine that is slower than when it was profiled is no error of the policy.
    """

    policy: str
    kv: str
    dtype: str
    workload: str
    predicted: NotNegative | None
    """Replayed on the trace; None without a trace."""
    priced: NotNegative
    """The cost model on what really ran."""
    measured: PositiveOf[Estimate[Number]]
    """The stopwatch, with its interval."""
    plain_predicted: NotNegative
    """Of the full model (never exit, the same loop), in the profile's own seconds."""
    plain_measured: NotNegative
    """By the stopwatch."""
    fastest_plain: NotNegative
    """Of the fastest plain decoder of the run, the denominator of net speedup."""
    predicted_skip: SkippedOf[float] | None
    measured_skip: SkippedOf[float]
    """Share of layers not executed."""
    parts: tuple[PartError, ...] = ()
    """Where the cost model is wrong, priced at the moment of timing too."""
    predicted_agreement: Proportion | None = None
    """On the trace, teacher-forced."""
    measured_agreement: Proportion | None = None
    """Of the generated tokens with the full model on the same prefix."""
    batch: Count = 1
    gain: Gain | None = None
    """What each part of a step saved of the full model's price, by the cost model on what really ran."""
    predicted_by_profile: NotNegative | None = None
    priced_by_profile: NotNegative | None = None
    """The same in the profile's own seconds, None where they were not kept."""

    @property
    def trace_error(self) -> float | None:
        """Predicted less priced: what is wrong because other exits were taken than on the trace."""
        return None if self.predicted is None else self.predicted - self.priced

    @property
    def worst_part(self) -> PartError | None:
        """The part whose price is furthest from its time."""
        return max(self.parts, key=lambda part: abs(part.priced - part.measured), default=None)


@dataclass(frozen=True)
class FloorCheck:
    """The floor that a policy was tuned for, beside what it kept here."""

    floor: str
    """As on the command line, "agreement=0.95"."""
    certified: bool
    """Whether the tuner certified it."""
    value: Number
    """The floor's own."""
    kept: ShareOf[Estimate[Number]] | None = None
    """The executed agreement, None if nobody judged it or the floor is of another kind."""

    @property
    def missed(self) -> bool | None:
        """Whether less was kept; None if that is not known."""
        return None if self.kept is None else self.kept.value < self.value


@dataclass(frozen=True, kw_only=True)
class InTurns:
    """A timing of contenders that took turns on the same prompts."""

    model: str
    new_tokens: Count
    prompts: Count
    """Prompts that were decoded."""
    rounds: Count
    """How often, at most."""
    worth: Number
    """The gain that matters, as a share."""
    plain: str
    """The name of the fastest plain decoder of this timing."""
    defects: tuple[str, ...]
    """What is wrong with outputs, layer counts or the timing itself, in sentences; none in a sound
    measurement."""
    a_a: PositiveOf[Estimate[Number]]
    """Ratio of the plain decoder to itself, with a 99 % interval."""
    stopped: Stopped
    """Why nothing more was timed."""
    seconds_spent: NotNegative
    """From the first trial to the last block."""
    circumstances: Mapping[str, Any]
    """Threads, load average before and after, dtype, governor, processor, versions, date, seeds,
    fingerprints."""
    notes: tuple[str, ...] = ()

    @property
    def date(self) -> str:
        """Date and time (UTC) at which it ended."""
        return str(self.circumstances["date"])

    def without_date(self) -> Self:
        """As a task keeps it: when it was measured is for the journal, how busy the machine was is part of
        what was measured."""
        around = {name: fact for name, fact in self.circumstances.items() if name != "date"}
        return replace(self, circumstances=around)


@dataclass(frozen=True, kw_only=True)
class BenchResult(InTurns):
    """What contenders answer that took turns: the policy asked about, plain decoders and all others."""

    READ_OFF: ClassVar[tuple[str, ...]] = ("answer", "resolution")
    IF_ANY: ClassVar[tuple[str, ...]] = ("text_quality",)

    policy: str
    kv: str
    batch: Count
    batching: str
    contenders: Annotated[tuple[Contender, ...], MinLen(1)]
    processes: Count = 1
    """Fresh processes that measured."""
    floor: FloorCheck | None = None
    """The floor that the policy was tuned for, None without any."""
    forecasts: tuple[Forecast, ...] = ()
    free_running: FreeRunning | None = None
    text_quality: TextQuality | None = None
    """Of the policy's answers, each up to its end token, where prompts say what is to be written."""

    def __repr__(self) -> str:
        ratio = self.main.ratio
        speed = "" if ratio is None else f", {ratio.value:.3f} times the speed of {self.plain}"
        return f"BenchResult({self.policy}, {self.kv}, on {self.model}: {self.answer}{speed})"

    def contender(self, name: str) -> Contender:
        """The contender of that name."""
        return next(contender for contender in self.contenders if contender.name == name)

    def timing(self, name: str) -> Timing | None:
        """Seconds per token of a contender, None if it was not timed."""
        timed, around = self.contender(name).seconds_per_token, self.circumstances
        if timed is None:
            return None
        load = float(around["load_average"][0])
        return Timing(timed.value, timed.low, timed.high, int(around["threads"]), load)

    def credit(self, name: str, floor: float | None = None) -> Credit | None:
        """How many times as fast a contender is as the best one without exits of the same turns.

        floor: on agreement, that the latter has to keep; None for any. One without exits itself has at most
        1. None where the times say nothing: it was not timed, on one prompt only, or something is wrong.
        """
        from offramp.timing.ratios import credit_of

        return credit_of(self.contenders, self.plain, name, floor)

    @property
    def untimed_rivals(self) -> tuple[str, ...]:
        """What needs no exits and might be faster than all that took turns, but was not among them, in words.

        While there is any, a credit is none that early exit could pay by.
        """
        able = [
            contender
            for contender in self.contenders
            if contender.full_depth and contender.left_out != NO_TIME
        ]
        missing = [what for what, is_it in RIVALS.items() if not any(map(is_it, able))]
        late = [one for one in self.contenders if one.full_depth and one.left_out == NO_TIME]
        named = [one.name for one in late if not any(is_it(one) for is_it in RIVALS.values())]
        return (*missing, *named)

    @property
    def main(self) -> Contender:
        """The policy that was asked about."""
        return next(contender for contender in self.contenders if contender.role == "policy")

    @property
    def answer(self) -> Answer:
        """What is answered of it."""
        return self.main.answer

    @property
    def resolution(self) -> float | None:
        """Half-width of its ratio, as a share; None without an interval."""
        return self.main.resolution


@dataclass(frozen=True)
class Quality:
    """How good a combination's answers are, judged by the untransformed full model; means over prompts."""

    free_running: FreeRunning
    """Of the answers that it gave itself."""
    forced_agreement: ShareOf[Estimate[Number]]
    """Share of the tokens of the untransformed model's own answer that it chooses too when it is given all of
    that answer before them; at full depth a token also counts if its logit is the largest but for one
    rounding step of the dtype."""

    @property
    def shared(self) -> Estimate[float]:
        """Share of an answer before the first token that is not the untransformed model's."""
        found = self.free_running
        length = found.new_tokens / found.prompts
        limits = (found.tokens_before_divergence.low, found.tokens_before_divergence.high)
        low, high = (None if limit is None else limit / length for limit in limits)
        return Estimate(found.tokens_before_divergence.value / length, low, high)


@dataclass(frozen=True)
class OnTop:
    """What one part adds to the others of a combination: their seconds over those of all, side by side."""

    part: str
    speedup: PositiveOf[Estimate[Number]]


@dataclass(frozen=True)
class Combination:
    """One way to decode faster, or several at once."""

    name: str
    """Its parts joined by " + ", "plain" without any."""
    parts: tuple[str, ...]
    """Names of accelerations."""
    contender: Contender
    """Its timing; the ratio is to the fastest plain decoder of the untransformed model."""
    transforms: tuple[str, ...] = ()
    """What the model's identity says was done to it."""
    policy: str | None = None
    """The policy that decides exits or drafts on this model."""
    product: PositiveOf[Estimate[Number]] | None = None
    """Of the speedups of each part alone; None as `interaction`."""
    interaction: PositiveOf[Estimate[Number]] | None = None
    """The speedup of all together over that, prompt by prompt, so that the plain decoder's noise cancels as
    far as it can; None for fewer than two parts, or where a part was left out."""
    on_top: tuple[OnTop, ...] = ()
    """What each part adds; empty where `interaction` is None."""
    quality: Quality | None = None
    """None if it was not judged."""

    @property
    def speedup(self) -> Estimate[float] | None:
        """Over plain decoding of the untransformed model; None if it was left out."""
        return self.contender.ratio

    @property
    def effect(self) -> Effect | None:
        """What the interaction's interval says; None without one, or if it is too wide to say anything."""
        found = self.interaction
        if found is None or found.low is None or found.high is None:
            return None
        if found.high < 1.0:
            return "get in each other's way"
        if found.low > 1.0:
            return "help each other"
        return "multiply" if found.low >= 1.0 - NEAR and found.high <= 1.0 + NEAR else None


@dataclass(frozen=True, kw_only=True)
class CombineResult(InTurns):
    """One measurement of accelerations, alone and together, that all took turns."""

    accelerations: Mapping[str, str]
    """By name, as they were asked for."""
    workload: str
    combinations: tuple[Combination, ...]
    """"plain" first, then by number of parts."""
    others: tuple[Contender, ...]
    """The further plain decoders, and the fastest a second time."""
    floor: Proportion
    """Forced agreement below which nothing is advised."""
    excluded: tuple[str, ...] = ()
    """Combinations that make no sense, in sentences."""

    def credit(self, combination: Combination) -> Credit | None:
        """As of a bench: over the fastest decoder without exits whose own answers keep the floor."""
        from offramp.timing.ratios import credit_of

        accelerated = [way.contender for way in self.combinations if way.parts]
        return credit_of([*accelerated, *self.others], self.plain, combination.name, self.floor)

    @property
    def credits(self) -> dict[str, Credit]:
        """Of every combination with exits, by name, where the times say something."""
        found = {way.name: self.credit(way) for way in self.combinations if not way.contender.without_exits}
        return {name: credit for name, credit in found.items() if credit is not None}

    def combination(self, *parts: str) -> Combination | None:
        """The combination of exactly these parts, in any order; None if there is none."""
        wanted = frozenset(parts)
        return next((way for way in self.combinations if frozenset(way.parts) == wanted), None)


RESULTS = SealedFile(
    tuple[BenchResult, ...],
    "this is no file of offramp bench",
    "measure again: offramp bench MODEL --policy P -o FILE",
    version=3,
    under="results",
)
COMBINED = SealedFile(
    CombineResult,
    "this is no file of offramp bench --combine",
    "measure again: offramp bench MODEL --combine int8 --combine exits --policy P -o FILE",
    version=2,
    kind="combined",
    under="result",
)


def contenders_json(result: BenchResult) -> list[dict[str, Any]]:
    """Every contender that was timed in one line: its answer, with the figures that it is about.

    Its credit is at the floor that the policy was tuned for.
    """
    checked = result.floor
    floor = None if checked is None or not checked.floor.startswith("agreement") else checked.value
    return [
        {
            "name": contender.name,
            "role": contender.role,
            "answer": contender.answer,
            "ratio": contender.ratio.value,
            "low": contender.ratio.low,
            "high": contender.ratio.high,
            "resolution": contender.resolution,
            "credit": None if credit is None else dataclasses.asdict(credit),
            "executed_agreement": (
                None if contender.executed_agreement is None else contender.executed_agreement.value
            ),
            "gain": None if contender.gain is None else dataclasses.asdict(contender.gain),
            "seconds_per_token": (
                None if contender.seconds_per_token is None else contender.seconds_per_token.value
            ),
            "counted": None if contender.counted is None else dataclasses.asdict(contender.counted),
        }
        for contender in result.contenders
        if contender.ratio is not None
        for credit in [result.credit(contender.name, floor)]
    ]
