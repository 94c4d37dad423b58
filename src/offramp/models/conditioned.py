"""A model beside which what it read is held; an encoder-decoder as a causal model of its decoder."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import ModelError, refused_as
from offramp.kit.given import Kind
from offramp.models.calls import UNFIT_ERRORS
from offramp.models.checkpoint import SOURCE_WINDOW_KEYS, TARGET_WINDOW_KEYS, source_read

ENCODINGS_BYTES = 1 << 28
"""Encodings that are kept for later take so much memory at most."""

PROBE_POSITIONS = 17
"""Of the source on which a model itself is measured: a number that few heads and states have by chance."""

SHORTER = 5
"""Positions less of each further one."""

PROBE = "probe"
"""What the encoding of that source is kept by."""

FRAMES_PER_POSITION = 2
"""Of a spectrogram, that Whisper's encoder makes one position of (arXiv 2212.04356, section 2.2)."""

DECODER_LAYERS = ("decoder_layers", "num_decoder_layers", "decoder_num_layers", "decoder_num_hidden_layers")


@dataclass(frozen=True, eq=False)
class Encoding:
    """What an encoder made of one input."""

    output: Any
    """Its own output object, of a batch of 1: what else than states it holds goes with them."""

    @property
    def positions(self) -> int:
        """That the decoder attends to."""
        return int(self.output[0].shape[1])

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.nbytes for part in self.output.values() if isinstance(part, Tensor))


@dataclass(frozen=True, eq=False)
class Condition:
    """What the rows of a batch are given: one encoding each, or one for all of them."""

    encodings: tuple[Encoding, ...]
    longest: int = 0
    """Positions that all are filled up to at least: of a batch that these rows are some of."""
    _batches: dict[int, tuple[Any, Tensor | None]] = field(default_factory=dict)

    def of_rows(self, rows: Sequence[int]) -> Condition:
        """That of some rows of the batch, in this order; they stay filled up as they were in it."""
        if len(self.encodings) <= 1:
            return self
        longest = max(self.longest, *(encoding.positions for encoding in self.encodings))
        return Condition(tuple(self.encodings[row] for row in rows), longest)

    def batch(self, rows: int) -> tuple[Any, Tensor | None]:
        """The encoder's output for so many rows, and its mask int64 [rows, positions], 0 where shorter ones
        are filled up on their right; None where all are of one length. Made once.
        """
        if rows not in self._batches:
            self._batches[rows] = _together(self.for_rows(rows), self.longest)
        return self._batches[rows]

    def for_rows(self, rows: int) -> tuple[Encoding, ...]:
        """An encoding for each of so many rows. Raises ModelError where there are others than these."""
        encodings = self.encodings * rows if len(self.encodings) == 1 else self.encodings
        if len(encodings) != rows:
            raise ModelError(
                f"{rows} rows are decoded where {len(encodings)} sources are given",
                where="model.given(documents)",
                fix="give one document to each row of the batch, in its order",
            )
        return encodings


NOTHING = Condition(())
"""Texts alone, for a model that reads pictures beside some."""


def _together(encodings: Sequence[Encoding], longest: int) -> tuple[Any, Tensor | None]:
    first, lengths = encodings[0].output, [encoding.positions for encoding in encodings]
    longest = max(longest, *lengths)
    if len(encodings) == 1 and lengths[0] == longest:
        return first, None

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        """Rows of shapes [1, positions, ...], zeros behind those that are shorter."""
        behind = (0, 0) * (parts[0].dim() - 2)
        most = longest if parts[0].shape[1] == lengths[0] else max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (*behind, 0, most - part.shape[1])) for part in parts])

    output = copy.copy(first)
    for name, value in list(first.items()):
        if isinstance(value, Tensor) and len(value) == 1 and value.dim() > 1:
            output[name] = stacked([encoding.output[name] for encoding in encodings])
    if set(lengths) == {longest}:
        return output, None
    held = torch.arange(longest, device=first[0].device)
    return output, (held < torch.tensor(lengths, device=held.device)[:, None]).long()


_CONDITION: ContextVar[tuple[object, Condition] | None] = ContextVar("condition", default=None)
"""The encodings of a model, which tell it from others, and what it runs under in this thread."""


