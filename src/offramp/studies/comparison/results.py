"""What a comparison holds: plain data for pages, tables and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from offramp.policies.cost_breakdown import Gain
from offramp.scoring.estimate import Estimate
from offramp.scoring.readings import Readings
from offramp.studies.work.training_cost import Training

Basis = str
"""How a saving was found: "predicted" (by replay) or "measured" (in decoding)."""

Lacks = Literal["", "documents", "time", "evidence"]
"""What kept a policy from a certificate: too few documents, too little time, or a test that every faster one
failed."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as a study's file describes it; a run folder's model has a name and its base only.

    base: the independent training it comes from; its variants have the same. kind: "dense", "moe", "ssm" or
    "hybrid". stage: "base" or "tuned". generation: a number within its family. released: "2024-04".
    parameters: in all, None where layers were taken out. transform: what was done to it, "" for nothing.
    """

    name: str
    base: str
    transform: str = ""
    family: str | None = None
    generation: float | None = None
    released: str | None = None
    parameters: float | None = None
    kind: str | None = None
    stage: str | None = None

    @property
    def shown(self) -> str:
        """Name and transform: "smollm2 + int8"."""
        return f"{self.name} + {self.transform}" if self.transform else self.name


@dataclass(frozen=True)
class Saving:
    """The best certified answer of the tuner at one floor on one machine.

    policy: "never" if nothing was certified or nothing is faster. net_speedup: on documents that neither
    search nor certificate saw. certified: whether a certificate, or a replay bound, of this floor holds.
    executed: whether it is of texts that were really decoded. answer: the tuner's sentence. lacks: what a
    certificate lacked, "" where one holds or nothing faster was there to certify. documents: left to certify
    on; documents_needed: fewest that the floor takes; documents_in_all: fewest traced ones of which so many
    are left. of_tokens: how long they are, to follow "documents".
    """

    floor: str
    machine: str
    policy: str
    net_speedup: Estimate
    certified: bool
    answer: str
    kv: str = "propagate"
    lacks: Lacks = ""
    documents: int = 0
    documents_needed: int = 0
    documents_in_all: int = 0
    executed: bool = False
    of_tokens: str = ""


@dataclass(frozen=True)
class Row:
    """One trace of the comparison: a model (transformed or not) on a workload through some heads, those of
    trained exits among them.

    scores: estimate by name (representation, increment, calibration, composite, literal_calibration,
    first_match_skip, saturation_skip, time_ceiling_saturation, ...). eas: by similarity, with ceiling and
    floor as in `ScoreCard.to_json()["eas_variants"]`. candidates: of `ScoreCard.candidates`. depth_fraction,
    curves, intervals: as in the JSON of `LayerCurves`. bits_per_byte: of the observed text under the full
    model, None if the text's size is not known. bytes_per_token, characters_per_token: of the traced text.
    savings: of the tuner. exit_speedup: net speedup of the policy that the league chose, on documents that
    did not choose it, by "floor | machine" ("agreement=0.95 | h100"). measured_speedup: the same by the
    stopwatch, of the league's fastest policy that exits (of a run: of its choice), if the measurement has no
    defect; 1 without one where a study's league chose never to exit. model_fingerprint: SHA-256 of what the
    model computes, "" if not known. source: where it comes from, as shown. own_text: whether the text is the
    model's own answers, which no other model shares. settings: what is known of how it was traced:
    dtype, context, document_tokens (None: not given). training: what it took to train the exits, None where
    they were not, or that is not known. readings: of the own head beside these, where both were traced.
    """

    model: ModelFacts
    workload: str
    heads: str
    tokens: int
    documents: int
    workload_fingerprint: str
    scores: Mapping[str, Estimate]
    eas: tuple[Mapping[str, Any], ...]
    candidates: Mapping[str, float | None]
    exits: tuple[int, ...]
    depth_fraction: tuple[float | None, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    intervals: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    bits_per_byte: float | None = None
    bytes_per_token: float | None = None
    characters_per_token: float | None = None
    savings: tuple[Saving, ...] = ()
    exit_speedup: Mapping[str, float] = field(default_factory=dict)
    trace_folder: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    measured_speedup: Mapping[str, float] = field(default_factory=dict)
    model_fingerprint: str = ""
    own_text: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Training | None = None
    readings: Readings | None = None


NOT_TIMED = Estimate(None, undefined="it was not timed")


@dataclass(frozen=True)
class TrainedSaving:
    """What trained exits save of plain decoding's time in one place at one floor, and when it pays them back.

    heads: the exits by their name. policy: "never" where nothing faster keeps the floor. passed: how that is
    known, as of `Saving`. open: whether more documents or time may tell more. basis: of `saved`. untrained:
    the share that the same model saves there without training, 0 if nothing; None where it was not tried.
    plain_seconds: of a token of plain decoding. credit: their measured speed over the best decoder without
    exits, undefined where that was not timed beside them. paid_back: generated tokens after which the seconds
    of training are saved again, over the better of that one and untrained exits; None if never, or not known.
    """

    model: str
    workload: str
    heads: str
    floor: str
    machine: str
    training: Training
    policy: str
    passed: Literal["", "replayed", "executed"]
    open: bool
    basis: Basis
    saved: Estimate
    untrained: float | None
    plain_seconds: float | None
    paid_back: float | None
    credit: Estimate = NOT_TIMED


@dataclass(frozen=True)
class Strategy:
    """One policy (or a family's best member) on one row of the comparison.

    family: of the league, or the policy's kind. basis: "predicted" or "measured". floor: "" for a policy that
    was given as such. net_speedup: over the fastest plain decoder. credit: over the best decoder without
    exits that keeps the floor, of the same turns; undefined unless all of those took them. credit_over:
    that one's name. reachable: False for an oracle.
    seconds_per_token, characters_per_second: None where speed is in bytes moved, or the text's size is
    unknown. answer: of a timing ("faster", "unresolved at ± 3.4 %", "defect: ..."), "" for a prediction.
    chosen: whether it was chosen for its floor, on documents that it is not judged on. gain: what layers,
    head and probes save of plain decoding's cost, by prices also where the whole was timed; None where that
    is not known.
    """

    model: str
    workload: str
    heads: str
    machine: str
    family: str
    policy: str
    kv: str
    floor: str
    basis: Basis
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    probe_share: float | None = None
    seconds_per_token: float | None = None
    characters_per_second: float | None = None
    reachable: bool = True
    answer: str = ""
    chosen: bool = False
    gain: Gain | None = None
    credit: Estimate = NOT_TIMED
    credit_over: str = ""


@dataclass(frozen=True)
class ScoreValidity:
    """How well one candidate score on one text ranks models by what was measured to be saved on another.

    kendall: tau-b between independent models (cells of one base are averaged first), mean over the ordered
    pairs of texts, with an interval from whole models resampled; no interval below 12 bases. bases: how many,
    in the pair of texts that has the fewest.
    """

    score: str
    floor: str
    machine: str
    kendall: Estimate
    bases: int


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison shows. combined: accelerations together, as JSON.

    failures: cells that failed or were not run, by name, with the reason. provenance: versions, machine,
    study and fingerprints. citation: text of a BibTeX entry.
    """

    title: str
    description: str
    rows: tuple[Row, ...]
    strategies: tuple[Strategy, ...] = ()
    trained: tuple[TrainedSaving, ...] = ()
    validity: tuple[ScoreValidity, ...] = ()
    combined: tuple[Mapping[str, Any], ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    citation: str = ""


def share_saved(speedup: float) -> float:
    """Share of the full model's time that a net speedup saves: 1 - 1 / speedup; negative if it is slower."""
    return 1.0 - 1.0 / speedup


def saved_without(saved: float, credit: float) -> float:
    """Share of plain decoding's time that the best decoder without exits saves, beside a policy's.

    credit: the policy's speed over that decoder.
    """
    return 1.0 - credit * (1.0 - saved)


def floor_text(agreement: float) -> str:
    """A floor on agreement as on the command line: 0.95 -> "agreement=0.95"."""
    return f"agreement={agreement:g}"


def place_text(floor: str, machine: str) -> str:
    """A floor on a machine as a key: "agreement=0.95 | h100"."""
    return f"{floor} | {machine}"


def floor_and_machine(place: str) -> tuple[str, str]:
    """What `place_text` joined."""
    floor, _, machine = place.partition(" | ")
    return floor, machine
