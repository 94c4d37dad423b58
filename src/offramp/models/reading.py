"""What a model makes of what it is given: what its encoder reads of a text, a sound or a picture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.kit.given import Given
from offramp.kit.picture import picture_of
from offramp.kit.sound import require_within, sound_of
from offramp.models.conditioned import Conditioned, Encoding, SourceReader
from offramp.models.pictured import Pictured
from offramp.models.tokenizing import token_ids


def encoding_of(hf: SourceReader, tokenizer: Any, given: Given, name: str) -> Encoding:
    """What a model's encoder makes of an input, or made of it lately. name: of the model, in errors.

    Raises InputError for a source without tokens or longer than the encoder's window, and for a sound or a
    picture where nothing is there that makes the encoder's inputs of it.
    """
    if isinstance(hf, Pictured):
        return hf.encoding(given.samples, lambda: hf.asked(picture_of(given), given.prompt))
    assert isinstance(hf, Conditioned)
    if given.kind == "audio":
        return hf.encoding(given.samples, partial(_features, _extractor(hf, given, name), given))
    return _encoding_of_source(hf, tokenizer, given, name)


def _extractor(hf: Conditioned, given: Given, name: str) -> Any:
    if hf.maker is None:
        what = "the model was wrapped without what makes features of sounds, so it hears none"
        fix = "give offramp.wrap(model, processor), transformers' own AutoProcessor of its folder"
        raise InputError(what, where=given.text, fix=fix)
    require_within(given, hf.maker.chunk_length, name)
    return hf.maker


def _features(extractor: Any, given: Given) -> Mapping[str, Tensor]:
    rate = extractor.sampling_rate
    made = extractor(sound_of(given).at(rate), sampling_rate=rate, return_tensors="pt")
    return {"input_features": made["input_features"]}


def _encoding_of_source(hf: Conditioned, tokenizer: Any, given: Given, name: str) -> Encoding:
    ids = list(given.tokens or token_ids(tokenizer, text=given.text))
    window = hf.source_window
    if not 0 < len(ids) <= (window or len(ids)):
        takes = "one or more" if window is None else f"1 to {window:,}"
        raise InputError(
            f"the source has {len(ids):,} tokens, and the encoder of {name} takes {takes}",
            where=f"the source {given.text[:40]!r}",
            fix="shorten it, or split it into several documents" if ids else "give it some text",
        )
    return hf.encoding(tuple(ids), lambda: {"input_ids": torch.tensor([ids], device="cpu")})
