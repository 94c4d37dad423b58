"""A loaded model: transformers' own model and tokenizer, the stack of exits, shape and identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offramp.errors import ModelError
from offramp.models import encoding
from offramp.models.encoding import BosPolicy
from offramp.models.identity import ModelIdentity, shown_name
from offramp.models.shape import ModelShape
from offramp.models.source import Source
from offramp.models.stack import ExitStack
from offramp.models.streaming.layers import StreamedLayers


@dataclass(frozen=True)
class Model:
    """A causal language model whose exits reproduce its own logits.

    name: as given to `load_model` (the last part of a path). hf: the transformers model, in eval mode,
    without gradients. dtype: "float32" or "bfloat16". context_length: positions at most, None if the config
    states none. eos_token_ids: tokens that end an answer. source: what it was loaded from, before any
    transform; None if it was built in memory. streamed: None if all weights are in memory; else `hf` holds no
    weights of layers, which are read from here one at a time.
    """

    name: str
    hf: Any
    tokenizer: Any
    stack: ExitStack
    shape: ModelShape
    identity: ModelIdentity
    dtype: str
    bos_policy: BosPolicy
    context_length: int | None
    eos_token_ids: tuple[int, ...]
    source: Source | None = None
    streamed: StreamedLayers | None = None

    def __repr__(self) -> str:
        where = "" if self.streamed is None else ", layers on disk"
        return f"Model({self.shown_name}, {self.layers} layers, {self.dtype}{where})"

    @property
    def shown_name(self) -> str:
        """The name with what was done to the model after loading, for people: "smollm2 + int8"."""
        return shown_name(self.name, self.identity.transforms)

    @property
    def layers(self) -> int:
        """L, the number of decoder layers and of exits."""
        return len(self.stack)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template, None if it has none."""
        template = self.tokenizer.chat_template
        return None if template is None else str(template)

    @property
    def uses_plain_chat_template(self) -> bool:
        """Whether `encode_chat` writes a plain turn because the model has no chat template."""
        return self.chat_template is None

    def require_loaded(self, what: str) -> None:
        """Refuse a model whose layers stay on disk. what: needs all weights in memory, such as "decoding".

        Raises ModelError.
        """
        if self.streamed is not None:
            raise ModelError(
                f"{what} needs all of the model's weights in memory, but its layers stay on disk and are "
                "read one at a time",
                where=self.shown_name,
                fix="use a smaller model, or a machine with more memory",
            )

    def encode(self, text: str) -> list[int]:
        """Token ids as `tokenizer(text)` gives them, with BOS as `bos_policy` says.

        Raises ModelError if the text holds a special token that the model has no embedding for.
        """
        return self._with_rows(encoding.encode_text(self.tokenizer, self.bos_policy, text))

    def encode_chat(self, prompt: str) -> list[int]:
        """Token ids of one user turn with the generation prompt (see `uses_plain_chat_template`)."""
        return self._with_rows(encoding.encode_chat(self.tokenizer, self.bos_policy, prompt))

    def _with_rows(self, ids: list[int]) -> list[int]:
        """The same ids, refused if one has no row in the embedding."""
        beyond = [token for token in ids if token >= self.shape.vocabulary_size]
        if beyond:
            raise ModelError(
                f"the text holds the special token {self.tokenizer.decode(beyond[:1])!r} (id {beyond[0]:,}), "
                f"but the model's embedding has {self.shape.vocabulary_size:,} rows",
                where=self.name,
                fix="take that token out of the text",
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
