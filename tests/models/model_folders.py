"""Folders of tiny models with a word-level tokenizer, as tests of loading write and change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 64


def write_tokenizer(folder: Path, *, vocabulary: int = VOCABULARY, chat_template: str | None = None) -> None:
    """A word-level tokenizer with the words w3, w4, ... and <s>, </s>, <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


def write_llama(folder: Path, **config: Any) -> None:
    """A random Llama of 3 layers, with its tokenizer."""
    from family_configs import llama

    values = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02} | config
    llama(VOCABULARY, **values).save_pretrained(folder)
    write_tokenizer(folder)


def edit_json(path: Path, **changes: Any) -> None:
    """Change some top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
