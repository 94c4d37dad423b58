"""A tokenizer of its own for a text: byte-level BPE, as an ordinary folder of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.lab.text.generated import Problem

BEGINNING = "<|text|>"
"""In front of every document, and so what ends the one before."""

TRAINED_ON = "trained_on"
"""In the tokenizer's own config: the fingerprint of the works that its merges were learned from."""

Tokens = NDArray[np.uint16]
FEWEST_TOKENS, MOST_TOKENS = 258, 1 << 16
"""All bytes, the beginning of a text and one more; what 16 bits number."""


def train_tokenizer(texts: Iterable[str], vocabulary: int, fingerprint: str) -> Any:
    """A tokenizer of so many tokens, the beginning of a text and all bytes among them.

    Byte-level BPE (Radford et al. 2019, section 2.2), so that every text can be written in it. vocabulary:
    FEWEST_TOKENS to MOST_TOKENS. fingerprint: of the texts that are not generated. Raises InputError if the
    texts do not give so many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGINNING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocabulary:
        raise InputError(
            f"the text gives only {backend.get_vocab_size():,} different tokens of {vocabulary:,}",
            where="vocabulary",
            fix="ask for fewer, or give more text",
        )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGINNING} $A", special_tokens=[(BEGINNING, 0)]
    )
    made: Any = PreTrainedTokenizerFast  # which has no types
    return made(
        tokenizer_object=backend, bos_token=BEGINNING, eos_token=BEGINNING, **{TRAINED_ON: fingerprint}
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder that `save_pretrained` wrote."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Ids of every text, its beginning in front: uint16 [tokens] each."""
    found = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
    return [np.array(one.ids, dtype=np.uint16) for one in found]


def encoded_problems(
    tokenizer: Any, problems: Sequence[Problem]
) -> tuple[list[Tokens], list[NDArray[np.uint8]]]:
    """Ids of every problem, and of each token the steps that it takes to know it, 0 where that is not known.

    An answer's first token takes its steps, and its further ones none: they follow from the first.
    """
    ids, steps = [], []
    for one, problem in zip(
        tokenizer.backend_tokenizer.encode_batch([one.document.text for one in problems]),
        problems,
        strict=True,
    ):
        ids.append(np.array(one.ids, dtype=np.uint16))
        begins = np.array([start for start, _ in one.offsets])
        ends = np.array([end for _, end in one.offsets])
        needed = np.zeros(len(begins), dtype=np.uint8)
        for answer in problem.answers:
            (places,) = np.nonzero((begins < answer.end) & (ends > answer.start + 1))
            needed[places[0]] = answer.steps
        steps.append(needed)
    return ids, steps
