"""The tables of a study file: settings, the entries of its axes, and what else it may hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from offramp.defaults import (
    DRAWS,
    FLOORS,
    MAIN_FLOOR,
    ROUNDS,
    SEED,
    SHORTLIST,
    TIMED_PROMPTS,
    TIMED_TOKENS,
    TIMING_SECONDS,
    WORTH,
)
from offramp.kit.given_file import (
    Count,
    Layers,
    Line,
    Minutes,
    NotNegative,
    Number,
    Positive,
    Seconds,
    Share,
    Text,
    Threads,
    TomlTable,
    Truth,
    Whole,
)
from offramp.models.devices import AUTO as AUTO_DEVICE
from offramp.models.source import looks_like_hub_id, split_revision
from offramp.scoring.estimate import DRAWS_NEEDED, MOST_DRAWS
from offramp.tracing.request import DEFAULT_TOKENS, FITTING_TOKENS, LOSS_VOCABULARY, TRAINING_TOKENS

NONE = "none"
"""The entry of an axis that leaves things as they are: no transform, no training, or the logit lens."""
LEAGUE, TUNED = "league", "tuned"
"""Entries of the axis of policies that stand for a search instead of one policy."""
OWN = "own"
"""In the place of a workload that heads are fitted or exits trained on: whichever is traced through them."""
AUTO = "auto"
"""As many new tokens as there is time for."""
FILE_SOURCES = ("txt", "jsonl")
"""Sources of workloads in the user's own files; their argument begins with a path."""

Draws = Annotated[int, Field(strict=True, ge=DRAWS_NEEDED, le=MOST_DRAWS)]
"""A study may be planned here for a machine of more cores; with very many torch ends without a word."""
Month = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]


class StudySettings(TomlTable):
    """The table [study]: what is the same for all cells.

    exits, context, document_tokens, signals: as `offramp trace` takes them.
    """

    hints: ClassVar[Mapping[str, str]] = {"name": "write small letters, digits and single hyphens"}

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str = ""
    description: str = ""
    tokens: Count = DEFAULT_TOKENS
    """Per workload."""
    device: str = AUTO_DEVICE
    """Where models compute; "auto" is settled when the study is planned, as the accelerator of this machine
    or its processor."""
    dtype: str = "float32"
    threads: Threads = Field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Of torch, by default the cores at hand."""
    decode_threads: Threads | None = None
    """Of what times single tokens; by default `threads`."""
    exits: str | tuple[Count, ...] = "all"
    context: Count | None = None
    document_tokens: Count | None = None
    signals: tuple[Text, ...] = ()
    floors: tuple[Share, ...] = Field(default=FLOORS, min_length=1)
    """On agreement."""
    worth: NotNegative = WORTH
    """The gain in speed from which on early exit pays."""
    details: Truth = False
    """Whether rankings hold what a page of their own shows besides."""
    seed: Whole = SEED
    draws: Draws = DRAWS
    """Of the bootstrap."""


class AxisEntry(TomlTable):
    """One entry of an axis; a text alone is its name.

    named_alike: keys that are the name too where they are not given.
    """

    named_alike: ClassVar[tuple[str, ...]] = ()

    name: Line

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or "name" not in value:
            return value
        return {**dict.fromkeys(cls.named_alike, value["name"]), **value}


class ModelEntry(AxisEntry):
    """A model and the facts that comparisons need.

    parameters, layers, hidden, vocabulary: sizes of a model that may not be here, for checks and estimates.
    """

    named_alike: ClassVar[tuple[str, ...]] = ("source", "base")
    hints: ClassVar[Mapping[str, str]] = {"released": 'write year and month: released = "2024-11"'}
    former: ClassVar[Mapping[str, str]] = {
        "published_eas": "remove it, run the study, and give the values to experiments/claims/eas_fit.py"
    }

    source: Text
    """Bundled name, folder (relative to the study file), .gguf file or Hub id, of which a revision may be
    meant: "owner/name@revision"."""
    base: Text
    """The independent training it comes from, by default the name, of whatever revision."""
    family: Text | None = None
    generation: Number | None = None
    released: Month | None = None
    """Year and month."""
    parameters: Positive | None = None
    kind: Literal["dense", "moe", "ssm", "hybrid"] | None = None
    stage: Literal["base", "tuned"] | None = None
    layers: Layers | None = None
    hidden: Count | None = None
    vocabulary: Count | None = None
    trust_remote_code: Truth = False
    """Whether code that comes with the model may be run."""

    @model_validator(mode="before")
    @classmethod
    def _of_any_revision(cls, value: Any) -> Any:
        """Revisions of one repository come from one training."""
        value = {"name": value} if isinstance(value, str) else value
        name = value.get("name") if isinstance(value, dict) else None
        if isinstance(name, str) and looks_like_hub_id(name):
            return {"base": split_revision(name)[0], **value}
        return value


class WorkloadEntry(AxisEntry):
    """A workload."""

    named_alike: ClassVar[tuple[str, ...]] = ("source",)

    source: Text
    """As `--workload` takes it; paths are relative to the study file."""


class HeadsEntry(AxisEntry):
    """Exit heads: fitted on some workloads, given as a file, or "none", which is the logit lens.

    tokens, lens, classifiers: as `offramp heads fit`.
    """

    fit: tuple[Text, ...] = ()
    """Names of the axis of workloads, or sources; "own" is the one that is traced."""
    tokens: Count = FITTING_TOKENS
    lens: Truth = True
    classifiers: tuple[Text, ...] = ()
    file: Text | None = None


class TrainingEntry(AxisEntry):
    """Exits that are trained, those of a folder of `offramp exits train`, or "none": exits as they are.

    steps, minutes: one of them, 20 minutes without either. The rest is as of `offramp exits train`.
    """

    kind: Text | None = None
    """ "lens" or "block"."""
    at: str | tuple[Count, ...] | None = None
    """Exits below L, by default those of the study."""
    steps: Count | None = None
    minutes: Minutes | None = None
    text: tuple[Text, ...] = Field(default=(OWN,), min_length=1)
    """Workloads, as of `fit`."""
    tokens: Count = TRAINING_TOKENS
    units: Count | None = None
    short_list: Count = SHORTLIST
    loss_vocabulary: Whole = LOSS_VOCABULARY
    precision: Text = "auto"
    folder: Text | None = None
    """Of exits that are there."""


class PolicyEntry(AxisEntry):
    """A policy in its grammar, "league" or "tuned".

    kv, batch: how it is charged for.
    """

    named_alike: ClassVar[tuple[str, ...]] = ("policy",)

    policy: Text
    kv: Text = "propagate"
    batch: Count = 1

    @property
    def searched(self) -> bool:
        """Whether it stands for a search instead of one policy."""
        return self.policy in (LEAGUE, TUNED)


class TransformEntry(AxisEntry):
    """What is done to a model, step by step in this order; a name alone is the only step, or "none"."""

    steps: tuple[Text, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _with_step(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or value.get("name") in (None, NONE):
            return value
        return {"steps": [value["name"]], **value}

    @property
    def label(self) -> str:
        """As cells name it: "" for no transform."""
        return "" if self.name == NONE else self.name


class MachineEntry(AxisEntry):
    """A machine."""

    named_alike: ClassVar[tuple[str, ...]] = ("source",)

    source: Text
    """ "local", a built-in name, a .toml file relative to the study file, or "bytes moved", which counts
    bytes where nothing can be timed."""


class LoadEntry(AxisEntry):
    """Requests under which policies are asked about."""

    policies: tuple[Text, ...] = Field(default=(TUNED,), min_length=1)
    """Texts, or "tuned" for the tuner's answers."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Of `offramp load`, by their names: rates, arrivals, lengths, rows, ..."""


