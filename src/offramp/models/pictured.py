"""An image-text model as a causal language model, beside which the features of pictures are held."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp.errors import InputError, ModelError, refused_as
from offramp.kit.given import Given
from offramp.kit.picture import picture_of
from offramp.models.calls import UNFIT_ERRORS, caches_among
from offramp.models.checkpoint import PICTURED_KEYS
from offramp.models.conditioned import Condition, Conditioned, Encoding, SourceReader
from offramp.models.templates import rendered
from offramp.models.tokenizing import token_ids, tokenizing

FEATURES = "mm_encoder_outputs"
"""What transformers calls the features of pictures, made before the language model runs."""

PLACED = "it counts the positions of a picture along two axes"
LOOKS_AHEAD = "the parts of a picture attend to each other, also to those behind"
UNFIT = {"token_type_ids": LOOKS_AHEAD, "mm_token_type_ids": LOOKS_AHEAD}
"""Why a family cannot be driven with pictures, by the argument of its forward that shows it."""


PROBE_PIXELS = 96
"""Of each side of the probe's picture."""

PROMPTS_KEPT = 1024
"""As token ids."""


def probe_picture() -> Any:
    """A picture of no meaning, on which what sees is measured and timed."""
    from PIL import Image

    shape = (PROBE_PIXELS, PROBE_PIXELS, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


class Seen(Encoding):
    """The features of a picture."""

    @property
    def features(self) -> list[Tensor]:
        """Of each part of it [places, hidden]."""
        return list(self.output.pooler_output)

    @property
    def positions(self) -> int:
        """Places that they take."""
        return sum(len(part) for part in self.features)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.nbytes for part in self.features)