class _CausalConfig:
    """A config with entries of its own; with `text`, its text part, as of a causal language model."""

    def __init__(self, config: Any, **own: Any) -> None:
        self.__dict__.update(config=config, **own)

    def get_text_config(self, *arguments: Any, **keywords: Any) -> Any:
        """The decoder's."""
        return self.__dict__.get("text", self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for while it is copied
            raise AttributeError(name)
        return getattr(self.config, name)


def _causal_config(config: Any) -> _CausalConfig:
    text = config.get_text_config(decoder=True)
    sizes = {"num_hidden_layers": DECODER_LAYERS, "max_position_embeddings": TARGET_WINDOW_KEYS}
    stated = {
        name: next((size for key in keys for part in (text, config) if (size := getattr(part, key, None))), 0)
        for name, keys in sizes.items()
    }
    own = {name: size for name, size in stated.items() if size}
    return _CausalConfig(config, text=_CausalConfig(text, **own))


def _suppressing(hf: Any) -> Any:
    """The model with the tokens that its generation config suppresses ruled out by its output head, so that
    every exit is read so: a shallow twin, whose head has a bias of -inf there; itself if there are none."""
    stated = getattr(getattr(hf, "generation_config", None), "suppress_tokens", None)
    head = hf.get_output_embeddings()
    if not stated or not isinstance(head, nn.Linear):
        return hf
    tokens = [token for token in stated if 0 <= token < len(head.weight)]  # -1 is written for none
    bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias.detach().clone()
    bias[tokens] = -torch.inf
    ruling, twin = copy.copy(head), copy.copy(hf)
    ruling._parameters, ruling._buffers = dict(head._parameters), {}
    del ruling.bias
    ruling.register_buffer("bias", bias, persistent=False)  # no weight of the model
    twin._modules = dict(hf._modules)
    twin.set_output_embeddings(ruling)
    return twin


def _forced(config: Any) -> list[int]:
    """What a generation config puts behind the start token: of Whisper language and task, English and
    transcription unless it says otherwise, where it knows several, and that there are no timestamps."""
    stated = sorted(getattr(config, "forced_decoder_ids", None) or [])
    if stated and all(token is not None for _, token in stated):
        return [int(token) for _, token in stated]
    asked: list[int | None] = []
    if getattr(config, "is_multilingual", False):
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        where = "the generation config"
        tables = ("lang_to_id", "task_to_id")
        if lacking := [name for name in tables if not isinstance(getattr(config, name, None), Mapping)]:
            raise ModelError(
                f"it says that the model is multilingual, and lacks {' and '.join(lacking)}",
                where=where,
                fix="copy generation_config.json of the original model into the model's folder",
            )
        language = str(getattr(config, "language", None) or "en").strip("<|>")
        what, fix = "it states a language or task that the model does not know", "mend it, or leave them out"
        with refused_as(ModelError, what, KeyError, TypeError, where=where, fix=fix):
            asked.append(config.lang_to_id[f"<|{TO_LANGUAGE_CODE.get(language, language)}|>"])
            asked.append(config.task_to_id[getattr(config, "task", None) or "transcribe"])
    asked.append(getattr(config, "no_timestamps_token_id", None))
    return [int(token) for token in asked if token is not None]


class SourceReader(nn.Module):
    """A transformers model, called as a causal language model is, beside which something read is held.

    What is read is encoded in `encoding` and nowhere else. All else that is asked of it is the model's own.
    maker: transformers' own that makes the encoder's inputs of a sound (a feature extractor) or of a picture
    and what is asked of it (a processor), None without one.
    """

    def __init__(self, hf: Any, reads: Kind, maker: Any = None) -> None:
        super().__init__()
        self.inner = hf
        self.reads = reads
        self.maker = maker
        self.training = hf.training
        self.encodings: OrderedDict[Any, Encoding] = OrderedDict()  # made lately, by name; one for all copies
        self._weights: list[Any] = []  # that they were made with
        self._takes = frozenset(inspect.signature(hf.forward).parameters)

    def _taken(self, **optional: Any) -> dict[str, Any]:
        """Those of some arguments that are there, and that the model's own forward has."""
        return {name: value for name, value in optional.items() if value is not None and name in self._takes}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            return getattr(self.inner, name)

    @property
    def generation_config(self) -> Any:
        """The model's own, which `generate` reads."""
        return self.inner.generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        self.inner.generation_config = config

    def encoder_modules(self) -> Sequence[nn.Module]:
        """Those that read."""
        raise NotImplementedError

    def encode(self, inputs: Mapping[str, Tensor]) -> Encoding:
        """What they make of one input, on the model's device and in its dtype."""
        raise NotImplementedError

    @torch.no_grad()
    def encoding(self, key: Any, inputs: Callable[[], Mapping[str, Tensor]]) -> Encoding:
        """What the encoder makes of some inputs, or has made of them lately. key: tells inputs apart."""
        kept = self.encodings
        weights = [
            (weight.data_ptr(), None if weight.is_inference() else weight._version)
            for module in self.encoder_modules()
            for weight in module.parameters()
        ]
        if weights != self._weights:
            kept.clear()
            self._weights[:] = weights
        if key not in kept:
            given = {name: value.to(self.inner.device) for name, value in inputs().items()}
            floating = {name: value for name, value in given.items() if value.is_floating_point()}
            kept[key] = self.encode(
                given | {name: value.to(self.inner.dtype) for name, value in floating.items()}
            )
        kept.move_to_end(key)
        while len(kept) > 1 and sum(encoding.size for encoding in kept.values()) > ENCODINGS_BYTES:
            kept.popitem(last=False)
        return kept[key]

    @contextmanager
    def under(self, condition: Condition) -> Iterator[None]:
        """Within it, the model runs under a condition."""
        before = _CONDITION.set((self.encodings, condition))
        try:
            yield
        finally:
            _CONDITION.reset(before)

    @property
    def held(self) -> Condition | None:
        """The condition that holds now, if any does."""
        held = _CONDITION.get()
        return None if held is None or held[0] is not self.encodings else held[1]


class Conditioned(SourceReader):
    """The decoder of an encoder-decoder. Tokens that the generation config suppresses have no probability,
    at any exit.

    probe: the encoder's inputs for the source on which the model itself is measured, by default of random
    token ids, or random features of a sound.
    """

    def __init__(self, hf: Any, probe: Mapping[str, Tensor] | None = None, maker: Any = None) -> None:
        super().__init__(_suppressing(hf), source_read(hf.config.to_dict()) or "text", maker)
        self._not_first = getattr(getattr(hf, "generation_config", None), "begin_suppress_tokens", None)
        self.config = _causal_config(hf.config)
        self._probe = probe
        self._writes: bool | None = None  # to the encoding; not known before its first forward

    @property
    def front(self) -> tuple[int, ...]:
        """The tokens in front of every answer."""
        return (self.start_token, *(_forced(self.inner.generation_config) if self.reads == "audio" else ()))

    @property
    def start_token(self) -> int:
        """The first of them."""
        parts = (self.inner.generation_config, self.inner.config, self.config.get_text_config())
        names = ("decoder_start_token_id", "start_token_id", "bos_token_id")
        found = [getattr(part, name, None) for name in names for part in parts if part is not None]
        return next((int(token) for token in found if isinstance(token, int)), 0)

    @property
    def source_window(self) -> int | None:
        """Positions that the encoder has room for, None for as many as one likes."""
        config = self.inner.config
        whole = [config, config.get_text_config(encoder=True)]
        found = [getattr(part, key, None) for key in SOURCE_WINDOW_KEYS for part in whole]
        return next((size for size in found if isinstance(size, int) and size > 0), None)

    def encoder_modules(self) -> Sequence[nn.Module]:
        """The encoder."""
        return (self.inner.get_encoder(),)

    def encode(self, inputs: Mapping[str, Tensor]) -> Encoding:
        """What the encoder makes of one input."""
        return Encoding(self.inner.get_encoder()(**inputs, return_dict=True))

    @property
    def condition(self) -> Condition:
        """The one that holds now. Raises ModelError where there is none."""
        held = self.held
        if held is None:
            raise ModelError(
                f"a {type(self.inner).__name__} decodes what its encoder read, and nothing was given to read",
                where=type(self.inner).__name__,
                fix="name a workload with sources, pairs:FILE.jsonl#source,target or audio:DIR; in Python "
                "run it within model.given(documents)",
            )
        return held

    def probing(self, rows: int = 1) -> Condition:
        """The condition under which the model itself is measured: sources of no meaning, each shorter than
        the one before where their length is free. Raises ModelError for an encoder of anything but tokens.
        """
        from offramp.models.discovery import probe_ids

        def inputs(length: int) -> Mapping[str, Tensor]:
            if self._probe is not None:
                return self._probe
            if self.reads == "text":
                return {"input_ids": probe_ids(self, length)}
            config, random = self.inner.config, torch.Generator("cpu").manual_seed(length)
            shape = (1, config.num_mel_bins, FRAMES_PER_POSITION * config.max_source_positions)
            return {"input_features": torch.randn(shape, generator=random, device="cpu")}

        lengths = [PROBE_POSITIONS - SHORTER * row for row in range(rows)]
        family, read = type(self.inner).__name__, self.inner.main_input_name
        what = f"the encoder of a {family}, which reads {read}, fails on a few token ids"
        fix = "use an encoder-decoder from text to text"
        with refused_as(ModelError, what, *UNFIT_ERRORS, where=family, fix=fix):
            return Condition(
                tuple(self.encoding((PROBE, length), partial(inputs, length)) for length in lengths)
            )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        **others: Any,
    ) -> Any:
        """The decoder on token ids, int64 [batch, positions]; cache and the rest as the model takes them."""
        output, mask = self._given_to(len(input_ids))
        own = self._taken(
            attention_mask=mask, decoder_attention_mask=attention_mask, decoder_position_ids=position_ids
        )
        answer = self.inner(
            decoder_input_ids=input_ids, encoder_outputs=output, use_cache=use_cache, **own, **others
        )
        if self._writes is None and not output[0].is_inference():
            self._writes = output[0]._version > 0
        return answer

    def _given_to(self, rows: int) -> tuple[Any, Tensor | None]:
        """What so many rows are given, and its mask: a copy for a decoder that writes to it."""
        output, mask = self.condition.batch(rows)
        if self._writes is not False:
            output = copy.copy(output)
            output["last_hidden_state"] = output[0].clone()
        return output, mask

    def generate(self, inputs: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """transformers' own generation after the decoder's token ids [batch, positions]; a custom loop gets
        what transformers hands it for the model itself.
        """
        from transformers import GenerationMixin

        output, mask = self._given_to(len(inputs))
        masks = {"attention_mask": mask, "decoder_attention_mask": attention_mask}
        if attention_mask is not None and bool(attention_mask.all()):
            del masks["decoder_attention_mask"]
        options |= {name: value for name, value in masks.items() if value is not None}
        # The plain configs that decoding is measured under know nothing of the first token.
        if self._not_first is not None:
            options.setdefault("begin_suppress_tokens", self._not_first)
        # Another start token than the ids' own would be put in front of them.
        start = {"decoder_input_ids": inputs, "decoder_start_token_id": int(inputs[0, 0])}
        return GenerationMixin.generate(self.inner, encoder_outputs=output, **start, **options)


def own_model(hf: Any) -> Any:
    """The transformers model itself, of one that offramp drives as another."""
    return hf.inner if isinstance(hf, SourceReader) else hf


def condition_of(hf: Any) -> Condition | None:
    """What a model runs under now, None for one that nothing is given. Raises ModelError where an
    encoder-decoder is given nothing."""
    if isinstance(hf, Conditioned):
        return hf.condition
    return hf.held if isinstance(hf, SourceReader) else None


def under(hf: Any, condition: Condition | None) -> Any:
    """A context in which a model runs under what `condition_of` gave."""
    return nullcontext() if condition is None else hf.under(condition)


def probing(hf: Any, rows: int = 1) -> Any:
    """A context in which a model itself is measured, on a source of no meaning where it needs one. rows: of
    the batch, if each has a source of its own."""
    if isinstance(hf, Conditioned):
        return hf.under(hf.probing(rows))
    return hf.under(NOTHING) if isinstance(hf, SourceReader) else nullcontext()
