"""Documents decoded freely with a policy, what the full model says of every token, and how both are kept."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine
from offramp.decoding.execution.kept import FILE, KeptExecutions, read_kept
from offramp.decoding.execution.kept import Execution as Execution
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
from offramp.kit.output_folder import OutputFolder
from offramp.models.devices import device_name, free_bytes
from offramp.models.model import Model, in_evaluation
from offramp.tracing.plan import plain_greedy
from offramp.tracing.request import MODEL_CODE, library_versions

ROWS_TOGETHER = 16
"""Documents decoded side by side, at most, and kept in one file."""


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
        "layers": model.layers,
        "vocabulary": model.shape.vocabulary_size,
        "rows": rows,
        "device": device_name(model.stack.device),
        "threads": torch.get_num_threads(),
        "code": code_of(__name__, MODEL_CODE),
        "versions": library_versions(model.reads),
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
            return read_kept(path)
        except DamagedFileError as error:
            print(f"offramp: decoded again: {error.what}", file=sys.stderr)
            return None

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"