class Pictured(SourceReader):
    """An image-text model: given nothing, a causal language model; given pictures, their features stand in
    the prompt's places.

    The features of all pictures of a prompt belong to its first pass, which takes it whole.
    """

    def __init__(self, hf: Any, processor: Any = None) -> None:
        super().__init__(hf, "image", processor)
        reasons = [UNFIT[name] for name in UNFIT if name in self._takes]
        placed = hasattr(hf.base_model, "get_rope_index")
        self.unfit: str | InputError | None = PLACED if placed else next(iter(reasons), None)
        self.probe_places = 1  # of the probe's picture, once it was measured
        self._prompts: dict[Given, tuple[int, ...]] = {}

    @property
    def place(self) -> int:
        """The token in whose place a feature stands."""
        stated = (getattr(self.inner.config, key, None) for key in PICTURED_KEYS)
        return next(int(token) for token in stated if token is not None)

    def encoder_modules(self) -> Sequence[nn.Module]:
        """All beside the language model: what sees, and what brings it to its width."""
        language = self.inner.get_decoder()
        return tuple(child for child in self.inner.base_model.children() if child is not language)

    def encode(self, inputs: Mapping[str, Tensor]) -> Encoding:
        """The features of one picture, of what the processor makes of it."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        see = self.inner.base_model.get_image_features
        takes = inspect.signature(see).parameters
        made = see(**{name: value for name, value in inputs.items() if name in takes}, return_dict=True)
        return Seen(BaseModelOutputWithPooling(pooler_output=made.pooler_output))

    def asked(self, picture: Any, prompt: str) -> Mapping[str, Tensor]:
        """What the processor makes of a picture and what is asked of it: `input_ids` [1, positions] with the
        picture's places, and the encoder's inputs.

        Raises InputError without a processor, and for a family that cannot be driven with pictures.
        """
        family = type(self.inner).__name__
        if isinstance(self.unfit, InputError):  # what its files, not its family, did with the probe
            raise self.unfit
        if self.unfit is not None:
            raise InputError(
                f"a {family} is not driven with pictures: {self.unfit}",
                where=family,
                fix="give it texts alone, or use a family such as LLaVA or SmolVLM",
            )
        if self.maker is None:
            raise InputError(
                "the model came without a processor, so it sees no pictures",
                where=family,
                fix="put its processor's files into the folder, or give offramp.wrap(model, processor)",
            )
        text, tokenizer = self._written(prompt), self.maker.tokenizer
        begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        what = "the processor cannot put the picture into the prompt"
        fix = f"give a prompt with {self.maker.image_token} once, or repair the chat template"
        refused = refused_as(InputError, what, *UNFIT_ERRORS, where=repr(prompt[:40] or text[:40]), fix=fix)
        with tokenizing(tokenizer), refused:
            made = self.maker(
                text=[text], images=[picture], return_tensors="pt", add_special_tokens=not begun
            )
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def _written(self, prompt: str) -> str:
        """The prompt as it is if it says where the picture stands; else by the processor's chat template, or
        with the picture in front."""
        place = self.maker.image_token
        if place in prompt:
            return prompt
        if getattr(self.maker, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            turns = [{"role": "user", "content": content}]
            return rendered(self.maker, turns, add_generation_prompt=True)
        return f"{place}\n{prompt}"

    def prompt(self, given: Given) -> tuple[int, ...]:
        """Token ids of what is asked of a picture, its places included."""
        if given not in self._prompts:
            if len(self._prompts) >= PROMPTS_KEPT:
                self._prompts.clear()
            ids = self.asked(picture_of(given), given.prompt)["input_ids"][0].tolist()
            if self.place not in ids:
                raise ModelError(
                    "the processor leaves no place for the picture in its prompt",
                    where=given.text,
                    fix="use the processor that belongs to this model",
                )
            self._prompts[given] = tuple(ids)
        return self._prompts[given]

    def answer(self, given: Given, text: str) -> list[int]:
        """Token ids of an answer behind its prompt, ended by the end token."""
        apart = "" if self._written(given.prompt)[-1:].isspace() else " "
        tokenizer = self.maker.tokenizer
        ids = token_ids(tokenizer, text=f"{apart}{text.strip()}", add_special_tokens=False)
        if self.place in ids:
            what = f"the answer to a picture holds {self.maker.image_token}, in whose place a picture stands"
            raise InputError(what, where=f"{given.text}: {text[:40]!r}", fix="take it out of the answer")
        return [*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        **others: Any,
    ) -> Any:
        """The language model on token ids, int64 [batch, positions]; cache and the rest as it takes them."""
        own = self._taken(attention_mask=attention_mask, position_ids=position_ids)
        if self._seen and not any(cache.get_seq_length() for cache in caches_among(others.values())):
            own |= self._features(input_ids)
        return self.inner(input_ids=input_ids, use_cache=use_cache, **own, **others)

    @property
    def _seen(self) -> Condition | None:
        """What holds now, if pictures are given."""
        held = self.held
        return held if held is not None and held.encodings else None

    def _features(self, ids: Tensor) -> dict[str, Any]:
        """Those of the pictures that the rows of a prompt are given, as an argument; none without any."""
        held = self._seen
        if held is None:
            return {}
        parts = [part for encoding in held.for_rows(len(ids)) for part in _seen(encoding).features]
        places, wanted = int((ids == self.place).sum()), sum(map(len, parts))
        if places != wanted:
            raise ModelError(
                f"the prompt has {places:,} places for features of pictures, and there are {wanted:,}",
                where=type(self.inner).__name__,
                fix="run a prompt with pictures whole; text must not hold the token of a place",
            )
        first = held.encodings[0].output
        whole = torch.stack(parts) if isinstance(first.pooler_output, Tensor) else parts
        return {FEATURES: {"image": type(first)(pooler_output=whole)}}

    def generate(self, inputs: Tensor, **options: Any) -> Any:
        """transformers' own generation after token ids [batch, positions]."""
        from transformers import GenerationMixin

        return GenerationMixin.generate(self.inner, inputs, **self._features(inputs), **options)


def _seen(encoding: Encoding) -> Seen:
    assert isinstance(encoding, Seen), "what an image-text model encodes is a picture"
    return encoding


def as_causal(hf: Any, maker: Any = None) -> Any:
    """A transformers model as offramp drives it: an encoder-decoder by its decoder, an image-text model with
    the features of pictures beside, any other as it is. maker: see `SourceReader`."""
    if isinstance(hf, SourceReader):
        return hf
    takes = inspect.signature(hf.forward).parameters
    if getattr(hf.config, "is_encoder_decoder", False):
        return Conditioned(hf, maker=maker) if "encoder_outputs" in takes else hf
    sees = hasattr(getattr(hf, "base_model", None), "get_image_features") and FEATURES in takes
    placed = any(getattr(hf.config, key, None) is not None for key in PICTURED_KEYS)
    return Pictured(hf, maker) if sees and placed else hf


def picture_condition(encodings: Sequence[Encoding | None], where: str) -> Condition | None:
    """What the rows of a batch are given: a picture each, or none has one. Raises InputError for some."""
    seen = tuple(encoding for encoding in encodings if encoding is not None)
    if seen and len(seen) < len(encodings):
        raise InputError(
            f"{len(seen)} of {len(encodings)} prompts have a picture",
            where=where,
            fix="decode prompts with pictures and those without apart",
        )
    return Condition(seen) if seen else None
