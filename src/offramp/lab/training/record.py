"""`training.json` of a model that was trained from scratch, and what says whose folder it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from offramp.lab.training.recipe import AnyRecipe
from offramp.records.sealed_file import SealedFile

REQUEST_FILE = "request.json"


@dataclass(frozen=True)
class Request:
    """What makes a training another one. text: its fingerprint. code: of all that computes. base: fingerprint
    of the model that it goes on from, None for none."""

    recipe: AnyRecipe
    text: str
    device: str
    code: str
    versions: dict[str, str]
    base: str | None = None


@dataclass(frozen=True)
class Settings:
    """What holds from the first step on: the order of sums depends on it."""

    threads: int
    device: str


@dataclass(frozen=True)
class Evaluated:
    """How a model stands after some steps. Losses are nats a token; seconds: of training until then.

    trained: mean loss of the steps since the evaluation before. natural, generated: of the validation part,
    the same tokens for every model of a text. accuracy: of the answers that take 1, 2, ... steps, the share
    that is right; None where there is none.
    """

    step: int
    tokens: int
    seconds: float
    trained: float
    natural: float
    generated: float
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class TrainingRecord:
    """One training, or where it stood when this model was kept.

    width, parameters, products: of the model (`offramp.lab.training.kinds`). stopped: why there was no
    further step. diverged: a loss was not finite; the weights are those before that step, or those whose loss
    on held-out text it was. model: fingerprint of the folder's model. documents: of offramp's own workloads,
    ids of those that share text with what was trained on, by the workload's fingerprint. active: parameters
    that a token meets, None where it meets all.
    """

    recipe: AnyRecipe
    text: str
    vocabulary: int
    width: int
    parameters: int
    products: int
    settings: Settings
    step: int
    tokens: int
    seconds: float
    stopped: str
    diverged: bool
    history: tuple[Evaluated, ...]
    model: str
    versions: dict[str, str]
    documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    active: int | None = None


RECORD = SealedFile(
    TrainingRecord,
    what="the record {name} of a training is damaged",
    fix="give --overwrite to train again, or choose another folder with -o",
    version=1,
    kind="lab training",
)
REQUEST = SealedFile(
    Request,
    what="{name}, which says what a training is of, is damaged",
    fix="give --overwrite to train again, or choose another folder with -o",
    version=1,
    kind="lab request",
)
