"""A model's answers as texts, where it is known what was to be written: their room, their words."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from offramp.kit.given import Kind
from offramp.models.model import Model
from offramp.models.pictured import Pictured
from offramp.scoring.text_quality import Normaliser, TextQuality, WrittenAnswer, measure_of, text_quality
from offramp.workloads.packing import encode_document
from offramp.workloads.workload import Document, Workload

ROOM = 2
"""An answer has room for so many times the tokens of the longest text that is to be written."""


def answer_limit(model: Model, workload: Workload, new_tokens: int) -> int:
    """New tokens of an answer, at most: as many as are asked for, where answers have no end of their own.

    Where a document says what is to be written, twice the longest such text at least, within half of the
    model's context: what runs into that limit does not end by itself.
    """
    if workload.reads is None:
        return new_tokens
    room = ROOM * max(_length(model, document) for document in workload.documents)
    if model.context_length is not None:
        room = min(room, model.context_length // 2)
    return max(new_tokens, room)


def _length(model: Model, document: Document) -> int:
    """Tokens of what is to be written."""
    if document.given is not None and isinstance(model.hf, Pictured):
        return len(model.hf.answer(document.given, document.text))  # without a look at the picture
    return len(encode_document(model.encode, document)) - len(model.front(document.given))


def written(model: Model, tokens: Sequence[int], new_tokens: int) -> WrittenAnswer:
    """An answer, token ids, as text: up to its first end token. new_tokens: that it could have, at most."""
    ends = [place for place, token in enumerate(tokens) if token in model.eos_token_ids]
    text = model.decode(tokens[: ends[0]] if ends else tokens, special=False)
    return WrittenAnswer(text, cut=not ends and len(tokens) >= new_tokens)


def quality_of(
    model: Model,
    kind: Kind,
    texts: Sequence[str],
    full: Sequence[Sequence[int]],
    policy: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    seed: int,
) -> TextQuality:
    """The full model's answers and a policy's, token ids, against the texts that were to be written.

    kind: of what the model read. new_tokens: of an answer, at most. seed: of intervals. Raises as
    `text_quality`.
    """
    return text_quality(
        measure_of(kind),
        texts,
        [written(model, answer, new_tokens) for answer in full],
        [written(model, answer, new_tokens) for answer in policy],
        normaliser=normaliser_of(model),
        new_tokens=new_tokens,
        seed=seed,
    )


def normaliser_of(model: Model) -> Normaliser:
    """The model's own, which its tokenizer brings: for English where it has the spellings and writes that."""
    tokenizer = model.tokenizer
    if getattr(tokenizer, "english_spelling_normalizer", None) and _writes_english(model):
        return Normaliser("normalised as the model's authors do English", tokenizer.normalize)
    if hasattr(tokenizer, "basic_normalize"):
        return Normaliser("normalised as the model's authors do any language", tokenizer.basic_normalize)
    return Normaliser("in lower case without punctuation", plain_words)


def _writes_english(model: Model) -> bool:
    """Whether nothing in front of every answer asks for another language."""
    languages: Mapping[str, int] = getattr(model.hf.generation_config, "lang_to_id", None) or {}
    others = {token for language, token in languages.items() if language != "<|en|>"}
    return others.isdisjoint(model.bos_policy.front)


def plain_words(text: str) -> str:
    """In lower case, a space for each sign of punctuation but an apostrophe."""
    lower = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return "".join(
        sign if sign == "'" or unicodedata.category(sign)[0] not in "PS" else " " for sign in lower
    )
