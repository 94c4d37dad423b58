"""Prompts to time with: the starts of a workload's documents, or its own prompts."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.errors import InputError, WorkloadError
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitHeads
from offramp.workloads.encoded import encode_start
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
