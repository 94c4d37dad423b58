"""`training.json`: what was trained, on what, how it went, and what it cost. It is written last."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from offramp.errors import InputError
from offramp.heads.file import heads_path
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import to_json
from offramp.models.training_record import TRAINING_FILE
from offramp.training.recipe import Recipe
from offramp.training.request import ExecutedTraining, GateTraining, Precision, RegularisedTraining

if TYPE_CHECKING:
    from offramp.decoding.options import HeadsSource
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.tracing.fitting.documents import FittingRows

REQUEST_FILE = "request.json"

GATE = "gate"
"""The fact, and the signal, of gates."""

FLOORS = (0.99, 0.97, 0.95, 0.90)
"""Agreement over all tokens, those that stay included, at which it is said how many could leave."""


@dataclass(frozen=True)
class Evaluation:
    """One exit on held-out tokens.

    loss: mean KL(p_L || p_exit), nats. agreement: share of tokens whose best token is the full model's.
    leaving: share of all tokens that could leave there at each of FLOORS, the surest first, by the exit's
    own largest probability.

    Where the model itself is trained, loss is KL(p_L of the original || p_exit), agreement that with the
    trained model's own full depth, and leaving is at floors of reference_agreement, the share of tokens whose
    best token is the original full model's; nll: of the text's own tokens, nats. None elsewhere.
    """

    loss: float
    agreement: float
    leaving: tuple[float, ...]
    reference_agreement: float | None = None
    nll: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Settings:
    """What was decided before the first step, minutes by timing this machine, and holds from then on.

    every: steps from one evaluation to the next. threads, device: the order of sums depends on them.
    """

    steps: int
    every: int
    precision: Precision
    threads: int
    device: str


@dataclass(frozen=True)
class Evaluated:
    """Held-out figures after so many steps, of every exit. seconds: of training until then."""

    step: int
    seconds: float
    exits: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Seconds:
    """What each part took: states, training with its evaluations, classifiers and K,V maps.

    states: caching them, and before that the model's answers, where it writes the text itself.
    """

    states: float
    training: float
    heads: float

    @property
    def all(self) -> float:
        """Of all parts."""
        return self.states + self.training + self.heads


@dataclass(frozen=True)
class Spent:
    """What trainings took, one after the other: seconds, and tokens that they read."""

    seconds: float = 0.0
    tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.tokens + other.tokens)


@dataclass(frozen=True)
class ReadRows:
    """What was read. tokens: planned rows. fit, held_out: rows to train on, and held-out ones in figures.

    allowed: tokens that might be read, fewer than asked for where the minutes allowed no more; None if any.
    """

    tokens: int
    documents: int
    held_out_documents: int
    fit: int
    held_out: int
    states_bytes: int
    allowed: int | None = None

    @classmethod
    def of(cls, rows: FittingRows, fit: int, held_out: int, states_bytes: int = 0) -> ReadRows:
        """Of planned rows, so many of which were trained on and judged by."""
        documents = len(rows.held_out)
        return cls(rows.tokens, documents, int(rows.held_out.sum()), fit, held_out, states_bytes)


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a training left, and how good that is.

    heads: the fingerprint of the exits' file. floors: of the `leaving` of evaluations. logit_lens, before,
    trained: every exit on all held-out rows, read without heads, from where training started (the ridge
    lens), and as trained. Of the kind "executed" the one entry of before and trained is of the tokens that
    stay, with the K,V maps as they were and as trained; its `leaving` is the share that left.

    Of the kind "regularised" before (the original model) and trained have an entry for L at their end, and
    logit_lens is empty; heads is the fingerprint of the trained model; documents, by workload fingerprint,
    and texts, sketches of them in the same order, are those that its training saw, or one before it. Other
    kinds leave these to their heads.
    """

    heads: str
    before: tuple[Evaluation, ...]
    trained: tuple[Evaluation, ...]
    floors: tuple[float, ...] = FLOORS
    logit_lens: tuple[Evaluation, ...] = ()
    documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(Left):
    """One finished training.

    request: what was asked for and of which model and texts. steps: that were taken. stopped: why no further.
    history: on some of the held-out rows. earlier: what the trainings took that it began from, None if that
    is not known.
    """

    request: TrainingIdentity
    settings: Settings
    rows: ReadRows
    steps: int
    stopped: str
    seconds: Seconds
    history: tuple[Evaluated, ...]
    versions: dict[str, str]
    earlier: Spent | None

    @property
    def kind(self) -> str:
        """What was trained."""
        return self.request.recipe.kind

    @property
    def exits(self) -> tuple[int, ...]:
        """Where it was trained."""
        return self.request.recipe.at

    @property
    def own(self) -> Spent:
        """What this training took."""
        return Spent(self.seconds.all, self.rows.tokens)

    @property
    def places(self) -> tuple[str, ...]:
        """What each entry of `trained` is of: exits, "full depth", or the tokens that are "staying"."""
        if self.kind == ExecutedTraining.kind:
            return ("staying",)
        whole = ("full depth",) if self.kind == RegularisedTraining.kind else ()
        return (*map(str, self.exits), *whole)


