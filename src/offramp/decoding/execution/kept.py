"""Documents that were decoded, as they are kept: what was asked, and each answer. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from offramp.files import canonical_json, sha256_of_text
from offramp.kit.numbers import LARGEST_COUNT, MOST_RUNS, Count, Whole
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import InvalidRecordError, from_json


@dataclass(frozen=True)
class Execution:
    """One document decoded with a policy."""

    IF_ANY: ClassVar[tuple[str, ...]] = ("cut",)

    document: str
    prompt: tuple[Whole, ...]
    answer: tuple[Whole, ...]
    """Token ids, the end token included."""
    exits: tuple[Count, ...]
    """Of each token of the answer; the first is L, since a prompt runs whole."""
    agrees: tuple[bool, ...]
    """Whether each is the choice of the model that judges, the full model or a reference, on the same prefix
    (see `offramp.decoding.judging.full_models_choices`)."""
    layers_executed: Whole
    """For the answer's tokens, the prompt's layers left out, as they ran beside the documents of its
    group."""
    problem: str | None = None
    """Why decoding ended early, None if it did not."""
    cut: bool | None = None
    """Whether it ran into its length limit; None where that is no fault, an answer having no end of its
    own."""

    @property
    def loss(self) -> float:
        """Share of the answer's tokens after the first that are not the judge's choice; 1 after a problem.

        The first comes with the prompt, at full depth, and does not count; an answer of one token loses
        nothing.

        So where it was cut off, unless every token is that choice: an answer that goes round in circles
        agrees with whatever reads it, and shows nothing.
        """
        if self.problem is not None or (self.cut and not all(self.agrees)):
            return 1.0
        decided = self.agrees[1:]
        return 1.0 - sum(decided) / len(decided) if decided else 0.0


@dataclass(frozen=True)
class KeptExecutions:
    """What one file holds."""

    request: Mapping[str, Any]
    """As `offramp.decoding.execution.execution.request_of` makes it; the file is named after it."""
    executions: tuple[Execution, ...]


@dataclass(frozen=True)
class _Asked:
    """What of a request bounds its answers."""

    documents: tuple[tuple[str, tuple[Whole, ...]] | tuple[str, tuple[Whole, ...], str], ...]
    new_tokens: Count
    layers: Count = LARGEST_COUNT
    vocabulary: Count = LARGEST_COUNT
    """Said since both bound the answers; what was kept before says neither."""


def _contradictions(kept: KeptExecutions) -> Iterator[str]:
    """What of executions cannot answer their request."""
    try:
        asked = from_json(_Asked, kept.request)
    except InvalidRecordError as error:
        yield f"of its request, {error}"
        return
    if [(one.document, one.prompt) for one in kept.executions] != [ask[:2] for ask in asked.documents]:
        yield "it holds other documents than were asked for"
    for one in kept.executions:
        if not len(one.answer) == len(one.exits) == len(one.agrees):
            yield f"{one.document} has {len(one.answer)} tokens, other exits and other choices"
        if not one.answer and one.problem is None:
            yield f"{one.document} has no answer"
        if len(one.answer) > asked.new_tokens:
            yield f"{one.document} has {len(one.answer)} tokens, and {asked.new_tokens} were asked for"
        if max(one.answer, default=0) >= asked.vocabulary:
            yield f"{one.document} has a token beyond the {asked.vocabulary} of the vocabulary"
        if max(one.exits, default=0) > asked.layers:
            yield f"{one.document} has an exit deeper than {asked.layers}, the last layer"
        if one.layers_executed > sum(one.exits) * MOST_RUNS:
            yield f"{one.document} has {one.layers_executed} layers for {len(one.answer)} tokens"


FILE = SealedFile(
    KeptExecutions,
    "{name} is damaged",
    "nothing: it is decoded again",
    contradictions=_contradictions,
)


def read_kept(path: Path) -> tuple[Execution, ...]:
    """The executions of a file. Raises DamagedFileError for what cannot answer the request in its name."""
    kept = FILE.read(path)
    if sha256_of_text(canonical_json(kept.request)) != path.stem:
        raise FILE.damaged(path, "it answers another request")
    return kept.executions
