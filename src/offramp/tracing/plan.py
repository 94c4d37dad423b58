"""What a trace will measure: the contexts of a workload, cut into parts of whole documents."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from offramp.errors import InputError, WorkloadError
from offramp.models.model import Model
from offramp.models.source import weights_note
from offramp.tracing.answers import Answerer
from offramp.tracing.progress import token_bar
from offramp.tracing.request import DEFAULT_CONTEXT
from offramp.workloads.answers import Answer, answer_prompts
from offramp.workloads.packing import (
    Context,
    EncodedDocument,
    EncodedDocuments,
    Selection,
    encode_prompt,
    select_contexts,
)
from offramp.workloads.workload import Workload

PARTS_WANTED = 64
SMALLEST_PART = 1024
LARGEST_PART = 16_384


@dataclass(frozen=True)
class TracePlan:
    """Contexts in parts of whole documents; a context's `document` indexes `document_ids`.

    answering: seconds in which the model wrote what is read, whichever process let it, where these are asked
    for.
    """

    parts: tuple[tuple[Context, ...], ...]
    document_ids: tuple[str, ...]
    tokens: int
    notes: tuple[str, ...]
    answering: float = 0.0

    @property
    def contexts(self) -> list[Context]:
        """Of all parts."""
        return [context for part in self.parts for context in part]


def usable_context(model: Model, context: int | None) -> int:
    """The context length asked for; by default DEFAULT_CONTEXT, or the model's own if that is shorter.

    Raises InputError if the one asked for is longer than the model's.
    """
    longest = model.context_length
    if context is None:
        return DEFAULT_CONTEXT if longest is None else min(DEFAULT_CONTEXT, longest)
    if longest is not None and context > longest:
        raise InputError(
            f"a context of {context:,} tokens is longer than the model's {longest:,}",
            where="context= (--context)",
            fix=f"give context={longest} (--context {longest}) or less",
        )
    return context


def plan_trace(
    model: Model,
    workload: Workload,
    answer: Callable[[], Answer],
    *,
    tokens: int,
    context: int,
    document_tokens: int | None,
) -> TracePlan:
    """Encode the workload, let the model answer its prompts in generation mode, and choose what to trace.

    answer: gives the answering function; called in generation mode only.
    """
    _require_known_tokens(model, workload)
    prepended = 0 if model.bos_policy.token_id is None else 1
    encode = model.encode_chat if workload.chat else model.encode
    encoded: Sequence[EncodedDocument]
    short: list[str] = []
    if workload.mode == "generation":
        prompts = [
            EncodedDocument(document.id, encode_prompt(encode, document, workload.prompt_tokens))
            for document in workload.documents
        ]
        short = _short_texts(workload, prompts)
        encoded = answer_prompts(
            prompts,
            answer(),
            tokens=tokens,
            context=context,
            document_tokens=document_tokens,
            most=workload.new_tokens,
        )
    else:
        # A row's next token is known, so that the last row needs one token more.
        needed = 1 + (document_tokens or tokens)
        encoded = EncodedDocuments(workload.documents, encode, prepended=prepended, most=needed)
    selection = select_contexts(encoded, tokens=tokens, context=context, document_tokens=document_tokens)
    place = {document.document: number for number, document in enumerate(selection.documents)}
    contexts = [replace(context, document=place[context.document]) for context in selection.contexts]
    return TracePlan(
        parts=tuple(_parts(contexts, selection.tokens)),
        document_ids=tuple(document.id for document in selection.documents),
        tokens=selection.tokens,
        notes=(*_notes(model, workload, selection, tokens, document_tokens), *short),
    )


def _short_texts(workload: Workload, prompts: Sequence[EncodedDocument]) -> list[str]:
    """A note of texts with fewer tokens than are continued. Raises WorkloadError if none has so many."""
    wanted = workload.prompt_tokens or 0
    lengths = [len(prompt.ids) for prompt in prompts]
    short = sum(length < wanted for length in lengths)
    if short == len(lengths):
        raise WorkloadError(
            f"no text has the {wanted:,} tokens that are to be continued; the longest has {max(lengths):,}",
            where=workload.name,
            fix="continue fewer, or give longer texts",
        )
    said = f"{short:,} of {len(lengths):,} texts have fewer than {wanted:,} tokens and are continued whole"
    return [said] if short else []


def _require_known_tokens(model: Model, workload: Workload) -> None:
    """Refuse given token ids that have no row in the model's embedding. Raises InputError."""
    rows = model.shape.vocabulary_size
    for document in workload.documents:
        largest = max(document.tokens or (0,))
        if largest >= rows:
            raise InputError(
                f"the token {largest:,} is none of the model's, whose embedding has {rows:,} rows",
                where=f"{workload.name}, {document.id}",
                fix=f"give ids from 0 to {rows - 1:,}, of this model's own tokenizer",
            )


def plan_with_answers(
    model: Model,
    workload: Workload,
    *,
    tokens: int,
    context: int | None,
    document_tokens: int | None = None,
    shown: bool,
    folder: Path | None = None,
    request: str = "",
    timed: bool = False,
) -> TracePlan:
    """The same, answered by the model. context: as `usable_context` takes it. shown: show a bar. folder,
    request, timed: as `Answerer` takes them.
    """
    longest = usable_context(model, context)
    made: list[Answerer] = []
    with contextlib.ExitStack() as bars:

        def answerer() -> Answerer:
            bar = bars.enter_context(token_bar(f"{workload.name}: answers", tokens, shown=shown))
            made.append(Answerer(model, folder=folder, request=request, timed=timed, on_tokens=bar))
            return made[0]

        plan = plan_trace(
            model, workload, answerer, tokens=tokens, context=longest, document_tokens=document_tokens
        )
    return replace(plan, answering=sum(one.seconds for one in made))


def _notes(
    model: Model, workload: Workload, selection: Selection, tokens: int, document_tokens: int | None
) -> list[str]:
    about_weights = weights_note(model.identity.weights)
    notes = [*([] if about_weights is None else [about_weights]), *workload.notes]
    if selection.tokens < tokens:
        why = (
            "there are no more"
            if document_tokens is None
            else f"each document gives {document_tokens} at most"
        )
        notes.append(f"{selection.tokens:,} tokens were traced; {tokens:,} were asked for and {why}")
    if len(selection.documents) == 1:
        at_hand = len(workload.documents)
        notes.append(
            f"{selection.tokens:,} tokens are of one document"
            + (
                f", of {at_hand:,} at hand, so nothing is left to judge a policy on: ask for more --tokens"
                if at_hand > 1
                else ", which is all of the text, so nothing is left to judge a policy on; a text file is "
                "split into documents at its blank lines"
            )
        )
    if selection.skipped:
        first = selection.skipped[0]
        notes.append(f"{len(selection.skipped)} documents give no row (first: {first.id}: {first.reason})")
    if workload.chat and model.uses_plain_chat_template:
        notes.append("the model has no chat template; a plain User/Assistant turn is used")
    return notes


def _parts(contexts: Sequence[Context], tokens: int) -> list[tuple[Context, ...]]:
    """Consecutive whole documents, about a 64th of the trace each."""
    size = min(max(SMALLEST_PART, tokens // PARTS_WANTED), LARGEST_PART)
    parts: list[tuple[Context, ...]] = []
    part: list[Context] = []
    rows = 0
    for number, context in enumerate(contexts):
        part.append(context)
        rows += context.rows
        ends_document = number + 1 == len(contexts) or contexts[number + 1].document != context.document
        if ends_document and (rows >= size or number + 1 == len(contexts)):
            parts.append(tuple(part))
            part, rows = [], 0
    return parts
