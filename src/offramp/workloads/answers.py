"""Generation mode: which prompts the model answers, and with how many new tokens each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offramp.errors import WorkloadError
from offramp.workloads.packing import EncodedDocument, default_cap, least_sufficient_cap

ANSWERS_AT_ONCE = 32


@dataclass(frozen=True)
class PlannedAnswer:
    """One prompt to answer: `ids` go in, up to `max_new_tokens` come out, the end token included.

    An answer of n tokens gives n - 1 rows: the prompt's last position predicts the first of them at full
    depth, each later one was predicted from a generated token.
    """

    document: int
    ids: tuple[int, ...]
    max_new_tokens: int


Answer = Callable[[Sequence[PlannedAnswer]], Sequence[Sequence[int]]]


def plan_answers(
    prompts: Sequence[EncodedDocument],
    *,
    tokens: int,
    context: int,
    document_tokens: int | None = None,
    most: int | None = None,
) -> tuple[PlannedAnswer, ...]:
    """Every prompt that leaves room for an answer, in order, each with its limit.

    The limit follows `select_contexts`: a cap of `document_tokens` rows, or else a 64th of `tokens`, raised
    when there are too few prompts for it; and no answer runs past the context of `context` tokens, or gives
    more than `most` rows.

    Raises WorkloadError if every prompt fills the context.
    """
    rooms = [_room(prompt.ids, context, most) for prompt in prompts]
    if not any(rooms):
        raise WorkloadError(
            f"every prompt fills the context of {context:,} tokens, so none can be answered",
            fix="give shorter prompts, or raise context= (--context) as far as the model's own allows",
        )
    cap = document_tokens or max(default_cap(tokens, context), least_sufficient_cap(rooms, tokens))
    return tuple(
        PlannedAnswer(index, tuple(prompt.ids), min(cap, room) + 1)
        for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        if room
    )


def answer_prompts(
    prompts: Sequence[EncodedDocument],
    answer: Answer,
    *,
    tokens: int,
    context: int,
    document_tokens: int | None = None,
    most: int | None = None,
    at_once: int = ANSWERS_AT_ONCE,
) -> list[EncodedDocument]:
    """The prompts with the model's answers, in order, until they hold `tokens` rows or the prompts run out.

    `answer` gets up to `at_once` planned answers at a time and returns the new tokens of each. When all
    prompts are answered, the rows do not suffice and no `document_tokens` was given, the answers that were
    cut at their limit are made again with twice the limit, up to `most` rows. A prompt that fills the context
    stays without an answer. Give the result to `select_contexts` with the same sizes.
    """
    plan = plan_answers(prompts, tokens=tokens, context=context, document_tokens=document_tokens, most=most)
    answers: dict[int, tuple[int, ...]] = {}
    while plan:
        _answer_in_order(plan, answer, answers, tokens=tokens, at_once=at_once)
        if _rows(answers) >= tokens or document_tokens is not None:
            break
        plan = _longer(plan, answers, context, most)
    last = max(answers)
    return [
        EncodedDocument(
            id=prompt.id,
            ids=(*prompt.ids, *answers.get(index, ())),
            prepended=prompt.prepended,
            prompt_length=len(prompt.ids),
        )
        for index, prompt in enumerate(prompts[: last + 1])
    ]


def _answer_in_order(
    plan: Sequence[PlannedAnswer],
    answer: Answer,
    answers: dict[int, tuple[int, ...]],
    *,
    tokens: int,
    at_once: int,
) -> None:
    """Fill `answers` (new tokens by document) until they hold `tokens` rows or the plan is done."""
    place = 0
    while place < len(plan) and (missing := tokens - _rows(answers)) > 0:
        longest = max(planned.max_new_tokens for planned in plan[place : place + at_once]) - 1
        batch = plan[place : place + min(at_once, -(-missing // longest))]
        for planned, new_tokens in zip(batch, answer(batch), strict=True):
            answers[planned.document] = tuple(int(token) for token in new_tokens)[: planned.max_new_tokens]
        place += len(batch)


def _longer(
    plan: Sequence[PlannedAnswer], answers: dict[int, tuple[int, ...]], context: int, most: int | None
) -> tuple[PlannedAnswer, ...]:
    """The planned answers that stopped at their limit and have room, with twice the limit."""
    longer = []
    for planned in plan:
        limit = min(2 * planned.max_new_tokens, _room(planned.ids, context, most) + 1)
        if len(answers[planned.document]) == planned.max_new_tokens < limit:
            longer.append(PlannedAnswer(planned.document, planned.ids, limit))
    return tuple(longer)


def _room(prompt: Sequence[int], context: int, most: int | None) -> int:
    """Rows that an answer may give."""
    room = max(0, context - len(prompt))
    return room if most is None else min(room, most)


def _rows(answers: dict[int, tuple[int, ...]]) -> int:
    return sum(max(0, len(new_tokens) - 1) for new_tokens in answers.values())