@dataclass(frozen=True)
class TrainingIdentity:
    """What makes a training another one. model: name, fingerprint and dtype. workloads: each one's name and
    fingerprint. classifiers, kv_maps: whether they are fitted afterwards. short_list: its tokens. code: of
    all that computes. start: the fingerprint of the heads that it starts from.
    """

    recipe: Recipe
    model: dict[str, str]
    workloads: tuple[dict[str, str], ...]
    classifiers: bool
    kv_maps: bool
    short_list: int
    device: str
    code: str
    start: str | None = None


@dataclass(frozen=True)
class Judged:
    """A policy on documents that nothing was chosen on. saved: share of the full model's seconds."""

    policy: str
    agreement: float
    seconds_per_token: float
    saved: float


@dataclass(frozen=True, kw_only=True)
class GateCourse:
    """How a training of gates went.

    multiplier: lambda in the end. seconds: by evaluation, of a token on the documents apart, at the floor.
    disagreement: by evaluation, there, hard at 0.5, before anything is moved.
    """

    multiplier: float
    seconds: tuple[float, ...]
    disagreement: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GateRecord(GateCourse):
    """What gates were trained on and for, and what they save beside the best thresholds of the same features.

    exits: of the gates. rows: tokens to learn from, to choose by and to judge on. gate: with one threshold of
    0.5. thresholds: the fastest of a network that predicts agreement, alike or one per exit, on any set of
    the exits. Both are chosen on the same documents and judged on held-out ones. plain: seconds of a token of
    the full model. tokens: that were read. took: seconds of reading the exits (with the model's answers, if
    it wrote any), and of training. earlier: what the trainings took of the exits that got the gates, None if
    that is not known.
    """

    exits: tuple[int, ...]
    machine: str
    floor: float
    kv: str
    seed: int
    rows: tuple[int, int, int]
    gate: Judged
    thresholds: Judged
    plain: float
    tokens: int
    steps: int
    took: tuple[float, float]
    heads: str
    earlier: Spent | None

    kind: ClassVar[str] = GateTraining.kind

    @property
    def own(self) -> Spent:
        """What this training took."""
        return Spent(sum(self.took), self.tokens)


AGAIN = "give --overwrite to train again, or choose another folder with -o"
RECORD = SealedFile(
    TrainingRecord,
    what="the record {name} of a training is damaged",
    fix=AGAIN,
    version=2,
    kind="training",
)
REQUEST = SealedFile(
    TrainingIdentity,
    what="{name}, which says what a training is of, is damaged",
    fix=AGAIN,
    version=1,
    kind="training request",
)
GATE_RECORD = SealedFile(
    GateRecord,
    what="the record {name} of a training of gates is damaged",
    fix="train them again into another folder",
    version=2,
    kind="gate training",
)


def require_record_of(folder: Path, record: TrainingRecord, request: TrainingIdentity) -> None:
    """Refuse a finished training's record that is of another request than the one beside it.

    Raises InputError.
    """
    if to_json(record.request) != to_json(request):
        raise InputError(
            "the record of the training there is of another training than its folder",
            where=str(folder),
            fix="give --overwrite to train again, or copy the whole folder again from where it came",
        )


def record_of(exits: Path, fingerprint: str) -> TrainingRecord | GateRecord | None:
    """The record of the training of some exits, in their folder or beside their file; None without one.

    fingerprint: of the exits; a record of others is none of these. Raises DamagedFileError.
    """
    path = heads_path(exits).parent / TRAINING_FILE
    kind = next((kind for kind in (RECORD, GATE_RECORD) if kind.is_of(path)), None)
    record = None if kind is None else kind.read(path)
    return record if record is not None and record.heads == fingerprint else None


def spent_before(model: Model, source: HeadsSource, heads: ExitHeads | None) -> Spent | None:
    """What the trainings took of the heads that another one begins from, that of their model among them.

    source: where the heads come from. None if heads or model were trained and no record of that lies beside
    them. Raises DamagedFileError.
    """
    if heads is None:
        return _spent_on_model(model)
    record = record_of(Path(source), heads.fingerprint) if isinstance(source, (str, Path)) else None
    if record is not None:
        return spent_on(record)
    return None if _were_trained(heads) else _spent_on_model(model)


def _spent_on_model(model: Model) -> Spent | None:
    """What training the model itself took: nothing where its folder has no record of one."""
    path = None if model.source is None else model.source.folder / TRAINING_FILE
    if path is None or not RECORD.is_of(path):
        return Spent()
    record = RECORD.read(path)
    return spent_on(record) if record.heads == model.identity.base_fingerprint else None


def spent_on(record: TrainingRecord | GateRecord) -> Spent | None:
    """What a training took with all that it began from, None if a part of that is not known."""
    return None if record.earlier is None else record.own + record.earlier


def _were_trained(heads: ExitHeads) -> bool:
    """Whether more than sums over a text made them: steps, as far as they say."""
    maps = {} if heads.kv_maps is None else heads.kv_maps.provenance
    return "trained" in heads.provenance or GATE in heads.provenance or "trained" in maps
