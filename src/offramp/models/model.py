"""A loaded model: transformers' own, the stack of exits, shape and identity; from text to token ids.

Which beginning-of-sequence token goes in front of a text, and how a chat turn is written, is decided here.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch

from offramp.errors import InputError, ModelError
from offramp.kit.arguments import checked
from offramp.kit.given import Given, Kind, given_of
from offramp.kit.numbers import Whole
from offramp.models.checkpoint import fits_source, unfit_source
from offramp.models.conditioned import Condition, Conditioned, Encoding, SourceReader, own_model, under
from offramp.models.identity import ATTENTION, ModelIdentity, shown_name
from offramp.models.pictured import Pictured, picture_condition
from offramp.models.reading import encoding_of
from offramp.models.shape import ModelShape
from offramp.models.source import ModelFiles
from offramp.models.stack import ExitStack
from offramp.models.templates import OTHER_TEMPLATE, rendered
from offramp.models.tensors import precision_of
from offramp.models.tokenizing import token_ids, tokenizing

if TYPE_CHECKING:
    from offramp.models.streaming import StreamedLayers

# Model types whose output is garbage without BOS, whatever their tokenizer's setting says.
FAMILIES_THAT_NEED_BOS = ("gemma", "recurrent_gemma", "vaultgemma")

MOST_END_TOKENS = 1000

Messages = Sequence[Mapping[str, str]]
"""Turns of a conversation, each with a "role" and its "content"."""


class NoTokenizer:
    """In the place of a tokenizer where there is none: the model is given token ids."""

    bos_token_id = eos_token_id = pad_token_id = chat_template = None
    name_or_path = ""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """Refuse a text. Raises InputError."""
        raise InputError(
            "the model was wrapped without a tokenizer, so it reads no text",
            where=f"{text[:40]!r}",
            fix="give offramp.wrap(model, tokenizer), or token ids: offramp.workload_of(ids)",
        )

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The ids themselves, as a text."""
        return " ".join(str(int(token)) for token in ids)


@dataclass(frozen=True)
class BosPolicy:
    """What `encode` puts in front of a text."""

    source: Literal["tokenizer", "forced", "none"]
    """Where it comes from: "tokenizer" (which adds it by itself), "forced" (the family needs it and the
    tokenizer does not add it) or "none"."""
    token_id: int | None = None
    """The token, None for "none"."""
    further: tuple[int, ...] = ()
    """What stands behind it in front of every answer: a speech model's language and task."""

    @property
    def front(self) -> tuple[int, ...]:
        """All tokens in front of a text."""
        return () if self.token_id is None else (self.token_id, *self.further)


def find_bos_policy(tokenizer: Any, model_type: str) -> BosPolicy:
    """Look at what the tokenizer does to a short text, and force BOS for the families that need it."""
    if isinstance(tokenizer, NoTokenizer):
        return BosPolicy("none")
    bos = tokenizer.bos_token_id
    ids = token_ids(tokenizer, text="a")
    without = token_ids(tokenizer, text="a", add_special_tokens=False)
    if ids[:1] != without[:1]:
        return BosPolicy("tokenizer", ids[0])
    if bos is not None and model_type.startswith(FAMILIES_THAT_NEED_BOS):
        return BosPolicy("forced", int(bos))
    return BosPolicy("none")


def encode_text(tokenizer: Any, policy: BosPolicy, text: str, *, target: bool = False) -> list[int]:
    """Token ids of a text as `tokenizer(text)` gives them, with BOS in front if the policy forces it.

    target: it is what an encoder-decoder is to write, `tokenizer(text_target=text)`.
    """
    return _with_bos(policy, token_ids(tokenizer, **{"text_target" if target else "text": text}))


def encode_speech(tokenizer: Any, policy: BosPolicy, text: str) -> list[int]:
    """Token ids of what is said, as a speech model writes it: behind what it is asked for, which a tokenizer
    does not know, and a space, ended by the end token."""
    said = token_ids(tokenizer, text=f" {text.strip()}", add_special_tokens=False)
    return _with_bos(policy, [*said, tokenizer.eos_token_id])


