"""`training.json`: what was trained, on what, how it went, and what it cost. It is written last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from offramp.heads.file import heads_path
from offramp.kit.numbers import Count, NotNegative, Number, Proportion, Threads, Whole
from offramp.kit.sealed_file import SealedFile
from offramp.models.training_record import TRAINING_FILE
from offramp.training.recipe import Recipe
from offramp.training.request import ExecutedTraining, GateTraining, Precision, RegularisedTraining

if TYPE_CHECKING:
    from offramp.decoding.options import HeadsSource
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.tracing.fitting.fitting_documents import FittingRows

REQUEST_FILE = "request.json"

GATE = "gate"
"""The fact, and the signal, of gates."""

FLOORS = (0.99, 0.97, 0.95, 0.90)
"""Agreement over all tokens, those that stay included, at which it is said how many could leave."""


@dataclass(frozen=True)
class Evaluation:
    """One exit on held-out tokens.

    Where the model itself is trained, loss is KL(p_L of the original || p_exit), agreement that with the
    trained model's own full depth, and leaving is at floors of reference_agreement.
    """

    loss: Number
    """Mean KL(p_L || p_exit), nats."""
    agreement: Proportion
    """Share of tokens whose best token is the full model's."""
    leaving: tuple[Proportion, ...]
    """Share of all tokens that could leave there at each of FLOORS, the surest first, by the exit's own
    largest probability."""
    reference_agreement: Proportion | None = None
    """Share of tokens whose best token is the original full model's; None where no model was trained."""
    nll: NotNegative | None = None
    """Of the text's own tokens, nats; None elsewhere."""
    bits_per_byte: NotNegative | None = None
    """The same of its bytes; None elsewhere."""


@dataclass(frozen=True)
class Settings:
    """What was decided before the first step, minutes by timing this machine, and holds from then on."""

    steps: Count
    every: Count
    """Steps from one evaluation to the next."""
    precision: Precision
    threads: Threads
    """The order of sums depends on them, and on the device."""
    device: str


@dataclass(frozen=True)
class Evaluated:
    """Held-out figures after so many steps."""

    step: Whole
    seconds: NotNegative
    """Of training until then."""
    exits: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Seconds:
    """What each part took."""

    states: NotNegative
    """Caching them, and before that the model's answers, where it writes the text itself."""
    training: NotNegative
    """With its evaluations."""
    heads: NotNegative
    """Classifiers and K,V maps."""

    @property
    def all(self) -> float:
        """Of all parts."""
        return self.states + self.training + self.heads


@dataclass(frozen=True)
class Spent:
    """What trainings took, one after the other: seconds, and tokens that they read."""

    seconds: NotNegative = 0.0
    tokens: Whole = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.tokens + other.tokens)


@dataclass(frozen=True)
class ReadRows:
    """What was read."""

    tokens: Whole
    """Planned rows."""
    documents: Whole
    held_out_documents: Whole
    fit: Whole
    """Rows to train on."""
    held_out: Whole
    """Held-out rows in figures."""
    states_bytes: Whole
    allowed: Whole | None = None
    """Tokens that might be read, fewer than asked for where the minutes allowed no more; None if any."""

    @classmethod
    def of(cls, rows: FittingRows, fit: int, held_out: int, states_bytes: int = 0) -> ReadRows:
        """Of planned rows, so many of which were trained on and judged by."""
        documents = len(rows.held_out)
        return cls(rows.tokens, documents, int(rows.held_out.sum()), fit, held_out, states_bytes)


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a training left, and how good that is: every exit on all held-out rows.

    Of the kind "executed" the one entry of before and trained is of the tokens that stay, with the K,V maps
    as they were and as trained; its `leaving` is the share that left. Of the kind "regularised" before (the
    original model) and trained have an entry for L at their end, and logit_lens is empty.
    """

    heads: str
    """The fingerprint of the exits' file, or of the trained model."""
    before: tuple[Evaluation, ...]
    """From where training started: the ridge lens."""
    trained: tuple[Evaluation, ...]
    """As trained."""
    floors: tuple[Proportion, ...] = FLOORS
    """Of the `leaving` of evaluations."""
    logit_lens: tuple[Evaluation, ...] = ()
    """Read without heads."""
    documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Those that the training of a model itself saw, or one before it, by workload fingerprint; other kinds
    leave them to their heads."""
    texts: tuple[str, ...] = ()
    """Sketches of them, in the same order."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(Left):
    """One finished training."""

    request: TrainingIdentity
    """What was asked for, and of which model and texts."""
    settings: Settings
    rows: ReadRows
    steps: Whole
    """That were taken."""
    stopped: str
    """Why no further."""
    seconds: Seconds
    history: tuple[Evaluated, ...]
    """On some of the held-out rows."""
    versions: dict[str, str]
    earlier: Spent | None
    """What the trainings took that it began from, None if that is not known."""

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
    """What makes a training another one."""

    recipe: Recipe
    model: dict[str, str]
    """Name, fingerprint and dtype."""
    workloads: tuple[dict[str, str], ...]
    """Each one's name and fingerprint."""
    classifiers: bool
    """Whether they are fitted afterwards."""
    kv_maps: bool
    short_list: Whole
    """Its tokens."""
    device: str
    code: str
    """Of all that computes."""
    start: str | None = None
    """The fingerprint of the heads that it starts from."""


