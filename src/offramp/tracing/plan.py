"""What a trace will measure: contexts of a workload, in parts, and answers that the model writes for it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError, ModelError, WorkloadError, raise_if_out_of_memory
from offramp.files import sha256_of_text
from offramp.kit.given import Kind
from offramp.kit.numbers import NotNegative, Whole
from offramp.kit.sealed_file import SealedFile
from offramp.models.calls import UNFIT_ERRORS
from offramp.models.conditioned import probing
from offramp.models.discovery import probe_ids
from offramp.models.model import Model
from offramp.models.source import weights_note
from offramp.tracing.progress import token_bar
from offramp.tracing.request import DEFAULT_CONTEXT
from offramp.workloads.packing import (
    Answer,
    Context,
    EncodedDocument,
    EncodedDocuments,
    PlannedAnswer,
    Selection,
    answer_prompts,
    encode_prompt,
    select_contexts,
)
from offramp.workloads.workload import Workload

PARTS_WANTED = 64
SMALLEST_PART = 1024
LARGEST_PART = 16_384


@dataclass(frozen=True)
class TracePlan:
    """Contexts in parts of whole documents; a context's `document` indexes `document_ids`."""

    parts: tuple[tuple[Context, ...], ...]
    document_ids: tuple[str, ...]
    tokens: int
    notes: tuple[str, ...]
    answering: float = 0.0
    """Seconds in which the model wrote what is read, whichever process let it, where these are asked for."""

    @property
    def contexts(self) -> list[Context]:
        """Of all parts."""
        return [context for part in self.parts for context in part]


