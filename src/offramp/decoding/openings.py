"""What is decoded to certify or time a policy: starts of documents, or whole prompts, that shaped nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from offramp.defaults import OPENING_TOKENS, PROMPT_TOKENS, SEED
from offramp.errors import InputError, WorkloadError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.trained_model import trained_on
from offramp.models.model import Model
from offramp.tracing.trace import Trace, heads_documents
from offramp.tuning.splits import Roles, split_documents, split_roles
from offramp.workloads.packing import encode_prompt
from offramp.workloads.registry import load_workload
from offramp.workloads.shared_text import Sketch, Sketcher, read_sketch, without_shared_text
from offramp.workloads.workload import Document, Workload

TOO_SHORT = "too short for the opening and one token more"
NO_ROOM = "too long: no room is left for the answer"
EMPTY = "empty"


@dataclass(frozen=True)
class Opening:
    """What one document is decoded from: the start of a text, or a whole prompt, as token ids."""

    document: str
    ids: tuple[int, ...]
    traced: bool
    """Whether the document is one of the trace."""


@dataclass(frozen=True)
class Openings:
    """Openings to certify on, in the drawn order, and those of documents for the report."""

    certify: tuple[Opening, ...]
    report: tuple[Opening, ...]
    left_out: Mapping[str, int]
    """Documents that give none, counted by the reason."""


def _start_of(model: Model, workload: Workload, document: Document, most: int) -> tuple[int, ...]:
    """Token ids of a text's start, or of a prompt; through the chat template if the workload has it."""
    encode = model.encode_chat if workload.chat else model.encode
    if workload.mode == "generation":
        return encode_prompt(encode, document, workload.prompt_tokens)
    if document.given is not None:  # what stands in front of every answer
        return encode_prompt(encode, document, len(model.front(document.given)) or 1)
    return encode_prompt(encode, document, most)


def _room(model: Model, workload: Workload, prompt_tokens: int, new_tokens: int) -> int | None:
    """Tokens that a prompt may have, None for as many as it likes.

    Raises InputError for starts of texts that are longer than that, whatever the document.
    """
    if model.context_length is None:
        return None
    room = model.context_length - new_tokens
    if not workload.decoded_whole and prompt_tokens > room:
        least = f"lower --prompt-tokens to {room}, or " if room > 0 else ""
        raise InputError(
            f"prompts of {prompt_tokens} tokens do not leave room for {new_tokens} new tokens in the context "
            f"of {model.context_length} positions",
            where=f"--prompt-tokens for {model.shown_name}",
            fix=f"{least}ask for fewer new tokens (--new-tokens)",
        )
    return room


def traced_workload(trace: Trace, workload: Workload | None = None) -> Workload:
    """The documents that a trace was made of, loaded by its name unless they are given.

    Raises InputError for other documents than those that were traced, WorkloadError if they cannot be had.
    """
    described = trace.request.get("workload") or {}
    name = str(described.get("name", ""))
    if workload is None:
        workload = load_workload(name)
    if workload.fingerprint != described.get("fingerprint"):
        raise InputError(
            f"the documents of {workload.name} are not those that were traced",
            where=str(trace.folder or "the trace"),
            fix=f"give {name or 'the workload'} as it was then, or trace again",
        )
    return workload


def choose_openings(
    model: Model,
    trace: Trace,
    workload: Workload,
    roles: Roles,
    *,
    seed: int,
    prompt_tokens: int,
    new_tokens: int,
    heads: ExitHeads | None = None,
    most: int | None = None,
) -> Openings:
    """Openings of the trace's certify documents in their order, then of documents that were not traced.

    The latter come in an order drawn by `seed`. Searching, reporting and fitting heads saw none of them, and
    each document comes once. prompt_tokens: of a text, BOS included if the model puts it there; a prompt of
    generation mode is taken whole, through the chat template if the workload's is one. heads: those of the
    trace. most: to certify on.

    Raises InputError for an opening that leaves no room for the answer, whatever the document.
    """
    room = _room(model, workload, prompt_tokens, new_tokens)
    whole = workload.decoded_whole
    texts = {document.id: document for document in workload.documents}
    traced = {record.id for record in trace.documents}
    left_out: Counter[str] = Counter()

    def opening(document: Document) -> Opening | None:
        ids = _start_of(model, workload, document, prompt_tokens + 1)
        why = None
        if whole:
            why = EMPTY if not ids else NO_ROOM if room is not None and len(ids) > room else None
        elif len(ids) <= prompt_tokens:
            why = TOO_SHORT
        if why is not None:
            left_out[why] += 1
            return None
        return Opening(document.id, ids if whole else ids[:prompt_tokens], document.id in traced)

    def openings(documents: Iterable[Document], most: int | None) -> tuple[Opening, ...]:
        usable: list[Opening] = []
        for document in documents:
            if most is not None and len(usable) >= most:
                break
            if (chosen := opening(document)) is not None:
                usable.append(chosen)
        return tuple(usable)

    certify = [texts[trace.documents[int(place)].id] for place in roles.certify]
    report = [texts[trace.documents[int(place)].id] for place in roles.report]
    apart, trained = [*roles.search, *roles.report], trained_on(model).texts
    certify += further_documents(trace, workload, seed, heads, apart, trained)
    return Openings(openings(certify, most), openings(report, None), dict(left_out))


