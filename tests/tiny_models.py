"""Tiny random-weight models with real tokenizers, written to disk as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 320
LAYERS = 4
CONTEXT = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant] "
)
LINES = (
    "the cat sat on the mat and looked at the rain",
    "a model reads one token after another and guesses the next",
    "deep layers change the guess less often than shallow ones",
    "numbers such as 12 and 345 are words too, aren't they?",
)


def write_tokenizer(folder: Path, *, vocabulary: int = VOCABULARY, chat_template: str | None = None) -> None:
    """A byte-level BPE tokenizer trained on a few lines; every byte has a token, so every text encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


def write_llama(folder: Path, *, chat_template: str | None = None, **config: Any) -> Path:
    """A random Llama of 4 layers and its tokenizer; its layers agree with the last one now and then."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(values | config))).save_pretrained(folder)
    write_tokenizer(folder, chat_template=chat_template)
    return folder


def write_documents(path: Path, *, documents: int = 48, words: int = 30, seed: int = 0) -> Path:
    """A JSON-lines file of short documents in the field "text", made of the tokenizer's own words."""
    import json

    vocabulary = " ".join(LINES).split()
    generator = np.random.default_rng(seed)
    lines = [
        json.dumps({"id": f"d{number}", "text": " ".join(generator.choice(vocabulary, size=words))})
        for number in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
