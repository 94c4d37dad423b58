"""A tokenizer that came with a model's files: what it may be, and what of it goes wrong."""

from __future__ import annotations

import base64
import json
import math
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp.errors import InputError, ModelError, OfframpError, raise_if_out_of_memory
from offramp.files import json_object_in
from offramp.kit.rules import shown
from offramp.models.checkpoint import AGAIN

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
OTHER_FILES = "fast_tokenizer_files"
"""An entry that names files which transformers reads instead of that one, which is checked and hashed."""
LARGEST_TOKENIZER = 128_000_000
"""Bytes of a tokenizer.json; the largest in use has a fourth of it."""
MOST_GROWTH = 10_000
"""Characters that the steps of a tokenizer may make of one."""
STEPS = ("normalizer", "pre_tokenizer", "decoder")
LARGEST_POST_PROCESSOR = 20_000
"""Characters of JSON: it names the few tokens that surround a text."""
PROBE = f"{string.ascii_letters} {string.digits}"


@contextmanager
def tokenizing(tokenizer: Any) -> Iterator[None]:
    """Let whatever a tokenizer raises within the block be a ModelError that names its file."""
    try:
        yield
    except BaseException as error:
        raise_if_not_a_librarys(error)
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ModelError(
            f"the tokenizer fails: {str(error) or type(error).__name__}",
            where=name if name.endswith(".gguf") else f"{name}/{TOKENIZER_FILE}",
            fix="change the text, or use the tokenizer that belongs to this model",
        ) from error


def token_ids(tokenizer: Any, **asked: Any) -> list[int]:
    """Token ids of a text. asked: that and options, as transformers' tokenizers take them.

    Raises InputError for half of a surrogate pair, which no tokenizer reads, and ModelError where it fails.
    """
    text: str = asked["text"] if "text" in asked else asked["text_target"]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half of a surrogate pair at character {error.start:,}",
            where=repr(text[error.start : error.end]),
            fix="take it out, or decode the bytes that it was read from as UTF-8",
        ) from error
    with tokenizing(tokenizer):
        return [int(token) for token in tokenizer(**asked, verbose=False)["input_ids"]]


def raise_if_not_a_librarys(error: BaseException) -> None:
    """Raise an error again that no library means: what stops the command, short memory, or one of offramp's.

    tokenizers raises plain Exceptions, and its panics, which are BaseExceptions of a module of their own.
    """
    panicked = type(error).__module__ == "pyo3_runtime"
    if isinstance(error, OfframpError) or not (isinstance(error, Exception) or panicked):
        raise error
    raise_if_out_of_memory(error)


def check_tokenizer_file(folder: Path) -> None:
    """Refuse a tokenizer.json that no tokenizer has, before anything is encoded: one whose steps make
    too much of a character, that puts too much around a text, or whose ids are of two texts, one of which
    would be taken at random. Raises ModelError.

    What is no JSON object is left to transformers.
    """
    config = folder / TOKENIZER_CONFIG
    if (json_object_in(config, lenient=True) or {}).get(OTHER_FILES):
        fix = f"rename the file that is meant to {TOKENIZER_FILE}, and leave {OTHER_FILES} out"
        raise ModelError(f"{OTHER_FILES} names tokenizers of its own", where=str(config), fix=fix)
    path, what = folder / TOKENIZER_FILE, None
    if not path.is_file():
        return
    if path.stat().st_size > LARGEST_TOKENIZER:
        what = f"the file is larger than {LARGEST_TOKENIZER / 1e6:g} MB"
    else:
        stated = json_object_in(path, lenient=True) or {}
        grows = [step for step in STEPS if _growth(stated.get(step)) > MOST_GROWTH]
        if grows:
            what = f"the {grows[0]} makes more than {MOST_GROWTH:,} characters of one"
        elif len(json.dumps(stated.get("post_processor"))) > LARGEST_POST_PROCESSOR:
            what = f"the post_processor has more than {LARGEST_POST_PROCESSOR:,} characters"
        elif twice := _shared_id(stated.get("model")):
            what = f"the vocabulary has the id {twice[0]} for {shown(twice[1])} and {shown(twice[2])}"
    if what is not None:
        raise ModelError(f"{what}, which no tokenizer needs", where=str(path), fix=AGAIN)


def _shared_id(model: Any) -> tuple[int, str, str] | None:
    """An id that a vocabulary has for two texts, and these; None where each has its own."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    texts: dict[int, str] = {}
    for text, number in vocabulary.items() if isinstance(vocabulary, dict) else ():
        if type(number) is int and texts.setdefault(number, text) != text:
            return number, texts[number], text
    return None


def _growth(step: Any) -> float:
    """The most characters that a step makes of one; what steps in a row do is multiplied."""
    if isinstance(step, list):
        return math.prod(map(_growth, step), start=1.0)
    if not isinstance(step, dict):
        return 1.0
    match step.get("type"):
        case "Replace":  # a regular expression may match between all characters
            found, written = step["pattern"].get("String"), len(step["content"])
            return max(1.0, written / len(found)) if found else 1.0 + written
        case "Prepend":
            return 1.0 + len(step["prepend"])
        case "ByteLevel":
            return 2.0
        case "Precompiled":  # a trie with its size in front, then what it puts in place of characters
            packed = base64.b64decode(step["precompiled_charsmap"])
            texts = packed[4 + int.from_bytes(packed[:4], "little") :].split(b"\0")
            return max(1.0, *map(len, texts))
    return _growth(list(step.values()))


def settle(tokenizer: Any, folder: Path) -> None:
    """Let a tokenizer give a text the same tokens each time, and refuse one that gives it none of its own.

    Merges that are left out at random (BPE dropout) are for training.

    Raises ModelError.
    """
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None
    own = set(token_ids(tokenizer, text=PROBE, add_special_tokens=False))
    if not own or not own <= set(token_ids(tokenizer, text=PROBE)):
        raise ModelError(
            "the tokenizer drops the text: letters, digits and spaces give no token",
            where=str(folder / TOKENIZER_FILE),
            fix="use the tokenizer that belongs to this model",
        )