def usable_context(model: Model, context: int | None, reads: Kind | None = None) -> int:
    """The context length asked for; by default DEFAULT_CONTEXT, or the model's own if that is shorter, or if
    pictures are read, which take hundreds of positions.

    Raises InputError if the one asked for is longer than the model's.
    """
    longest = model.context_length
    if context is None:
        if longest is None or (reads != "image" and longest > DEFAULT_CONTEXT):
            return DEFAULT_CONTEXT
        return longest
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
    encode = model.encode_chat if workload.chat else model.encode
    encoded: Sequence[EncodedDocument]
    short: list[str] = []
    if workload.mode == "generation":
        prompts = [
            EncodedDocument(
                document.id, encode_prompt(encode, document, workload.prompt_tokens), given=document.given
            )
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
        encoded = EncodedDocuments(workload.documents, encode, front=model.front, most=needed)
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
    longest = usable_context(model, context, workload.reads)
    made: list[Answerer] = []
    with contextlib.ExitStack() as bars:

        def answerer() -> Answerer:
            bar = bars.enter_context(token_bar(f"{workload.name}: answers", tokens, shown=shown))
            made.append(Answerer(model, folder=folder, request=request, timed=timed, on_tokens=bar))
            return made[0]

        plan = plan_trace(
            model, workload, answerer, tokens=tokens, context=longest, document_tokens=document_tokens
        )
    return replace(plan, answering=sum(answerer.seconds for answerer in made))


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


ANSWERS = "answers.json"

PROBE_LENGTH = 5


@dataclass(frozen=True)
class Answers:
    """New tokens of each answer."""

    request: str
    """The fingerprint of the request that they are for."""
    answers: dict[str, list[Whole]] = field(default_factory=dict)
    seconds: dict[str, NotNegative] = field(default_factory=dict)
    """That each one took to write, whichever process did; of a trace, whose files are the same each time it
    is made, none."""


ANSWERS_FILE = SealedFile(
    Answers,
    what="the text that the model wrote is damaged: {name}",
    fix="remove it: the same command lets the model write it again",
)


class Answerer:
    """Answers planned prompts with the full model, greedily, some at a time.

    The prompts of a batch are padded on the left and masked. With a folder, every batch is kept in
    `answers.json` under the request's fingerprint, and read from there when the run is resumed. timed:
    whether seconds are kept.
    """

    def __init__(
        self,
        model: Model,
        *,
        folder: Path | None,
        request: str,
        timed: bool,
        on_tokens: Callable[[int], None],
    ) -> None:
        self.model = model
        self.timed = timed
        self.path = None if folder is None else folder / ANSWERS
        self.request = request
        self.on_tokens = on_tokens
        self.kept = self._read()
        self.seconds = 0.0  # of all that it was asked for, what was kept included

    def __call__(self, batch: Sequence[PlannedAnswer]) -> list[tuple[int, ...]]:
        """New tokens of each planned answer, the end token included."""
        # An answer depends, in its last digits, on the prompts that share its batch.
        together = [
            [planned.max_new_tokens, *planned.ids, *([planned.given.fingerprint] if planned.given else [])]
            for planned in batch
        ]
        keys = [sha256_of_text(f"{place} of {together}") for place in range(len(batch))]
        if not all(key in self.kept.answers for key in keys):
            started = time.perf_counter()
            mixed = len({len(planned.ids) for planned in batch}) > 1 and self.mixed_lengths
            answered = generate_greedily(self.model, batch, mixed_lengths=mixed)
            took = (time.perf_counter() - started) / len(batch)
            for key, new_tokens in zip(keys, answered, strict=True):
                self.kept.answers[key] = list(new_tokens)
                if self.timed:
                    self.kept.seconds[key] = took
            if self.path is not None:
                ANSWERS_FILE.write(self.path, self.kept)
        answers = [tuple(self.kept.answers[key]) for key in keys]
        self.seconds += sum(self.kept.seconds.get(key, 0.0) for key in keys)
        self.on_tokens(sum(len(answer) for answer in answers))
        return answers

    @functools.cached_property
    def mixed_lengths(self) -> bool:
        """Whether prompts of different lengths may be answered together."""
        return masks_padding(self.model)

    def _read(self) -> Answers:
        kept = None if self.path is None or not self.path.exists() else ANSWERS_FILE.read(self.path)
        return kept if kept is not None and kept.request == self.request else Answers(self.request)


def generate_greedily(
    model: Model, batch: Sequence[PlannedAnswer], *, mixed_lengths: bool
) -> list[tuple[int, ...]]:
    """The full model's greedy answers, cut at each one's limit or after its end token.

    mixed_lengths: prompts of different lengths share a forward pass, behind masked padding, as far as the
    model's context holds the longest of them with the longest answer.

    Raises ModelError if transformers cannot generate with this model.
    """
    answers: dict[int, tuple[int, ...]] = {}
    for places in _passes(batch, model.context_length, mixed_lengths=mixed_lengths):
        written = _generate_padded(model, [batch[place] for place in places])
        answers.update(zip(places, written, strict=True))
    return [answers[place] for place in range(len(batch))]


def _passes(batch: Sequence[PlannedAnswer], context: int | None, *, mixed_lengths: bool) -> list[list[int]]:
    """Which answers share a forward pass: places in the batch.

    Every row of a pass grows until the longest answer is written, also behind the longest prompt.
    """
    passes: list[list[int]] = []
    for place in range(len(batch)):
        for places in passes:
            others = [batch[member] for member in (*places, place)]
            lengths = {len(planned.ids) for planned in others}
            # The last token of an answer is fed to nothing.
            end = max(lengths) + max(planned.max_new_tokens for planned in others) - 1
            if len(lengths) == 1 or (mixed_lengths and (context is None or end <= context)):
                places.append(place)
                break
        else:
            passes.append([place])
    return passes


def masks_padding(model: Model) -> bool:
    """Whether a prompt's logits stay the same behind masked padding, measured on one short prompt.

    They do not where a recurrent state takes the padding in, or where positions are counted from its start.
    """
    with probing(model.hf):
        return _masks_padding(model)


def _masks_padding(model: Model) -> bool:
    ids = probe_ids(model.hf, PROBE_LENGTH)
    padded = torch.nn.functional.pad(ids, (PROBE_LENGTH, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (PROBE_LENGTH, 0))
    alone, behind = (
        torch.cat(_generate(model, *inputs, max_new_tokens=1, output_logits=True).logits).float()
        for inputs in ((ids, torch.ones_like(ids)), (padded, mask))
    )
    tolerance = (1e-4 if model.dtype == "float32" else 5e-2) * float(alone.abs().max())
    return bool((alone - behind).abs().max() <= tolerance)


def _generate(model: Model, ids: Tensor, mask: Tensor, *, max_new_tokens: int, **options: bool) -> Any:
    try:
        with torch.no_grad(), plain_greedy(model, max_new_tokens):
            return model.hf.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
    except UNFIT_ERRORS as error:
        raise_if_out_of_memory(error)
        raise cannot_generate(model, error) from error


def cannot_generate(model: Model, error: Exception) -> ModelError:
    """The error for a model whose `generate` fails."""
    return ModelError(
        f"transformers cannot generate with this model: {type(error).__name__}: {error}",
        where=model.name,
        fix="trace given texts instead: a workload like prose or txt:PATH needs no answers",
    )


def _generate_padded(model: Model, batch: Sequence[PlannedAnswer]) -> list[tuple[int, ...]]:
    longest = max(len(planned.ids) for planned in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long, device="cpu")
    mask = torch.zeros_like(ids)
    for row, planned in enumerate(batch):
        ids[row, longest - len(planned.ids) :] = torch.tensor(planned.ids, device="cpu")
        mask[row, longest - len(planned.ids) :] = 1
    most = max(planned.max_new_tokens for planned in batch)
    device = model.stack.device
    with model.given(batch):
        out = _generate(model, ids.to(device), mask.to(device), max_new_tokens=most).sequences
    answers = []
    for row, planned in zip(out[:, longest:].tolist(), batch, strict=True):
        stop = next((place + 1 for place, token in enumerate(row) if token in model.eos_token_ids), len(row))
        answers.append(tuple(row[: min(stop, planned.max_new_tokens)]))
    return answers


@contextmanager
def plain_greedy(model: Model, max_new_tokens: int) -> Iterator[None]:
    """Generate the most probable tokens whatever the model's own generation config says.

    `generate` fills what a given config leaves open from the model's own (a repetition penalty, say), so the
    model's own is the one to replace.
    """
    from transformers import GenerationConfig

    config = model.hf.generation_config
    ends = list(model.eos_token_ids)
    model.hf.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        bos_token_id=model.bos_policy.token_id,
    )
    try:
        yield
    finally:
        model.hf.generation_config = config
