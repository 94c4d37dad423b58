"""What a trace answers, signals and default sizes among it: all that changes it, with one fingerprint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from offramp.errors import InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.given import Kind
from offramp.kit.numbers import Count, Whole
from offramp.kit.rules import suggest
from offramp.kit.stays_json import Of
from offramp.models.devices import CPU
from offramp.tracing.facts import DOCUMENT_FACTS, FACTS, HEAD_FACTS, SIGNAL_FACTS, Fact

SCHEMA_VERSION = 4
"""2: extra facts on request. 3: of a transformed model the untransformed one's top-1, and layers with their
own size of an element. 4: sketches of the documents' texts. A trace of version 1 is one without any of
this."""

DEFAULT_TOKENS = 1600
"""50 documents of 32 tokens: what three workloads of a small model allow in three minutes on two cores."""

DEFAULT_CONTEXT = 512

FITTING_TOKENS = 16_384
"""To fit exit heads on: enough for a hidden size of several hundred; larger models gain from more."""

TRAINING_TOKENS = 65_536
"""To train exits on, where there are so many."""

LOSS_VOCABULARY = 8192
"""Tokens that the loss of a training looks at: in equal seconds this agrees more often than all of a larger
vocabulary do, since a step costs a fifth (docs/training.md)."""

ALL = "all"


@dataclass(frozen=True)
class Recording:
    """Names of what is recorded: signals (of SIGNAL_FACTS and DOCUMENT_FACTS) and facts of fitted heads."""

    signals: tuple[str, ...] = ()
    head_facts: tuple[str, ...] = ()

    @classmethod
    def of_request(cls, request: Mapping[str, Any]) -> Recording:
        """What the JSON form of a request asks for; a request of schema version 1 asks for nothing more."""
        heads = request.get("heads")
        return cls(tuple(request.get("signals", ())), tuple(heads["facts"]) if heads else ())

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The columns per (token, exit), those of every trace first."""
        of_signals = [fact for name in self.signals for fact in SIGNAL_FACTS.get(name, ())]
        of_heads = [fact for fact in HEAD_FACTS if fact.name in self.head_facts]
        return (*FACTS, *of_signals, *of_heads)

    @property
    def document_facts(self) -> tuple[Fact, ...]:
        """The columns per token that say something about its whole document."""
        return tuple(DOCUMENT_FACTS[name] for name in self.signals if name in DOCUMENT_FACTS)


