"""Documents decoded freely with a policy, what the full model says of every token, and how both are kept."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.loop import check_decodable, key_value_bytes
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import Generation
from offramp.decoding.judging import Judge, full_models_choices
from offramp.decoding.openings import Opening
from offramp.decoding.options import DecodingOptions, HeadsSource, PolicySource
from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.code import code_of
from offramp.kit.given import given_of, prompt_of
from offramp.kit.numbers import MOST_RUNS, Count, Whole
from offramp.kit.output_folder import OutputFolder
from offramp.kit.sealed_file import SealedFile
from offramp.models.devices import device_name, free_bytes
from offramp.models.model import Model, in_evaluation
from offramp.tracing.plan import plain_greedy
from offramp.tracing.request import MODEL_CODE, library_versions

ROWS_TOGETHER = 16
"""Documents decoded side by side, at most, and kept in one file."""


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


def rows_together(model: Model, options: DecodingOptions, tokens: int, engine: Engine | None = None) -> int:
    """How many documents of so many tokens, prompt and answer, a policy decodes side by side.

    engine: the model's, for who asks of many policies: to find it takes as long as a check of them all.

    More than one where each row of a batch leaves at its own exit, as alone: the family has the ability, and
    the strategy allows it. Then `ROWS_TOGETHER`, or as many as fit in half of the free memory.

    Raises InputError and PolicyError for what cannot be decoded at all.
    """
    engine = engine or engine_of(model)
    check_decodable(engine, options)
    try:
        check_decodable(engine, replace(options, batching="rebatch"), batch=2)
    except InputError:
        return 1
    fitting = free_bytes(model.stack.device) // 2 // max(key_value_bytes(model) * tokens, 1)
    return max(1, min(ROWS_TOGETHER, fitting))


def execute(
    model: Model,
    openings: Sequence[Opening],
    options: DecodingOptions,
    judge: Judge,
    *,
    rows: int,
) -> list[Execution]:
    """Decode documents greedily and freely, `rows` side by side, and judge what came out.

    Greedily means the largest logit, whatever the model's generation config says, and an end token ends an
    answer.

    Raises InputError and PolicyError as `offramp.generate` does.
    """
    found: list[Execution] = []
    for start in range(0, len(openings), rows):
        some = openings[start : start + rows]
        generations = _decode(model, some, options)
        judged = judge([(opening.ids, row.tokens) for opening, row in zip(some, generations, strict=True)])
        for opening, row, verdict in zip(some, generations, judged, strict=True):
            agrees = full_models_choices(verdict, 0, judge.model.dtype)
            found.append(
                Execution(
                    document=opening.document,
                    prompt=opening.ids,
                    answer=tuple(row.tokens),
                    exits=tuple(int(exit) for exit in row.exits),
                    agrees=tuple(map(bool, agrees)),
                    layers_executed=row.layers_executed - row.prompt_layers,
                    problem=row.problem,
                    cut=None if given_of(opening.ids) is None else row.stopped == "length",
                )
            )
    return found


@in_evaluation
def execute_prompts(
    model: Model,
    prompts: Sequence[Sequence[int]],
    policy: PolicySource,
    *,
    kv: str | None = None,
    heads: HeadsSource = None,
    lookup: int = 0,
    new_tokens: int = 48,
) -> list[Execution]:
    """Decode prompts, token ids, greedily and freely with a policy; hold each token against the full model.

    Side by side where each may leave at its own exit, else one by one; the end token ends an answer. policy,
    kv, heads, lookup: as `offramp.generate`.

    Raises InputError and PolicyError as `offramp.generate` does.
    """
    if not prompts:
        raise InputError("there are no prompts", where="prompts=", fix="give at least one")
    openings = [
        Opening(f"prompt {place + 1}", prompt_of(ids), traced=False) for place, ids in enumerate(prompts)
    ]
    options = DecodingOptions.read(policy, kv=kv, heads=heads, lookup=lookup, new_tokens=new_tokens)
    longest = new_tokens + max((len(opening.ids) for opening in openings), default=0)
    rows = len(openings) if rows_together(model, options, longest) > 1 else 1
    return execute(model, openings, options, Judge(model), rows=rows)


def _decode(model: Model, openings: Sequence[Opening], options: DecodingOptions) -> tuple[Generation, ...]:
    prompts = prompt_batch(model, [list(opening.ids) for opening in openings], chat=False)
    batching = "rebatch" if len(openings) > 1 else "lockstep"
    with plain_greedy(model, options.new_tokens), model.given([opening.ids for opening in openings]):
        result = generate_batch(
            model,
            prompts.ids,
            prompts.mask,
            replace(options, batching=batching),
        )
    return result.rows


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class KeptExecutions:
    """What one file holds: a request (see `request_of`), and what answers it."""

    request: Mapping[str, Any]
    executions: tuple[Execution, ...]


def _contradictions(kept: KeptExecutions) -> Iterator[str]:
    """What of executions cannot answer their request."""
    asked = [(document, tuple(prompt)) for document, prompt, *_ in kept.request["documents"]]
    if [(one.document, one.prompt) for one in kept.executions] != asked:
        yield "it holds other documents than were asked for"
    for one in kept.executions:
        if not len(one.answer) == len(one.exits) == len(one.agrees):
            yield f"{one.document} has {len(one.answer)} tokens, other exits and other choices"
        if not one.answer and one.problem is None:
            yield f"{one.document} has no answer"
        if any(exit > one.exits[0] for exit in one.exits):
            yield f"{one.document} has an exit deeper than {one.exits[0]}, the last layer"
        if one.layers_executed > sum(one.exits) * MOST_RUNS:
            yield f"{one.document} has {one.layers_executed} layers for {len(one.answer)} tokens"


FILE = SealedFile(
    KeptExecutions,
    "{name} is damaged",
    "nothing: it is decoded again",
    contradictions=_contradictions,
)
EXECUTIONS_FOLDER: OutputFolder[None] = OutputFolder(
    what="decoded documents",
    own=lambda folder: {},  # files of others beside them are in nothing's way
    choose="choose another with folder= (--executions)",
)


def request_of(
    model: Model,
    options: DecodingOptions,
    openings: Sequence[Opening],
    *,
    rows: int,
    reference: Model | None = None,
) -> dict[str, Any]:
    """Everything that changes what decoding some documents gives, as JSON.

    reference: that judges it, None for the full model itself.
    The documents belong together: in its last digits a row depends on those that share its batch, and so does
    which of two equally good tokens it takes.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "model": _described(model),
        "reference": None if reference is None else _described(reference),
        "transforms": list(model.transforms),
        "policy": str(options.policy),
        "kv": options.kv,
        "draft_length": options.draft_length,
        "heads": None if options.heads is None else options.heads.fingerprint,
        "documents": [
            [opening.document, list(opening.ids), *([given.fingerprint] if given is not None else [])]
            for opening, given in ((opening, given_of(opening.ids)) for opening in openings)
        ],
        "new_tokens": options.new_tokens,
        "rows": rows,
        "device": device_name(model.stack.device),
        "threads": torch.get_num_threads(),
        "code": code_of(__name__, MODEL_CODE),
        "versions": library_versions(model.transforms, model.reads),
    }


