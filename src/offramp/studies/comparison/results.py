"""What a comparison holds: plain data for pages, tables and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from offramp.policies.figures import PolicyOutcome
from offramp.scoring.estimate import Estimate
from offramp.studies.work.heads import Training
from offramp.studies.work.score import ScoredTrace
from offramp.timing.results import CombineResult
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict

Basis = Literal["predicted", "measured"]
"""How a saving was found: by replay, or in decoding."""

Passed = Literal["", "replayed", "executed"]
"""How it is known that a floor is kept, "" if it is not."""

FloorOn = tuple[Floor, str]
"""A floor, and the machine on which it is asked for."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as a study's file describes it; a run folder's model has a name and its base only."""

    name: str
    base: str
    """The independent training it comes from; its variants have the same."""
    family: str | None = None
    generation: float | None = None
    """A number within its family."""
    released: str | None = None
    """ "2024-04"."""
    parameters: float | None = None
    """In all."""
    kind: str | None = None
    """ "dense", "moe", "ssm" or "hybrid"."""
    stage: str | None = None
    """ "base" or "tuned"."""
    transform: str = ""
    """What was done to it, "" for nothing."""

    @property
    def shown(self) -> str:
        """Name and transform: "smollm2 + int8"."""
        return f"{self.name} + {self.transform}" if self.transform else self.name


@dataclass(frozen=True)
class Place:
    """Where an answer or a strategy holds: a model (as shown) on a text, through exit heads, on a machine."""

    model: str
    workload: str
    heads: str
    machine: str


