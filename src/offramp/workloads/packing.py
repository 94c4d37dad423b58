"""Documents as token ids: which positions are traced, in which contexts, and which prompts are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

from offramp.errors import InputError, WorkloadError
from offramp.kit.given import Given, GivenIds
from offramp.workloads.workload import Document

SHORTEST_START = 1 << 14
CHARACTERS_PER_TOKEN = 16
"""How much of a long text is encoded first."""


@dataclass(frozen=True)
class EncodedDocument:
    """One document as token ids."""

    id: str
    ids: tuple[int, ...]
    """What the encoder gave, what it puts in front (BOS) included; in generation mode prompt and answer."""
    prepended: int = 0
    """How many of the first ids are not the document's own (BOS)."""
    prompt_length: int | None = None
    """Ids of the prompt in generation mode, None for a given text."""
    given: Given | None = None
    """As of the document."""

    @property
    def available(self) -> int:
        """Rows of what was encoded: own positions (or generated ones) whose next token is known."""
        first_row = self.prepended if self.prompt_length is None else self.prompt_length
        return max(0, len(self.ids) - first_row - 1)


Encode = Callable[..., Sequence[int]]
"""Token ids of a text or, through the chat template, of a conversation's messages; of an answer about a
picture, which then comes second, what was asked of it included."""


def encode_document(encode: Encode, document: Document, most: int | None = None) -> tuple[int, ...]:
    """Token ids of a document as the model is given it; of a long text at least the first `most`."""
    if document.tokens is not None:
        ids: Sequence[int] = document.tokens
    elif document.given is not None and document.given.kind == "image":
        ids = encode(document.text, document.given)
    elif document.messages is not None:
        ids = encode([{"role": role, "content": said} for role, said in document.messages])
    else:
        ids = encode_start(encode, document.text, most)
    return tuple(int(token) for token in ids)


def encode_prompt(encode: Encode, document: Document, tokens: int | None) -> tuple[int, ...]:
    """Token ids of a prompt that the model answers, or of so many first ones that it continues."""
    ids = encode_document(encode, document, tokens)
    return GivenIds.of(ids if tokens is None else ids[:tokens], document.given)


def encode_start(encode: Encode, text: str, most: int | None) -> Sequence[int]:
    """Ids of a text: of one that is much longer than so many tokens, the first ones only. None: all.

    A start of a text ends anywhere, within a word even, so that its last ids may be others than those of the
    whole: ids count only where a start of twice the length has the same.
    """
    size = SHORTEST_START + CHARACTERS_PER_TOKEN * (most or 0)
    while most is not None and 2 * size < len(text):
        ids, longer = encode(text[:size]), encode(text[: 2 * size])
        if len(ids) > most and list(ids[:most]) == list(longer[:most]):
            return ids[:most]
        size *= 2
    return encode(text)


class EncodedDocuments(Sequence[EncodedDocument]):
    """The documents of a workload in text mode, each encoded once, when it is first asked for.

    A selection reads documents in order and stops when it has enough, so a large file is not encoded whole.
    Nor is a long document, of which no more than `most` own tokens are wanted (None: all of them).
    """

    def __init__(
        self,
        documents: Sequence[Document],
        encode: Encode,
        *,
        front: Callable[[Given | None], Sequence[int]] = lambda given: (),
        most: int | None = None,
    ) -> None:
        self._documents = documents
        self._encode = encode
        self._most = most
        self._front = front
        self._encoded: dict[int, EncodedDocument] = {}

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> EncodedDocument: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedDocument]: ...

    def __getitem__(self, index: int | slice) -> EncodedDocument | list[EncodedDocument]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if place not in self._encoded:
            document = self._documents[place]
            prepended = 0 if document.tokens is not None else len(self._front(document.given))
            most = None if self._most is None else prepended + self._most
            ids = encode_document(self._encode, document, most)
            self._encoded[place] = EncodedDocument(
                document.id, ids, prepended=prepended, given=document.given
            )
        return self._encoded[place]


DOCUMENTS_WANTED = 64
SHORTEST_CAP = 32


@dataclass(frozen=True)
class Context:
    """One sequence for the model, of one document only."""

    document: int
    """Index into the encoded documents."""
    start: int
    """Offset of the context's first own token within the document's own tokens."""
    ids: tuple[int, ...]
    """The sequence, with what is put in front of it (BOS) or the prompt included. It ends at its last row."""
    next_token: int
    """The observed token after the last id."""
    first_row: int
    """The first traced position. Every position from there on is a row, predicting the id after it."""
    generated: bool = False
    """The rows' input tokens were generated by the model."""
    given: Given | None = None
    """As of the document."""

    @property
    def rows(self) -> int:
        """Traced positions."""
        return len(self.ids) - self.first_row

    @property
    def next_tokens(self) -> tuple[int, ...]:
        """The observed next token of every row: int [rows]."""
        return (*self.ids[self.first_row + 1 :], self.next_token)


@dataclass(frozen=True)
class PackedDocument:
    """How many rows of one document are traced; where that is none, why."""

    document: int
    id: str
    rows: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Selection:
    """The contexts to trace, in document order."""

    contexts: tuple[Context, ...]
    document_tokens: int
    """The cap on rows per document that was used."""
    documents: tuple[PackedDocument, ...]
    """One entry per traced document."""
    skipped: tuple[PackedDocument, ...]
    """Documents without a row."""

    @property
    def tokens(self) -> int:
        """Rows over all documents."""
        return sum(document.rows for document in self.documents)