def further_documents(
    trace: Trace,
    workload: Workload,
    seed: int,
    heads: ExitHeads | None = None,
    apart: Sequence[int] = (),
    trained: Sequence[Sketch] = (),
) -> list[Document]:
    """Documents of the workload that were neither traced nor used to fit heads, in an order drawn by `seed`.

    They share no text either with what heads were fitted on, with the trace's documents at the places
    `apart`, or with texts that the model was trained on, as far as these are known.
    """
    used = {record.id for record in trace.documents} | heads_documents(trace)
    free = [document for document in workload.documents if document.id not in used]
    texts = (trace.documents[int(place)].text for place in apart)
    seen = [read_sketch(text) for text in texts if text is not None]
    seen += () if heads is None else heads.seen_texts or ()
    seen += trained
    if seen:
        free = list(without_shared_text(free, seen, Sketcher.of(workload.documents)))
    order = np.random.default_rng(seed).permutation(len(free))
    return [free[int(place)] for place in order]


def prompts_of(
    model: Model,
    workload: Workload,
    count: int,
    *,
    most: int | None = None,
    new_tokens: int,
    prompt_tokens: int = PROMPT_TOKENS,
    heads: Sequence[ExitHeads] = (),
    apart: Sequence[Sketch] = (),
) -> list[Sequence[int]]:
    """Token ids of `count` prompts that leave room for the new tokens; up to `most` if there are more.

    Documents are taken from the last one on: tracing, fitting and tuning begin with the first, and quality is
    to be judged on what they have not seen; documents that any of the heads were fitted on, or the model was
    trained on as far as is known, are passed over, and those that share text with these, of any workload.
    prompt_tokens: of the start of a given text, at most. A prompt of the workload itself is never cut. apart:
    further texts that documents must not share.

    Raises InputError if so many tokens of a text leave no room for the new ones, WorkloadError if there are
    not so many prompts.
    """
    room = _room(model, workload, prompt_tokens, new_tokens)
    trained = trained_on(model)
    fitted = {id for fitting in heads for id in fitting.seen_documents.get(workload.fingerprint, ())}
    fitted.update(trained.documents.get(workload.fingerprint, ()))
    texts = [*trained.texts, *(sketch for fitting in heads for sketch in fitting.seen_texts or ()), *apart]
    documents = without_shared_text(workload.documents, texts) if texts else workload.documents
    prompts: list[Sequence[int]] = []
    for document in reversed(documents):
        if document.id in fitted:
            continue
        ids: Sequence[int] = _start_of(model, workload, document, prompt_tokens)
        if document.given is None:
            ids = list(ids)
        if ids and (room is None or len(ids) <= room):
            prompts.append(ids)
        if len(prompts) == max(count, most or 0):
            break
    if len(prompts) >= count:
        return prompts
    raise WorkloadError(
        f"the workload has {len(prompts)} prompts that leave room for {new_tokens} new tokens"
        f"{' and that no heads were fitted on' if heads else ''}, "
        f"{count} were asked for",
        where=workload.name,
        fix="ask for fewer prompts (also by a smaller batch) or new tokens, or give another workload",
    )


PROMPTS = 32
"""Of each text, as far as there is time to decode them: each is one sample of an interval."""
LONGEST_PROMPT = 256
FEWEST_NEW_TOKENS = 8
"""With fewer, something is left out."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids."""

    ids: tuple[tuple[int, ...], ...]
    documents: tuple[str, ...]
    """Where they come from."""
    unseen: bool
    """Whether tuning saw none of them."""


def kinds_in_turn(documents: Iterable[Document]) -> list[Document]:
    """In their order, but one of each kind before the second of any."""
    before = Counter[str | None]()
    ranked = []
    for document in documents:
        ranked.append((before[document.kind], document))
        before[document.kind] += 1
    return [document for _, document in sorted(ranked, key=itemgetter(0))]


def pick_prompts(
    model: Model,
    workload: Workload,
    trace: Trace,
    count: int = PROMPTS,
    *,
    new_tokens: int = FEWEST_NEW_TOKENS,
    seed: int = SEED,
    heads: ExitHeads | None = None,
) -> Prompts:
    """Starts of documents (text), or whole prompts (generation), that neither fitting nor tuning chose by.

    The trace's documents for the report, then documents that were not traced, from the last of the order in
    which certificates are decoded on; where there are none, the trace's. Each kind has its turn; all leave
    room for the new tokens.

    seed: that the policies were chosen with. heads: those of the trace.

    Raises InputError if no document is long enough, or every prompt too long.
    """
    prompts: dict[str, tuple[int, ...]] = {}
    unseen = True

    def take(documents: Iterable[Document]) -> None:
        for document in kinds_in_turn(documents):
            if len(prompts) == count:
                break
            ids = _start_of(model, workload, document, OPENING_TOKENS)
            whole = workload.decoded_whole
            longest = LONGEST_PROMPT if document.given is None else len(ids)  # what is seen takes hundreds
            fits = 0 < len(ids) <= longest if whole else len(ids) == OPENING_TOKENS
            if fits and (model.context_length is None or len(ids) + new_tokens <= model.context_length):
                prompts[document.id] = ids

    texts = {document.id: document for document in workload.documents}
    traced = [int(place) for place in np.unique(trace.document)]
    # Verdict and tuner alike have not chosen on these.
    judging, report = split_documents(trace, seed)[1], split_roles(trace, seed).report
    reported = [int(place) for place in report if place in judging]
    take(texts[trace.documents[place].id] for place in reported)
    if len(prompts) < count:
        apart = [place for place in traced if place not in reported]
        take(reversed(further_documents(trace, workload, seed, heads, apart, trained_on(model).texts)))
    if not prompts:
        unseen = False
        take(texts[trace.documents[place].id] for place in traced)
    if not prompts:
        raise InputError(
            f"no document of {workload.name} gives a prompt to decode from",
            where=workload.name,
            fix=f"texts need {OPENING_TOKENS} tokens, prompts {LONGEST_PROMPT} at most",
        )
    return Prompts(tuple(prompts.values()), tuple(prompts), unseen)