class WorkEntry(AxisEntry):
    """Work of a kind that a plug-in brings, done on every row; its name is that of the kind."""

    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of its class, in the place of what the study says or of their defaults."""


class Exclude(TomlTable):
    """Cells to leave out: those that have all the names that are given, and are of the kind if one is."""

    kind: Text | None = None
    model: Text | None = None
    transform: Text | None = None
    workload: Text | None = None
    heads: Text | None = None
    training: Text | None = None
    policy: Text | None = None
    machine: Text | None = None


class Certify(TomlTable):
    """The tuner's answers executed: certificates are of documents that were decoded for them."""

    documents: Count | None = None
    """That a candidate is decoded on, at most; by default four times the fewest that could certify a
    floor."""
    candidates: Count = 2
    """At most."""
    new_tokens: Count = 16
    """Of each document's answer."""
    seconds: Seconds = 33.0
    """At all floors of a text together."""


class Decode(TomlTable):
    """Decoding for real on this machine: with the policies of the verdicts where certificates are asked for,
    else with the best of the league.
    """

    best: Count = 5
    """How many policies."""
    floor: Share = MAIN_FLOOR
    """Of the league that they are taken from."""
    new_tokens: Count | Literal["auto"] = TIMED_TOKENS
    """ "auto" as many as an answer has that is certified."""
    prompts: Count = TIMED_PROMPTS
    """Each is one sample of an interval."""
    rounds: Count = ROUNDS
    """How often each is decoded, at most."""
    seconds: Seconds = TIMING_SECONDS
    """Of timing in one cell; it stops sooner where every policy's question is answered."""
    beside: tuple[Text, ...] = ()
    """What would be used instead of exits, timed in the same turns: "int8", "int8 + prompt_lookup"; "auto":
    the baselines by rule."""


class Combine(TomlTable):
    """Accelerations alone and together.

    prompts, rounds, seconds: as of `Decode`.
    """

    accelerations: tuple[Text, ...] = Field(min_length=1)
    policy: Text | None = None
    """By which `exits` and `speculate` leave."""
    new_tokens: Count = TIMED_TOKENS
    prompts: Count = TIMED_PROMPTS
    rounds: Count = ROUNDS
    seconds: Seconds = TIMING_SECONDS


class Large(TomlTable):
    """Models traced layer by layer from disk."""

    stream: Truth = True
    memory: Text | None = None
    """For the weights, as "16GB"; by default what is free."""


def exit_list(exits: str | Sequence[int]) -> list[int]:
    """The exits of a study that are not "all" as numbers, ascending, each once."""
    numbers = map(int, exits.replace("+", ",").split(",")) if isinstance(exits, str) else exits
    return sorted({*numbers})