def parse_signals(signals: str | Sequence[str], mode: str) -> tuple[str, ...]:
    """Names of the signals to record, each once and sorted.

    signals: names, or one text "restricted,logit_gap" (also joined by "+"), or "all" for everything that the
    workload's mode allows. mode: "text" or "generation".

    Raises InputError for an unknown name, with near ones, and for a signal of prompts in text mode.
    """
    words = signals.replace("+", ",").split(",") if isinstance(signals, str) else signals
    names = {word.strip() for word in words} - {""}
    known = (*SIGNAL_FACTS, *DOCUMENT_FACTS)
    of_prompts = set(DOCUMENT_FACTS)
    if ALL in names:
        names = (names - {ALL}) | (set(known) if mode == "generation" else set(known) - of_prompts)
    for name in sorted(names):
        if name not in known:
            fix = suggest(name, known)
            raise InputError(f"unknown signal {name!r}", where="signals= (--signals)", fix=fix)
    needs_prompts = sorted(names & of_prompts)
    if needs_prompts and mode != "generation":
        raise InputError(
            f"{needs_prompts[0]} describes a prompt, and a workload of given texts has none",
            where="signals= (--signals)",
            fix=f"leave {needs_prompts[0]} out, or trace a workload of prompts such as chat or math",
        )
    return tuple(sorted(names))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How much of a text is traced, and what is recorded of it beside the facts of every trace."""

    tokens: Whole
    """In all."""
    context: Whole | None = None
    """Tokens of one sequence at most, None for what the model takes, up to the usual."""
    document_tokens: Whole | None = None
    """Of one document at most, None for what suits their number."""
    signals: tuple[str, ...] = ()
    """Names of what is recorded on request."""


_Ids = dict[str, tuple[str, ...]]
"""Of documents, by workload fingerprint."""


@dataclass(frozen=True)
class _Named:
    """What is read of a description, here and below: all else in it is kept, and not looked at."""

    name: str
    fingerprint: str
    source: str | None = None


@dataclass(frozen=True)
class _StatedModel(_Named):
    dtype: str | None = None
    revision: str | None = None
    transforms: tuple[str, ...] = ()
    base_fingerprint: str | None = None
    attention: str | None = None
    trained_on: _Ids = field(default_factory=dict)


@dataclass(frozen=True)
class _StatedWorkload(_Named):
    mode: Literal["text", "generation"] = "text"


@dataclass(frozen=True)
class _StatedMaps:
    fingerprint: str
    ranks: dict[Count, Count | None]


@dataclass(frozen=True)
class _StatedHeads:
    fingerprint: str
    reading: str | None = None
    facts: tuple[str, ...] = ()
    documents: _Ids = field(default_factory=dict)
    candidate_exit: Count | None = None
    short_list: Count | None = None
    lens_rank: Count | None = None
    mlp_units: Whole = 0
    kv_maps: _StatedMaps | None = None


@dataclass(frozen=True, kw_only=True)
class TraceRequest(Sampling):
    """Everything that changes a trace: two requests with one fingerprint give the same bytes.

    Sizes are settled, signals sorted.
    """

    context: Count
    model: Annotated[dict[str, Any], Of(_StatedModel)]
    """Its description, with a fingerprint."""
    workload: Annotated[dict[str, Any], Of(_StatedWorkload)]
    """Likewise."""
    dtype: str
    exits: tuple[Count, ...]
    """Layers."""
    reductions: Literal["compiled", "eager"]
    threads: Whole
    """Torch's, since the order of sums depends on it."""
    code: str
    """Fingerprint of the code that measures."""
    versions: dict[str, str]
    """Of the libraries that compute."""
    heads: Annotated[dict[str, Any], Of(_StatedHeads)] | None = None
    """None, or of the fitted heads {"fingerprint", what they read exits by (`heads.described.read_by`),
    "trained": true where they are, "short_list": its tokens if they are not as many as usual,
    "candidate_exit", "documents": ids of those that fitting saw by workload fingerprint, "texts": whether
    these documents' texts are known, "facts": what they give}."""
    device: str = CPU
    """What computes, "cpu" or an accelerator by name, whose sums round otherwise."""
    reference: dict[str, str] | None = None
    """Name, fingerprint, dtype and source of another model whose top-1 is kept; None for none, and of a
    transformed model, which has its own."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field; without the device if that is the processor, as it always was, and
        without a reference if there is none."""
        value = {**asdict(self), "exits": list(self.exits), "signals": list(self.signals)}
        if self.device == CPU:
            del value["device"]
        if self.reference is None:
            del value["reference"]
        return value

    @property
    def recording(self) -> Recording:
        """What is recorded beyond the facts of every trace."""
        return Recording.of_request(self.to_json())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_of_text(canonical_json({"schema_version": SCHEMA_VERSION, **self.to_json()}))


MODEL_CODE = "offramp.tracing.loading"
"""The module that makes a model what it is, transforms among it: its code counts where a model is at hand."""


SEEING = {"pillow": "PIL", "torchvision": "torchvision"}
"""What brings a picture to the size that a model sees, and what is imported of each; the second is used where
it is installed."""


def library_versions(reads: Kind | None = None) -> dict[str, str]:
    """Versions of the libraries that a trace's numbers depend on. reads: what a model may be given beside
    texts."""
    names = ["torch", "transformers", "numpy"]
    names += (name for name in SEEING if reads == "image" and importlib.util.find_spec(SEEING[name]))
    return {name: importlib.metadata.version(name) for name in names}


DIGITS = 20
"""Of a layer's number that are read: no model has one of so many."""


Rank = Literal["auto", "full"] | Count
"""Of K,V maps; auto: the lowest that explains nearly as much as full rank."""


def parse_exits(
    exits: str | Iterable[int], layers: int | None, where: str = "exits= (--exits)"
) -> tuple[int, ...]:
    """Layers to trace, ascending, the last one always among them.

    exits: "all", "10,20,30" (also joined by "+"), or numbers. layers: of the model, None where that is not
    known yet: then "all" are none, and no last one is added. where: they were given.

    Raises InputError for a layer that is not there.
    """
    if isinstance(exits, str):
        if exits == "all":
            return tuple(range(1, (layers or 0) + 1))
        words = exits.replace("+", ",").split(",")
        if not all(word.strip().isdecimal() for word in words):
            raise InputError(
                f"the exits {exits!r} are not a list of layers", where=where, fix="write 10,20,30 or all"
            )
        exits = [int(word[:DIGITS]) for word in map(str.strip, words)]
    try:
        wanted = {operator.index(layer) for layer in exits}
    except TypeError as error:
        raise InputError(
            f"the exits {exits!r} are not a list of layers", where=where, fix="write 10,20,30 or all"
        ) from error
    last = max(wanted, default=0) if layers is None else layers
    unknown = sorted(layer for layer in wanted if not 1 <= layer <= last)
    if unknown or not wanted:
        raise InputError(
            f"the model has no exit {unknown[0]}" if unknown else "no exit was asked for",
            where=where,
            fix=f"choose among 1 to {'the number of its layers' if layers is None else layers}",
        )
    return tuple(sorted({*wanted, last}))
