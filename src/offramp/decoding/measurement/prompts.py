"""Prompts to time with: the starts of a workload's documents, or its own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offramp.errors import InputError, WorkloadError
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents, split_roles
from offramp.workloads.packing import encode_start
from offramp.workloads.shared_text import without_shared_text
from offramp.workloads.workload import Workload

PROMPT_TOKENS = 64


def prompts_of(
    model: Model,
    workload: Workload,
    count: int,
    *,
    most: int | None = None,
    new_tokens: int,
    prompt_tokens: int = PROMPT_TOKENS,
    heads: Sequence[ExitHeads] = (),
) -> list[list[int]]:
    """Token ids of `count` prompts that leave room for the new tokens; up to `most` if there are more.

    Documents are taken from the last one on: tracing, fitting and tuning begin with the first, and quality is
    to be judged on what they have not seen; documents that any of the heads were fitted on are passed over,
    and those that share text with what they were fitted on, of whatever workload.
    prompt_tokens: of the start of a given text, at most. A prompt of the workload itself is never cut.

    Raises InputError if so many tokens of a text leave no room for the new ones, WorkloadError if there are
    not so many prompts.
    """
    room = None if model.context_length is None else model.context_length - new_tokens
    fitted = {id for one in heads for id in one.seen_documents.get(workload.fingerprint, ())}
    texts = [sketch for one in heads for sketch in one.seen_texts or ()]
    documents = without_shared_text(workload.documents, texts) if texts else workload.documents
    whole = workload.mode == "generation"
    if not whole and room is not None and prompt_tokens > room:
        least = f"lower --prompt-tokens to {room}, or " if room > 0 else ""
        raise InputError(
            f"prompts of {prompt_tokens} tokens do not leave room for {new_tokens} new tokens in the context "
            f"of {model.context_length} positions",
            where=f"--prompt-tokens for {model.name}",
            fix=f"{least}ask for fewer new tokens (--new-tokens)",
        )
    encode = model.encode_chat if workload.chat else model.encode
    found: list[list[int]] = []
    for document in reversed(documents):
        if document.id in fitted:
            continue
        ids = list(encode_start(encode, document.text, None if whole else prompt_tokens))
        if not whole:
            ids = ids[:prompt_tokens]
        if ids and (room is None or len(ids) <= room):
            found.append(ids)
        if len(found) == max(count, most or 0):
            break
    if len(found) >= count:
        return found
    raise WorkloadError(
        f"the workload has {len(found)} prompts that leave room for {new_tokens} new tokens"
        f"{' and that no heads were fitted on' if heads else ''}, "
        f"{count} were asked for",
        where=workload.name,
        fix="ask for fewer prompts or new tokens, or give another workload",
    )


PROMPTS = 8
"""Of each text, as far as there is time to decode them: each is one sample of an interval."""
OPENING_TOKENS = 32
LONGEST_PROMPT = 256
FEWEST_NEW_TOKENS = 8
"""With fewer, something is left out."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids. documents: where they come from. unseen: whether tuning saw none of them."""

    ids: tuple[tuple[int, ...], ...]
    documents: tuple[str, ...]
    unseen: bool


def pick_prompts(
    model: Model,
    workload: Workload,
    trace: Trace,
    count: int = PROMPTS,
    *,
    new_tokens: int = FEWEST_NEW_TOKENS,
    seed: int = 0,
) -> Prompts:
    """Starts of documents (text), or whole prompts (generation), of the trace's own documents.

    Only documents for the report where there are some: neither fitting nor tuning saw them. All leave room
    for the new tokens. seed: that the policies were chosen with.

    Raises InputError if no document is long enough, or every prompt too long.
    """
    texts = {document.id: document.text for document in workload.documents}
    places, unseen = _report_places(trace, seed)
    found: dict[str, tuple[int, ...]] = {}
    for place in places:
        name = trace.documents[place].id
        if workload.mode == "generation":
            encode = model.encode_chat if workload.chat else model.encode
            ids = encode(texts[name])
            fits = 0 < len(ids) <= LONGEST_PROMPT
        else:
            ids = list(encode_start(model.encode, texts[name], OPENING_TOKENS))[:OPENING_TOKENS]
            fits = len(ids) == OPENING_TOKENS
        if fits and _has_room(model, len(ids) + new_tokens):
            found[name] = tuple(ids)
        if len(found) == count:
            break
    if not found:
        raise InputError(
            f"no document of {workload.name} gives a prompt to decode from",
            where=workload.name,
            fix=f"texts need {OPENING_TOKENS} tokens, prompts {LONGEST_PROMPT} at most",
        )
    return Prompts(tuple(found.values()), tuple(found), unseen)


def _report_places(trace: Trace, seed: int) -> tuple[list[int], bool]:
    """Documents for the report, which verdict and tuner alike have not chosen on; all without such."""
    judging, roles = split_documents(trace, seed)[1], split_roles(trace, seed)
    report = [int(place) for place in roles.report if place in judging]
    if report:
        return report, True
    return [int(place) for place in np.unique(trace.document)], False


def _has_room(model: Model, tokens: int) -> bool:
    return model.context_length is None or tokens <= model.context_length