def _described(model: Model) -> dict[str, str]:
    return {"fingerprint": model.identity.fingerprint, "dtype": model.dtype, **model.asked_attention}


class ExecutionStore:
    """Executions by everything that changes them: in a folder, or in memory without one.

    made: how many documents were decoded since, not read. A folder belongs to one process at a time.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.made = 0
        self._memory: dict[str, tuple[Execution, ...]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path | None) -> Iterator[ExecutionStore]:
        """The executions in a folder, which is made if it is not there, and held until the end.

        Raises InputError if another process holds it, or if it cannot be made or written.
        """
        if folder is None:
            yield cls(None)
            return
        with EXECUTIONS_FOLDER.claimed(folder):
            yield cls(folder)

    def get_or_make(
        self, request: Mapping[str, Any], make: Callable[[], Sequence[Execution]]
    ) -> tuple[Execution, ...]:
        """What answers a request: kept from before, else made now and kept.

        A file whose bytes changed is said on standard error, and made again.
        """
        key = sha256_of_text(canonical_json(request))
        if key not in self._memory:
            self._memory[key] = self._read(key) or self._make(key, request, make)
        return self._memory[key]

    def _make(
        self, key: str, request: Mapping[str, Any], make: Callable[[], Sequence[Execution]]
    ) -> tuple[Execution, ...]:
        executions = tuple(make())
        self.made += len(executions)
        if self.folder is not None:
            FILE.write(self._path(key), KeptExecutions(request, executions))
        return executions

    def _read(self, key: str) -> tuple[Execution, ...] | None:
        if self.folder is None or not (path := self._path(key)).exists():
            return None
        try:
            kept = FILE.read(path)
            if sha256_of_text(canonical_json(kept.request)) != key:
                raise FILE.damaged(path, "it answers another request")
        except DamagedFileError as error:
            print(f"offramp: decoded again: {error.what}", file=sys.stderr)
            return None
        return kept.executions

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"
