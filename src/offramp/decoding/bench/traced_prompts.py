"""Prompts to decode policies on that were chosen on a trace: documents that nobody has chosen on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents, split_roles
from offramp.workloads.encoded import encode_start
from offramp.workloads.workload import Workload

PROMPTS = 8
"""Of each text, as far as there is time to decode them: each is one sample of an interval."""
PROMPT_TOKENS = 32
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
            ids = list(encode_start(model.encode, texts[name], PROMPT_TOKENS))[:PROMPT_TOKENS]
            fits = len(ids) == PROMPT_TOKENS
        if fits and _has_room(model, len(ids) + new_tokens):
            found[name] = tuple(ids)
        if len(found) == count:
            break
    if not found:
        raise InputError(
            f"no document of {workload.name} gives a prompt to decode from",
            where=workload.name,
            fix=f"texts need {PROMPT_TOKENS} tokens, prompts {LONGEST_PROMPT} at most",
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
