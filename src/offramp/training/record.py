"""`training.json`: what was trained, on what, how it went, and what it cost. It is written last."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from offramp.errors import InputError
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import to_json
from offramp.tracing.fitting.documents import FittingRows
from offramp.training.checkpoint import Evaluated, Settings
from offramp.training.evaluation import Evaluation
from offramp.training.recipe import Recipe
from offramp.training.request import ExecutedTraining, RegularisedTraining

REQUEST_FILE = "request.json"


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
class Rows:
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
    def of(cls, rows: FittingRows, fit: int, held_out: int, states_bytes: int = 0) -> Rows:
        """Of planned rows, so many of which were trained on and judged by."""
        documents = len(rows.held_out)
        return cls(rows.tokens, documents, int(rows.held_out.sum()), fit, held_out, states_bytes)


@dataclass(frozen=True)
class TrainingRecord:
    """One finished training.

    request: what was asked for and of which model and texts. floors: of the `leaving` of evaluations. steps:
    that were taken. stopped: why no further. logit_lens, before, trained: every exit on all held-out rows,
    read without heads, from where training started (the ridge lens), and as trained. history: on some of
    these rows. heads: the fingerprint of the exits' file. earlier: what the trainings took that it began
    from, None if that is not known. Of the kind "executed" the one entry of before and trained is of the
    tokens that stay, with the K,V maps as they were and as trained; its `leaving` is the share that left.

    Of the kind "regularised" before (the original model) and trained have an entry for L at their end, and
    logit_lens is empty; heads is the fingerprint of the trained model; documents, by workload fingerprint,
    and texts, sketches of them in the same order, are those that its training saw, or one before it. Other
    kinds leave these to their heads.
    """

    request: TrainingIdentity
    settings: Settings
    rows: Rows
    steps: int
    stopped: str
    seconds: Seconds
    floors: tuple[float, ...]
    logit_lens: tuple[Evaluation, ...]
    before: tuple[Evaluation, ...]
    trained: tuple[Evaluation, ...]
    history: tuple[Evaluated, ...]
    heads: str
    versions: dict[str, str]
    earlier: Spent | None
    documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

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


RECORD = SealedFile(
    TrainingRecord,
    what="the record {name} of a training is damaged",
    fix="give --overwrite to train again, or choose another folder with -o",
    version=2,
    kind="training",
)
REQUEST = SealedFile(
    TrainingIdentity,
    what="{name}, which says what a training is of, is damaged",
    fix="give --overwrite to train again, or choose another folder with -o",
    version=1,
    kind="training request",
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