def select_contexts(
    encoded: Sequence[EncodedDocument], *, tokens: int, context: int, document_tokens: int | None = None
) -> Selection:
    """Choose exactly `tokens` rows (all there are if fewer) and the contexts that hold them.

    A row is a position of a document's own whose next token is known; what is put in front (BOS) is no row,
    and in generation mode only generated input tokens are. Documents are taken in order, each up to a cap of
    rows, the last one cut so that the total is exact. The cap is `document_tokens`, or else a 64th of
    `tokens` (at least 32, at most what one context holds), raised to the least cap that suffices when there
    are too few documents for it: many short documents say more than few long ones, because tokens of one
    document depend on each other.

    A text longer than a context of `context` tokens is split into consecutive contexts. A prompt with its
    answer is never split, since decoding sees the prompt whole: the answer is cut where the context ends.

    Raises InputError for a context that is filled by what is put in front, and WorkloadError if the workload
    has no row at all.
    """
    prepended = encoded[0].prepended if len(encoded) else 0
    if context <= prepended:
        raise InputError(
            f"a context of {context} tokens is filled by the {prepended} that stand in front of a text",
            where=f"the document {encoded[0].id}",
            fix="raise context= (--context), or shorten what stands in front",
        )
    cap = default_cap(tokens, context - prepended) if document_tokens is None else document_tokens
    looked_at: list[int] = []
    found = 0
    for index in range(len(encoded)):
        if found >= tokens:
            break
        found += min(cap, rows_within(encoded[index], context))
        looked_at.append(index)
    if document_tokens is None:
        available = [rows_within(encoded[index], context) for index in looked_at]
        cap = max(cap, least_sufficient_cap(available, tokens))
    return _take(encoded, looked_at, tokens=tokens, context=context, cap=cap)


def default_cap(tokens: int, room: int) -> int:
    """The cap on rows per document when none is asked for: a 64th of `tokens`, between 32 and `room`."""
    return min(max(tokens // DOCUMENTS_WANTED, SHORTEST_CAP), room)


def least_sufficient_cap(available: Sequence[int], tokens: int) -> int:
    """The least cap c with sum(min(c, available)) >= tokens; the largest document's rows if none suffices."""
    remaining = tokens
    ascending = sorted(available)
    for place, rows in enumerate(ascending):
        documents_left = len(ascending) - place
        if rows * documents_left >= remaining:
            return -(-remaining // documents_left)
        remaining -= rows
    return max(ascending, default=0)


def rows_within(document: EncodedDocument, context: int) -> int:
    """Rows that contexts of this size can hold: all of a text, an answer's up to the context's end."""
    if document.prompt_length is None:
        return document.available if document.prepended < context else 0
    return max(0, min(document.available, context - document.prompt_length))


def _take(
    encoded: Sequence[EncodedDocument], looked_at: Sequence[int], *, tokens: int, context: int, cap: int
) -> Selection:
    contexts: list[Context] = []
    documents: list[PackedDocument] = []
    skipped: list[PackedDocument] = []
    remaining = tokens
    for index in looked_at:
        if remaining == 0:
            break
        document = encoded[index]
        available = rows_within(document, context)
        if available == 0:
            skipped.append(PackedDocument(index, document.id, reason=_why_no_row(document, context)))
            continue
        rows = min(cap, available, remaining)
        remaining -= rows
        contexts.extend(_contexts(document, index, rows=rows, context=context))
        documents.append(PackedDocument(index, document.id, rows))
    if not documents:
        raise WorkloadError(
            "no document of the workload has a token to trace",
            where="; ".join(f"{document.id}: {document.reason}" for document in skipped[:3]),
            fix="use a workload of given texts, or other prompts: the model ends its answers at once"
            if all(document.prompt_length is not None for document in encoded)
            else "use longer documents (two tokens at least), or raise context= (--context)",
        )
    return Selection(tuple(contexts), cap, tuple(documents), tuple(skipped))


def _contexts(document: EncodedDocument, index: int, *, rows: int, context: int) -> Iterator[Context]:
    """The first `rows` rows of one document, in consecutive contexts of at most `context` tokens."""
    ids, given = document.ids, document.given
    if document.prompt_length is not None:
        end = document.prompt_length + rows
        yield Context(
            index, 0, ids[:end], ids[end], first_row=document.prompt_length, generated=True, given=given
        )
        return
    front, own = ids[: document.prepended], ids[document.prepended :]
    step = context - len(front)
    for start in range(0, rows, step):
        end = min(start + step, rows)
        yield Context(index, start, front + own[start:end], own[end], first_row=len(front), given=given)


def _why_no_row(document: EncodedDocument, context: int) -> str:
    if document.prompt_length is None:
        own = max(0, len(document.ids) - document.prepended)
        if document.prepended >= context:
            return f"the {document.prepended:,} tokens in front of it fill the context of {context:,}"
        return f"{own} token{'' if own == 1 else 's'}, so no token with a known next one"
    if document.prompt_length >= context:
        return f"the prompt's {document.prompt_length:,} tokens fill the context of {context:,}"
    return "the answer has fewer than two tokens"


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
    given: Given | None = None


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
        PlannedAnswer(index, tuple(prompt.ids), min(cap, room) + 1, prompt.given)
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
            given=prompt.given,
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
            longer.append(replace(planned, max_new_tokens=limit))
    return tuple(longer)


def _room(prompt: Sequence[int], context: int, most: int | None) -> int:
    """Rows that an answer may give."""
    room = max(0, context - len(prompt))
    return room if most is None else min(room, most)


def _rows(answers: dict[int, tuple[int, ...]]) -> int:
    return sum(max(0, len(new_tokens) - 1) for new_tokens in answers.values())