def encode_chat(tokenizer: Any, policy: BosPolicy, prompt: str | Messages) -> list[int]:
    """Token ids of one user turn, or of a conversation, ready for the assistant's answer.

    With the tokenizer's chat template and its generation prompt; without a template, as plain turns
    ("User: ... Assistant:").

    Raises ModelError if the template cannot write the turns.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not all({"role", "content"} <= set(turn) for turn in messages):
        raise ModelError(
            "a turn of the conversation has no role, or no content",
            where=str(messages)[:60],
            fix='give {"role": "user", "content": "..."} for each turn',
        )
    if tokenizer.chat_template is None:
        turns = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages]
        return encode_text(tokenizer, policy, "\n".join([*turns, "Assistant:"]))
    text = rendered(tokenizer, messages, add_generation_prompt=True)
    *before, last = messages
    if not text or (
        str(last["content"]).strip() not in text  # written another way, or not at all
        and text == rendered(tokenizer, [*before, {**last, "content": "?"}], add_generation_prompt=True)
    ):
        raise ModelError(
            f"the model's chat template writes nothing of {'the last of ' * bool(text)}these turns",
            where=str(tokenizer.name_or_path),
            fix=OTHER_TEMPLATE,
        )
    return _with_bos(policy, token_ids(tokenizer, text=text, add_special_tokens=False))


def decode_text(tokenizer: Any, ids: Sequence[int], *, special: bool = True) -> str:
    """The text of token ids. special: whether special tokens are part of it."""
    with tokenizing(tokenizer):
        return str(
            tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        )


def _with_bos(policy: BosPolicy, ids: list[int]) -> list[int]:
    """Token ids with BOS in front if the policy forces it and it is not there."""
    front = list(policy.front)
    return [*front, *ids] if policy.source == "forced" and ids[: len(front)] != front else ids


def find_eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: the generation config's, the config's and the tokenizer's.

    Raises ModelError for an end token that is no number, and for more than MOST_END_TOKENS.
    """
    stated: list[Any] = [
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    ids: set[int] = set()
    for value in stated:
        tokens: list[Any] = [] if value is None else [value] if isinstance(value, (int, str)) else list(value)
        if len(tokens) > MOST_END_TOKENS:
            raise ModelError(
                f"the model names {len(tokens):,} end tokens, which is not what ends a text",
                where="eos_token_id in config.json or generation_config.json",
                fix=f"write the end token there, or a few ({MOST_END_TOKENS:,} at most)",
            )
        if not all(isinstance(token, int) for token in tokens):
            raise ModelError(
                f"the end token {value!r} of the model is not a token id",
                where="eos_token_id in config.json or generation_config.json",
                fix="write the token's number there",
            )
        ids.update(tokens)
    return tuple(sorted(ids))


_in_use: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


@contextmanager
def alone_with(*models: Any) -> Iterator[None]:
    """Transformers models that no other thread measures or decodes with meanwhile: it waits until they are
    free. Hooks, replaced layers and modes are of the whole model, whoever put them there.
    """
    owned = {id(own): own for own in map(own_model, models)}
    with contextlib.ExitStack() as held:
        for _, own in sorted(owned.items()):  # in one order, so that two threads never wait for each other
            held.enter_context(_in_use.setdefault(own, threading.RLock()))
        yield


@contextmanager
def evaluating(hf: Any) -> Iterator[None]:
    """Evaluation mode without gradients, mixed precision, and compiled code, which hooks are not seen in.

    One thread at a time is in it: others wait. Afterwards every module is as it was before. Flags are
    set one by one: some modules do more when their `train` is called.
    """
    with alone_with(hf):
        yield from _evaluating(hf)


def _evaluating(hf: Any) -> Iterator[None]:
    training = [module for module in hf.modules() if module.training]
    mixed = vars(hf).get("forward") if "_original_forward" in vars(hf) else None
    kind = next((weight.device.type for weight in hf.parameters() if not weight.is_meta), "cpu")
    compiled = {module: call for module in hf.modules() if (call := module._compiled_call_impl) is not None}
    try:
        for module in training:
            module.training = False
        for module in compiled:
            module._compiled_call_impl = None
        # accelerate puts a forward in mixed precision in the place of the model's own.
        if mixed is not None:
            hf.forward = hf._original_forward
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            yield
    finally:
        if mixed is not None:
            hf.forward = mixed
        for module in training:
            module.training = True
        for module, call in compiled.items():
            module._compiled_call_impl = call


def not_wrapped(given: Any) -> InputError:
    """The error for what is no model of offramp, such as transformers' own."""
    return InputError(
        f"a model cannot be a {type(given).__name__}",
        where="model=",
        fix="give offramp.wrap(model, tokenizer), or offramp.load_model(name)",
    )


Measuring = TypeVar("Measuring", bound=Callable[..., Any])


def in_evaluation(function: Measuring) -> Measuring:
    """A function of a model and more, run with all models that it is given in evaluation mode without
    gradients (see `Model.evaluating`)."""

    @functools.wraps(function)
    def run(model: Model, *arguments: Any, **options: Any) -> Any:
        if not isinstance(model, Model):
            raise not_wrapped(model)
        others = [given for given in (*arguments, *options.values()) if isinstance(given, Model)]
        with all_evaluating(model, *others):
            return function(model, *arguments, **options)

    return cast(Measuring, run)


@contextmanager
def all_evaluating(*models: Model) -> Iterator[None]:
    """Several models in evaluation mode; see `Model.evaluating`."""
    with alone_with(*(model.hf for model in models)), contextlib.ExitStack() as entered:
        for model in models:
            entered.enter_context(model.evaluating())
        yield


@dataclass(frozen=True)
class Model:
    """A causal language model, or an encoder-decoder's decoder, whose exits reproduce its own logits."""

    name: str
    """As given to `load_model` (the last part of a path)."""
    hf: Any
    """The transformers model, in eval mode and without gradients unless it was given as an object; of an
    encoder-decoder its decoder, of an image-text model one that holds what it is given
    (`offramp.models.conditioned.SourceReader`)."""
    tokenizer: Any
    stack: ExitStack
    shape: ModelShape
    identify: Callable[[], ModelIdentity]
    """Gives `identity`."""
    dtype: str
    """Of hidden states, "float32", "bfloat16" or "float16"."""
    bos_policy: BosPolicy
    context_length: int | None
    """Positions at most, None if the config states none."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer."""
    transforms: tuple[str, ...] = ()
    """What offramp did to it after loading, as texts, which is also part of its identity."""
    source: ModelFiles | None = None
    """What it was loaded from, before any transform; None if it was built in memory."""
    attention: str | None = None
    """The implementation that was asked for, or that an object has; None for the family's own."""
    streamed: StreamedLayers | None = None
    """None if all weights are in memory; else `hf` holds no weights of layers, which are read from here one
    at a time."""

    def __repr__(self) -> str:
        where = "" if self.streamed is None else ", layers on disk"
        return f"Model({self.shown_name}, {self.layers} layers, {self.dtype}{where})"

    @property
    def shown_name(self) -> str:
        """The name with what was done to the model after loading, for people: "smollm2 + int8"."""
        return shown_name(self.name, self.transforms)

    @property
    def identity(self) -> ModelIdentity:
        """Who it is now: of an object that was given, as its weights are at this moment."""
        return self.identify()

    @property
    def described(self) -> dict[str, Any]:
        """Its record, as traces and tuned policies keep it: name, dtype, who it is, where it comes from."""
        return {"name": self.shown_name, "dtype": self.dtype, **self.identity.to_json()}

    def with_identity(self, identity: ModelIdentity, **changes: Any) -> Model:
        """The same with what else was changed, known from now on as another."""
        return replace(self, identify=lambda: identity, transforms=identity.transforms, **changes)

    @property
    def precision(self) -> str:
        """What its products are rounded to: its dtype, or "bfloat16" with weights in few bits."""
        return str(precision_of(self.hf)).removeprefix("torch.") if self.transforms else self.dtype

    @property
    def layers(self) -> int:
        """L, the number of decoder layers and of exits."""
        return len(self.stack)

    @property
    def runs_own_code(self) -> bool:
        """Whether Python code that comes with the checkpoint runs: whoever loaded it trusts that."""
        return type(own_model(self.hf)).__module__.startswith("transformers_modules")

    @property
    def asked_attention(self) -> dict[str, str]:
        """What keys of results hold of it, since it changes last digits: nothing of the family's own."""
        return {} if self.attention is None else {ATTENTION: self.attention}

    @property
    def has_no_tokenizer(self) -> bool:
        """Whether it is given token ids alone."""
        return isinstance(self.tokenizer, NoTokenizer)

    @property
    def reads_sources(self) -> bool:
        """Whether it is an encoder-decoder, which is given a source beside the token ids of its answer."""
        return isinstance(self.hf, Conditioned)

    @property
    def reads(self) -> Kind | None:
        """What an encoder-decoder is given, text or sound; pictures, which an image-text model may be given;
        None for any other model."""
        return self.hf.reads if isinstance(self.hf, SourceReader) else None

    def front(self, given: Given | None = None) -> tuple[int, ...]:
        """The tokens in front of every text; of an answer about a picture, what was asked of it."""
        if isinstance(self.hf, Pictured) and given is not None:
            return self.hf.prompt(given)
        return self.bos_policy.front

    @contextmanager
    def given(self, documents: Iterable[object]) -> Iterator[None]:
        """Within it an encoder-decoder is a causal language model of its decoder, given what they carry; an
        image-text model takes prompts with their pictures.

        documents: whatever carries something given (`offramp.kit.given.given_of`): documents, contexts,
        sequences or prompts, one for each row of a batch in its order, or one for all rows. Inputs are
        encoded here, each once as long as its encoding is kept. Any other model stays as it is.

        Raises InputError for a document without a source where the model needs one, for one with what the
        model does not read, and as `encoding_of`.
        """
        inputs: list[Given | None] = []
        for document in documents:
            given = given_of(document)
            kind = None if given is None else given.kind
            if not fits_source(self.reads, kind):
                where = str(getattr(document, "id", "model.given(documents)"))
                raise unfit_source(self.shown_name, reads=self.reads, given=kind, where=where)
            inputs.append(given)
        if isinstance(self.hf, Pictured):
            seen = [None if given is None else self._encoding(given) for given in inputs]
            condition = picture_condition(seen, "model.given(documents)")
        else:
            encodings = tuple(self._encoding(given) for given in inputs if given is not None)
            condition = Condition(encodings) if encodings else None
        with under(self.hf, condition):
            yield

    def shape_given(self, documents: Iterable[object]) -> ModelShape:
        """The shape beside an encoder that read what these carry, each input once: its mean positions, or
        those of prompts with pictures. An image-text model that is given none has no encoder."""
        inputs = {given for given in map(given_of, documents) if given is not None}
        if self.shape.encoder is None or not inputs:
            return replace(self.shape, encoder=None) if isinstance(self.hf, Pictured) else self.shape
        encoder, made = self.shape.encoder, [self._encoding(given).positions for given in inputs]
        if isinstance(self.hf, Pictured) and encoder.picture_flops is not None:
            seen = math.fsum(made) / len(made) / self.hf.probe_places  # of larger pictures more is made
            encoder = replace(encoder, picture_flops=encoder.picture_flops * seen)
            made = [len(self.front(given)) for given in inputs]
        encoder = replace(encoder, positions=math.fsum(made) / len(made))
        return replace(self.shape, encoder=encoder)

    def _encoding(self, given: Given) -> Encoding:
        with evaluating(self.hf):
            return encoding_of(self.hf, self.tokenizer, given, self.shown_name)

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template, None if it has none."""
        template = self.tokenizer.chat_template
        return None if template is None else str(template)

    @property
    def uses_plain_chat_template(self) -> bool:
        """Whether `encode_chat` writes a plain turn because the model has no chat template."""
        return self.chat_template is None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients for a while, in one thread at a time; see `evaluating`.

        Raises ModelError where the weights of the output head are no longer those that were found.
        """
        weight, now = self.stack.head_weight, getattr(self.stack.head, "weight", None)
        if weight is not None and now is not None and weight.data_ptr() != now.data_ptr():
            raise ModelError(
                "the weights of the output head were replaced since the exits were found, or the model was "
                "copied",
                where=self.shown_name,
                fix="wrap the model again: offramp.wrap(model.hf, model.tokenizer)",
            )
        with evaluating(self.hf):
            yield

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

    @checked
    def encode(self, text: str, given: Given | None = None) -> list[int]:
        """Token ids as `tokenizer(text)` gives them, with BOS as `bos_policy` says; of an answer about a
        picture with what was asked of it in front.

        Raises ModelError if the text holds a token that the model has no embedding for.
        """
        if isinstance(self.hf, Pictured) and given is not None:
            return self._with_rows([*self.front(given), *self.hf.answer(given, text)])
        if self.reads == "audio":
            return self._with_rows(encode_speech(self.tokenizer, self.bos_policy, text))
        return self._with_rows(encode_text(self.tokenizer, self.bos_policy, text, target=self.reads_sources))

    @checked
    def encode_chat(self, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of one user turn, or of a conversation, with the generation prompt.

        See `uses_plain_chat_template`.
        """
        return self._with_rows(encode_chat(self.tokenizer, self.bos_policy, prompt))

    def _with_rows(self, ids: list[int]) -> list[int]:
        """The same ids, refused if one has no row in the embedding."""
        beyond = [token for token in ids if token >= self.shape.vocabulary_size]
        if beyond:
            added = getattr(self.tokenizer, "added_tokens_decoder", {}).get(beyond[0])
            special = added is not None and added.special
            raise ModelError(
                f"the text holds the {'special token' if special else 'token'} "
                f"{self.tokenizer.decode(beyond[:1])!r} (id {beyond[0]:,}) of the tokenizer, but the model's "
                f"embedding has {self.shape.vocabulary_size:,} rows",
                where=self.name,
                # Unused padding or unknown tokens beyond the embedding are common, others are not.
                fix="take that token out of the text"
                if special
                else "give the tokenizer that belongs to this model (this one may be another's), or resize "
                "the embedding",
            )
        return ids

    @checked
    def decode(self, ids: Sequence[Whole], *, special: bool = True) -> str:
        """The text of token ids. special: whether special tokens are part of it.

        Raises InputError for ids that are none.
        """
        return decode_text(self.tokenizer, ids, special=special)
