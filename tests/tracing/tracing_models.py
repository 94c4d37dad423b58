"""Small random models with a tokenizer of numbers, and workloads of numbers, for the tests of tracing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from offramp.models.identity import ModelIdentity
from offramp.models.loading import build_model
from offramp.models.model import Model
from offramp.workloads.workload import Document, Workload

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from family_configs import build_family, llama
from family_table import independent_readout

__all__ = ["NumberTokenizer", "build_family", "independent_readout", "llama", "tiny_model", "workload_of"]


class NumberTokenizer:
    """The text "3 14 15" is the tokens 3, 14, 15: what a test writes is what the model sees."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __init__(self, *, bos: int | None = None, eos: int | None = None, chat: bool = False) -> None:
        self.bos_token_id = bos
        self.eos_token_id = eos
        self.chat_template = "between 3 and 4" if chat else None

    def __call__(
        self, text: str, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        ids = [int(word) if word.isdecimal() else 5 for word in text.split()]
        front = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": [*front, *ids]}

    def apply_chat_template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool, tokenize: bool
    ) -> str:
        return f"3 {messages[0]['content']} 4"

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return " ".join(str(token) for token in ids)


def tiny_model(
    hf: Any,
    *,
    name: str = "tiny",
    dtype: str = "float32",
    tokenizer: NumberTokenizer | None = None,
    head_scale: float = 1.0,
    change: Callable[[Any], None] | None = None,
) -> Model:
    """A loaded model around a transformers model; its head is scaled so that logits are far from uniform."""
    hf = hf.to(getattr(torch, dtype))
    with torch.no_grad():
        hf.get_output_embeddings().weight.mul_(head_scale)
        if change is not None:
            change(hf)
    identity = ModelIdentity(weights=name, config=name, tokenizer=name, source="a test")
    return build_model(hf, tokenizer or NumberTokenizer(), name=name, identity=identity, dtype=dtype)


@functools.cache
def tiny_llama() -> Model:
    """The model of the tests that are not about models."""
    return tiny_model(llama(), head_scale=3.0)


def numbers(seed: int, count: int, vocabulary: int) -> str:
    """A text of `count` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(str(token) for token in torch.randint(vocabulary, (count,), generator=generator).tolist())


def workload_of(
    *texts: str, mode: Any = "text", chat: bool = False, lengths: Sequence[int] = (), vocabulary: int = 61
) -> Workload:
    """A workload of given texts, or of random ones of some lengths in tokens."""
    texts += tuple(numbers(seed, count, vocabulary) for seed, count in enumerate(lengths))
    documents = tuple(Document(f"document {number}", text) for number, text in enumerate(texts))
    return Workload("numbers", mode, documents, licence="none", source="a test", chat=chat)