@dataclass(frozen=True)
class Judged:
    """A policy on documents that nothing was chosen on."""

    policy: str
    agreement: Proportion
    seconds_per_token: NotNegative
    saved: Number
    """Share of the full model's seconds."""


@dataclass(frozen=True, kw_only=True)
class GateCourse:
    """How a training of gates went."""

    multiplier: NotNegative
    """Lambda in the end."""
    seconds: tuple[NotNegative, ...]
    """By evaluation, of a token on the documents apart, at the floor."""
    disagreement: tuple[Proportion, ...]
    """By evaluation, there, hard at 0.5, before anything is moved."""


@dataclass(frozen=True, kw_only=True)
class GateRecord(GateCourse):
    """What gates were trained on and for, and what they save beside the best thresholds of the same features.

    Both are chosen on the same documents and judged on held-out ones.
    """

    exits: tuple[Count, ...]
    """Of the gates."""
    machine: str
    floor: Proportion
    kv: str
    seed: Whole
    rows: tuple[Whole, Whole, Whole]
    """Tokens to learn from, to choose by and to judge on."""
    gate: Judged
    """With one threshold of 0.5."""
    thresholds: Judged
    """The fastest of a network that predicts agreement, alike or one per exit, on any set of the exits."""
    plain: NotNegative
    """Seconds of a token of the full model."""
    tokens: Whole
    """That were read."""
    steps: Whole
    took: tuple[NotNegative, NotNegative]
    """Seconds of reading the exits (with the model's answers, if it wrote any), and of training."""
    heads: str
    """The fingerprint of their file."""
    earlier: Spent | None
    """What the trainings took of the exits that got the gates, None if that is not known."""

    kind: ClassVar[str] = GateTraining.kind

    @property
    def own(self) -> Spent:
        """What this training took."""
        return Spent(sum(self.took), self.tokens)


AGAIN = "give --overwrite to train again, or choose another folder with -o"


def _contradictions(record: TrainingRecord) -> Iterator[str]:
    """What of a record cannot be true beside the rest of it."""
    for name in ("before", "trained"):
        if (found := len(getattr(record, name))) != (places := len(record.places)):
            yield f"it has {found} evaluations {name}, of {places} exits"
    executed, whole = (record.kind == of.kind for of in (ExecutedTraining, RegularisedTraining))
    if len(record.logit_lens) != (0 if executed or whole else len(record.trained)):
        yield f"it has {len(record.logit_lens)} evaluations without heads, of {len(record.trained)} exits"
    shares = (1,) if executed else (0, len(record.floors))
    for one in (*record.before, *record.trained, *record.logit_lens):
        if len(one.leaving) not in shares:
            yield f"an evaluation has {len(one.leaving)} shares that leave, of {len(record.floors)} floors"


RECORD = SealedFile(
    TrainingRecord,
    contradictions=_contradictions,
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