@dataclass(frozen=True, kw_only=True)
class Row(ScoredTrace):
    """One trace of the comparison, as it was scored: a model (transformed or not) on a workload through some
    heads, those of trained exits among them.

    own_text: answers of the model's own are no text that another model shares.
    """

    model: ModelFacts
    workload: str
    heads: str
    answers: tuple[Tuned, ...] = ()
    """Of the tuner at each floor, on machines by the names that the study gives them."""
    verdicts: Mapping[FloorOn, Verdict] = field(default_factory=dict)
    """Of these answers, as the study decided them with its last evidence."""
    exit_speedup: Mapping[FloorOn, float] = field(default_factory=dict)
    """Net speedup of the policy that the league chose, on documents that did not choose it."""
    measured_speedup: Mapping[FloorOn, float] = field(default_factory=dict)
    """The same by the stopwatch, of the league's fastest policy that exits (of a run: of its choice), if the
    measurement has no defect; 1 without one where a study's league chose never to exit."""
    model_fingerprint: str = ""
    """SHA-256 of what the model computes, "" if not known."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is known of how it was traced: dtype, context, document_tokens (None: not given)."""
    training: Training | None = None
    """What it took to train the exits, None where they were not, or that is not known."""
    trace_folder: str | None = None
    source: str = ""
    """Where it comes from, as shown."""

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that were traced."""
        return tuple(int(exit) for exit in self.card.curves.exits)

    @property
    def bytes_per_token(self) -> float | None:
        """Of the traced text."""
        return self.text.bytes / self.text.tokens if self.text.bytes else None

    @property
    def characters_per_token(self) -> float | None:
        """Of the traced text."""
        return self.text.characters / self.text.tokens if self.text.characters else None

    def on(self, machine: str) -> Place:
        """The row on a machine."""
        return Place(self.model.shown, self.workload, self.heads, machine)


NOT_TIMED = Estimate(None, undefined="it was not timed")


@dataclass(frozen=True, kw_only=True)
class StrategyResult(PolicyOutcome):
    """One policy (or a family's best member) on one row of the comparison.

    Its speed is over the fastest plain decoder; its gain is by prices also where the whole was timed.
    """

    place: Place
    family: str
    """Of the league, or the policy's kind."""
    floor: Floor | None
    """None for a policy that was given as such."""
    basis: Basis
    probe_share: float | None = None
    """None where it was timed."""
    seconds_per_token: float | None = None
    """None where speed is in bytes moved."""
    characters_per_second: float | None = None
    """None where the text's size is unknown, too."""
    answer: str = ""
    """Of a timing, in words ("faster", "unresolved at ± 3.4 %", "defect: ..."), "" for a prediction."""
    defect: bool = False
    """Whether something is wrong with the timing."""
    chosen: bool = False
    """Whether it was chosen for its floor, on documents that it is not judged on."""
    credit: Estimate = NOT_TIMED
    """Over the best decoder without exits that keeps the floor, of the same turns; undefined unless all of
    those took them."""
    credit_over: str = ""
    """That decoder's name."""


@dataclass(frozen=True)
class TrainedSaving:
    """What trained exits save of plain decoding's time in a place at a floor, and when they are paid back."""

    INLINE: ClassVar[tuple[str, ...]] = ("place",)
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("training",)

    place: Place
    floor: Floor
    training: Training
    """Stands beside them where they are written."""
    policy: str
    """ "never" where nothing faster keeps the floor."""
    passed: Passed
    """How it is known that the floor is kept."""
    open: bool
    """Whether more documents or time may tell more."""
    basis: Basis
    """Of `saved`."""
    saved: Estimate
    credit: Estimate = NOT_TIMED
    """Their measured speed over the best decoder without exits, undefined where that was not timed beside
    them."""
    paid_back: float | None = None
    """Generated tokens after which the seconds of training are saved again, over the better of that decoder
    and untrained exits; None if never, or not known."""
    untrained: float | None = None
    """The share that the same model saves there without training, 0 if nothing; None where it was not
    tried."""
    plain_seconds: float | None = None
    """Of a token of plain decoding."""

    @property
    def never(self) -> bool:
        """Whether training is never paid back; else, without tokens, nobody knows."""
        return self.paid_back is None and (self.saved.value is None or self.credit.value is not None)


@dataclass(frozen=True)
class ScoreValidity:
    """How well one candidate score on one text ranks models by what was measured to be saved on another."""

    score: str
    floor: Floor
    machine: str
    kendall: Estimate
    """Tau-b between independent models (cells of one base are averaged first), mean over the ordered pairs of
    texts, with an interval from whole models resampled; no interval below 12 bases."""
    bases: int
    """How many, in the pair of texts that has the fewest."""


@dataclass(frozen=True)
class UnderLoad:
    """What policies come to in a place under a load of the study."""

    INLINE: ClassVar[tuple[str, ...]] = ("place",)

    place: Place
    load: str
    """As the study calls it."""
    answer: str
    """At which requests per second the best of them pays, in words."""
    policy: str
    """Of the best, "" where none exits."""
    capacity: Estimate
    """Requests per second that it serves at most."""
    plain_capacity: Estimate
    """The same of the best without exits."""


@dataclass(frozen=True)
class Comparison:
    """Everything that is compared: of one folder, or of several put together."""

    title: str
    description: str
    rows: tuple[Row, ...]
    strategies: tuple[StrategyResult, ...] = ()
    trained: tuple[TrainedSaving, ...] = ()
    validity: tuple[ScoreValidity, ...] = ()
    combined: tuple[CombineResult, ...] = ()
    """Accelerations together."""
    loads: tuple[UnderLoad, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    """Cells that failed or were not run, by name, with the reason."""
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Versions, machine, study and fingerprints."""
    machines: Mapping[str, str] = field(default_factory=dict)
    """What each machine's name stands for, in words that differ where machines do; without the names of which
    that is not known."""
    citation: str = ""
    """Text of BibTeX entries."""


def share_saved(speedup: float) -> float:
    """Share of the full model's time that a net speedup saves: 1 - 1 / speedup; negative if it is slower."""
    return 1.0 - 1.0 / speedup


def estimate_saved(speed: Estimate) -> Estimate:
    """The same of a speed with its interval: its slower limit is the lower one of what is saved."""
    value, low, high = (
        None if limit is None else share_saved(limit) for limit in (speed.value, speed.low, speed.high)
    )
    return replace(speed, value=value, low=low, high=high)


def saved_without(saved: float, credit: float) -> float:
    """Share of plain decoding's time that the best decoder without exits saves, beside a policy's.

    credit: the policy's speed over that decoder.
    """
    return 1.0 - credit * (1.0 - saved)
