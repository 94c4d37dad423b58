"""One document decoded freely with a policy, and what the full model says of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from offramp.decoding.engine.build import engine_of
from offramp.decoding.execution.prompts import Opening
from offramp.decoding.generation.early_exit import check_decodable
from offramp.decoding.generation.failures import free_bytes, key_value_bytes
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import Generation
from offramp.decoding.options import DecodingOptions
from offramp.decoding.quality.free_running import full_models_choices
from offramp.decoding.quality.judging import Judge
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.answers import plain_greedy

ROWS_TOGETHER = 16
"""Documents decoded side by side, at most, and kept in one file."""


@dataclass(frozen=True)
class Execution:
    """One document decoded with a policy.

    prompt, answer: token ids, the end token included. exits: of each token of the answer; the first is L,
    since a prompt runs whole. agrees: whether each is the full model's choice on the same prefix (see
    `offramp.decoding.quality.free_running.full_models_choices`). layers_executed: for the answer's tokens,
    the prompt's layers left out, as they ran beside the documents of its group. problem: why
    decoding ended early, None if it did not.
    """

    document: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    exits: tuple[int, ...]
    agrees: tuple[bool, ...]
    layers_executed: int
    problem: str | None = None

    @property
    def loss(self) -> float:
        """Share of the answer's tokens that are not the full model's choice; all of it after a problem."""
        return 1.0 if self.problem is not None else 1.0 - sum(self.agrees) / len(self.agrees)


def rows_together(model: Model, options: DecodingOptions, tokens: int) -> int:
    """How many documents of so many tokens, prompt and answer, a policy decodes side by side.

    More than one where each row of a batch leaves at its own exit, as alone: the family has the ability, and
    the strategy allows it. Then `ROWS_TOGETHER`, or as many as fit in half of the free memory.

    Raises InputError and PolicyError for what cannot be decoded at all.
    """
    engine = engine_of(model)
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
            agrees = full_models_choices(verdict, 0, model.dtype)
            found.append(
                Execution(
                    document=opening.document,
                    prompt=opening.ids,
                    answer=tuple(row.tokens),
                    exits=tuple(int(exit) for exit in row.exits),
                    agrees=tuple(bool(one) for one in agrees),
                    layers_executed=row.layers_executed - row.prompt_layers,
                    problem=row.problem,
                )
            )
    return found


def _decode(model: Model, openings: Sequence[Opening], options: DecodingOptions) -> tuple[Generation, ...]:
    prompts = prompt_batch(model, [list(opening.ids) for opening in openings], chat=False)
    padded = not bool(torch.all(prompts.mask == 1))
    batching = "rebatch" if len(openings) > 1 else "lockstep"
    with plain_greedy(model, options.new_tokens):
        result = generate_batch(
            model,
            prompts.ids,
            prompts.mask if padded else None,
            replace(options, batching=batching),
        )
    return result.rows
