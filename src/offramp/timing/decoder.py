"""Who takes part in a timing: a way to decode prompts, at a stretch or in steps, and what a decoding gave."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.generation.generate import hold_batch
from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, ModelError, OfframpError
from offramp.models.calls import UNFIT_ERRORS, first_tensor
from offramp.models.conditioned import own_model, probing
from offramp.models.devices import synchronise
from offramp.models.model import Model
from offramp.models.process import with_most_threads
from offramp.models.stack import ExitStack
from offramp.timing.results import PLAIN, Contender
from offramp.tracing.plan import cannot_generate

PADDING = 0


def batches_of(
    prompts: Sequence[Sequence[int]], batch: int, device: torch.device | str = "cpu"
) -> tuple[PromptBatch, ...]:
    """The prompts in order, `batch` at a time; the last batch is filled up from the first prompts.

    Raises InputError without prompts, or for an empty one.
    """
    if not prompts:
        raise InputError("there are no prompts", where="prompts", fix="give at least one")
    for place, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(
                f"prompt {place} has no tokens", where="prompts", fix="give every prompt a token or more"
            )
    groups = math.ceil(len(prompts) / batch)
    filled = [prompts[place % len(prompts)] for place in range(groups * batch)]
    return tuple(
        PromptBatch.of(filled[place : place + batch], PADDING, device)
        for place in range(0, len(filled), batch)
    )


@dataclass(frozen=True)
class DecodedBatch:
    """What decoding one batch of prompts gave."""

    tokens: tuple[tuple[int, ...], ...]
    """The new tokens of each row."""
    first_seconds: float
    """Until the first new tokens were out."""
    seconds: float
    """From then to the end."""
    first_tokens: int = 1
    """Of a row; an assisted first step gives several."""
    claimed_layers: int | None = None
    """Rows times layers that it says it ran, the prompt's included; None where it says nothing."""
    record: Any = None
    """The decoder's own record, None if it keeps none."""
    blocks: tuple[float, ...] = ()
    """Seconds per new token (of all rows together) of each block of steps that it took, in order; empty if it
    decoded at a stretch."""

    @property
    def seconds_per_token(self) -> float:
        """Seconds per new token of all rows, those out at first left apart.

        Raises ModelError if all of them were.
        """
        if self.first_tokens >= len(self.tokens[0]):
            raise ModelError(
                f"all {self.first_tokens} new tokens came at once: there is no time of a token",
                where="generate()",
                fix="ask for more new tokens",
            )
        return self.seconds / (len(self.tokens) * (len(self.tokens[0]) - self.first_tokens))


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model: Model
    prompts: tuple[PromptBatch, ...]
    """By batch."""
    cells: tuple[DecodingOptions, ...]
    """How each policy decodes, the main one first."""
    task: str | None = None
    """The prompts' workload."""
    distinct: int = 1
    """How many prompts there are; the last batch is filled up with them."""

    @property
    def main(self) -> DecodingOptions:
        """How the main policy decodes; heads, batching, drafts and new tokens are those of all."""
        return self.cells[0]

    @property
    def new_tokens(self) -> int:
        """After each prompt."""
        return self.main.new_tokens

    @property
    def batch(self) -> int:
        """Sequences decoded side by side."""
        return len(self.prompts[0].ids)

    @property
    def exact(self) -> bool:
        """Whether lossless decoders must give the full model's tokens: only float32 tells ties apart."""
        return self.model.precision == "float32"


Decode = Callable[[PromptBatch, int], DecodedBatch]
"""Decodes so many new tokens after each prompt, greedily, whatever end tokens come."""


class Running(ABC):
    """One decoding under way, which stands still between two steps. The prompt has run."""

    @property
    @abstractmethod
    def count(self) -> int:
        """New tokens of each row so far."""

    @abstractmethod
    def step(self) -> None:
        """Decode a token of each row, or several. Raises OfframpError if nothing sound comes of it."""

    @abstractmethod
    def finish(self, first_seconds: float, seconds: float) -> DecodedBatch:
        """What came of it in so many seconds, once all new tokens are there."""


Start = Callable[[PromptBatch, int], Running]
"""Runs the prompts, to decode so many new tokens after each in steps, greedily, whatever end tokens come."""


class Stepping:
    """A decoding that stands still between two blocks of tokens, and the seconds that it took so far."""

    def __init__(self, start: Start, prompts: PromptBatch, new_tokens: int) -> None:
        self._prompts, self._new_tokens = prompts, new_tokens
        self.blocks: list[float] = []
        """Seconds per token of each."""
        self._seconds = 0.0
        wait_for(prompts)
        started = time.perf_counter()
        with with_most_threads():
            self._running = start(prompts, new_tokens)
        wait_for(prompts)
        self._first_seconds = time.perf_counter() - started

    @property
    def over(self) -> bool:
        """Whether all new tokens are there."""
        return self._running.count >= self._new_tokens

    def take(self, block: int) -> None:
        """So many tokens or, where a step gives several, some more; a rest too short for a block as well."""
        first = self._running.count
        until = first + block
        if self._new_tokens - until < block / 2:
            until = self._new_tokens
        wait_for(self._prompts)
        started = time.perf_counter()
        while self._running.count < until:
            self._running.step()
        wait_for(self._prompts)
        seconds = time.perf_counter() - started
        self._seconds += seconds
        self.blocks.append(seconds / ((self._running.count - first) * len(self._prompts.ids)))

    def finish(self) -> DecodedBatch:
        """What came of it."""
        decoded = self._running.finish(self._first_seconds, self._seconds)
        return replace(decoded, blocks=tuple(self.blocks))


@dataclass(frozen=True)
class Decoder:
    """One way to decode: name, role and output_must_match as in `offramp.timing.results.Contender`."""

    name: str
    role: str
    start: Start | None = None
    """In steps, None where that is not possible."""
    whole: Decode | None = None
    """At a stretch, for those."""
    output_must_match: bool = False
    required: bool = False
    """Whether nothing can be measured without it; others are left out where they fail."""
    note: str | None = None
    """What must be said of it beside its figures."""
    short_list: bool = False
    """Whether its early outputs are read off the short list."""
    full_depth: bool = False
    """Whether it runs every layer for every token."""
    repeats: str | None = None
    """The name of the decoder that it is a second time, None for most."""
    on: Setting | None = None
    """The same prompts on another model that it decodes with, None for that of all."""
    own_plain: str | None = None
    """The plain decoder of that model, whose output is what it must give, by name."""

    @property
    def without_exits(self) -> bool:
        """As a contender's."""
        return self.role == PLAIN or self.full_depth

    @property
    def exact(self) -> bool:
        """Whether what it writes is the full model's, but for ties."""
        return self.role == PLAIN or (self.full_depth and not self.short_list and self.on is None)

    def decode(self, prompts: PromptBatch, new_tokens: int) -> DecodedBatch:
        """So many new tokens after each prompt, one after the other. Raises what the decoder raises."""
        if self.start is None:
            assert self.whole is not None  # one of both is given
            return self.whole(prompts, new_tokens)
        stepping = Stepping(self.start, prompts, new_tokens)
        if not stepping.over:
            stepping.take(new_tokens)
        return stepping.finish()


def wait_for(prompts: PromptBatch) -> None:
    """Until the accelerator that the prompts are on has done all that it was told."""
    synchronise(prompts.ids.device)


Price = Callable[[Decoder, DecodedBatch], float | None]
"""Of a token of what a decoding ran, None where that has no price."""

Candidates = Iterator[Decoder | Contender]
"""Contenders that take part, and those that are left out, with their reasons."""


def parted(candidates: Iterable[Decoder | Contender]) -> tuple[list[Decoder], list[Contender]]:
    """Those that take part, and those that are left out."""
    both = list(candidates)
    return (
        [candidate for candidate in both if isinstance(candidate, Decoder)],
        [candidate for candidate in both if isinstance(candidate, Contender)],
    )


def left_out(name: str, role: str, why: str, *, full_depth: bool = False) -> Contender:
    """A contender that is not timed."""
    return Contender(name, role, left_out=why, full_depth=full_depth)


class LayerCount:
    """Executions counted by hooks.

    calls: how often each layer ran, in order. rows: rows (sequences times positions) times layers.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._places: dict[nn.Module, list[int]] = {}
        for place, layer in enumerate(stack.layers):
            self._places.setdefault(layer, []).append(place)
        self.calls = [0] * len(stack)
        self.rows = 0

    def _ran(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        # A layer that stands at several places (shared weights) counts for the first of them.
        self.calls[self._places[layer][0]] += 1
        shape = first_tensor(output).shape
        self.rows += shape[0] * shape[1]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every layer; removed whatever happens."""
        handles = [layer.register_forward_hook(self._ran) for layer in self._places]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


GREW = "_previous_max_cache_length"
"""What `generate()` remembers on a model of the last static cache: later ones would be as long."""


class FirstTokens:
    """A streamer that notes when the first new tokens came, and how many each row got."""

    def __init__(self) -> None:
        self.at = 0.0
        self.count = 0
        self._prompt_seen = False

    def put(self, tokens: Tensor) -> None:
        """The prompt, then new tokens: [batch], or [1, new] from an assisted step."""
        if self._prompt_seen and not self.count:
            self.at = time.perf_counter()
            self.count = tokens.shape[-1] if tokens.ndim > 1 else 1
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is left to say."""


def generate(
    model: Model,
    prompts: PromptBatch,
    new_tokens: int,
    *,
    config: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> DecodedBatch:
    """Greedy `generate()` of exactly so many new tokens.

    config: further entries of the model's generation config meanwhile. keywords: further ones of `generate`.

    Raises ModelError if it gives fewer, and whatever transformers raises.
    """
    first = FirstTokens()
    configured = own_config(model.hf, plain_config(new_tokens, **(config or {})))
    with torch.no_grad(), configured, model.given(prompts.given):
        wait_for(prompts)
        started = time.perf_counter()
        ids = model.hf.generate(prompts.ids, attention_mask=prompts.mask, streamer=first, **keywords)
        tokens = ids[:, prompts.ids.shape[1] :].tolist()
        ended = time.perf_counter()
    if any(len(row) != new_tokens for row in tokens) or not first.count:
        raise ModelError(
            f"generate() gave {len(tokens[0])} new tokens where {new_tokens} were asked for",
            where=model.name,
            fix="report it with the model and the prompt",
        )
    return DecodedBatch(
        tokens=tuple(map(tuple, tokens)),
        first_seconds=first.at - started,
        seconds=ended - first.at,
        first_tokens=first.count,
    )


def generate_repeatedly(
    model: Model, prompt: Sequence[int], *, new_tokens: int, repeats: int
) -> list[DecodedBatch]:
    """Plain `generate()` of one prompt, timed, after one warm-up.

    new_tokens: after the first one, which comes with the prompt. A model with a short context gets a shorter
    prompt, and fewer new tokens if that does not suffice.

    Raises ModelError if transformers cannot generate with this model.
    """
    model.require_loaded("decoding")
    room = (model.context_length or len(prompt) + new_tokens + 1) - 1
    new_tokens = max(1, min(new_tokens, room - 1))
    batch = PromptBatch.of([list(prompt)[: max(1, room - new_tokens)]], PADDING, model.hf.device)
    batch = replace(batch, given=())  # any source will do
    try:
        with probing(model.hf):
            generate(model, batch, 2)
            return [generate(model, batch, new_tokens + 1) for _ in range(repeats)]
    except UNFIT_ERRORS as error:
        raise cannot_generate(model, error) from error


def plain_config(new_tokens: int, **entries: Any) -> Any:
    """A generation config that is greedy, stops at no end token and has no processors; further entries."""
    from transformers import GenerationConfig

    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=PADDING,
        **{"disable_compile": True, **entries},
    )


@torch.no_grad()
def layers_of_draft(model: Model, ids: Tensor, exit: int) -> int:
    """How many layers run when the model is told, as `assistant_early_exit` does, that it has `exit` of them.

    ids: int64 [1, positions]. Many families ignore it and run all.
    """
    count = LayerCount(model.stack)
    with own_config(model.hf, model.hf.generation_config), count.attached(), probing(model.hf):
        setattr(_base(model.hf).config, LAYER_COUNT, exit)
        model.hf(input_ids=ids, use_cache=False)
    return sum(count.calls)


LAYER_COUNT = "num_hidden_layers"
"""What `generate()` sets of a config for its drafts."""


def _base(hf: Any) -> Any:
    """Where `generate()` sets the number of layers of its drafts."""
    return getattr(hf, hf.base_model_prefix, hf)


@contextmanager
def own_config(hf: Any, config: Any) -> Iterator[None]:
    """The generation config of a model replaced, and put back with all that `generate()` may leave changed.

    `generate` fills what a given config leaves open from the model's own, so that one is replaced; the draft
    length of `assistant_early_exit` is read from nowhere else. While it drafts, `generate` sets the model's
    number of layers, and leaves it so if drafting fails.
    """
    before = hf.generation_config
    base = _base(hf)
    layers, grew = getattr(base.config, LAYER_COUNT, None), hf.__dict__.get(GREW)
    hf.generation_config = config
    try:
        yield
    finally:
        hf.generation_config = before
        if layers is not None:
            setattr(base.config, LAYER_COUNT, layers)
        else:  # it may be set where a family states it elsewhere
            base.config.__dict__.pop(LAYER_COUNT, None)
        hf.__dict__.pop(GREW, None)
        if grew is not None:
            hf.__dict__[GREW] = grew


class LoopRunning(Running):
    """The loop that policies decode with. Raises what `hold_batch` raises."""

    def __init__(self, model: Model, prompts: PromptBatch, options: DecodingOptions) -> None:
        self._model = model
        with own_config(model.hf, plain_config(options.new_tokens)), model.given(prompts.given):
            self._loop = hold_batch(model, prompts.ids, prompts.mask, options)
        self._steps = self._loop.steps()
        self.step()

    @property
    def count(self) -> int:
        """New tokens of each row so far."""
        return self._loop.new_tokens

    def step(self) -> None:
        """One step of the strategy for K and V."""
        if next(self._steps, None) is None:
            problem = next(iter(self._loop.problems.values()), "the generation ended early")
            raise OfframpError(problem, where=self._model.name, fix="leave this policy or prompt out")

    def finish(self, first_seconds: float, seconds: float) -> DecodedBatch:
        """The loop's own record, and what it says that it ran."""
        for _ in self._steps:  # the last one lets go of the cache
            pass
        record = self._loop.result()
        return DecodedBatch(
            tuple(tuple(row.tokens) for row in record.rows),
            first_seconds,
            seconds,
            claimed_layers=record.layers_executed,
            record=record,
        )


class PlainRunning(Running):
    """Plain greedy decoding, a forward of the whole model for each token.

    Everything is prepared by `generate()` itself, its cache included; a step is what its own greedy loop does
    for a token, without stopping rules and streamers, of which there are none; as there, the host learns of
    every token before it goes on.
    """

    def __init__(self, model: Model, prompts: PromptBatch, new_tokens: int, **keywords: Any) -> None:
        self._model, self._prompt, self._rows = model, prompts.ids.shape[1], len(prompts.ids)
        self._ids = prompts.ids
        self._given: Mapping[str, Any] = {}
        self._process: Any = None
        configured = own_config(model.hf, plain_config(new_tokens))
        with torch.no_grad(), configured, model.given(prompts.given):
            model.hf.generate(
                prompts.ids, attention_mask=prompts.mask, custom_generate=self._take, **keywords
            )
        self._advance(first=True)

    def _take(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """What transformers calls in the place of its own loop; see `_sample` there."""
        self._given, self._process = model_kwargs, logits_processor
        return input_ids

    @property
    def count(self) -> int:
        """New tokens of each row so far."""
        return self._ids.shape[1] - self._prompt

    def step(self) -> None:
        """One forward of the newest token."""
        self._advance(first=False)

    @torch.no_grad()
    def _advance(self, *, first: bool) -> None:
        hf = own_model(self._model.hf)
        inputs = hf.prepare_inputs_for_generation(
            self._ids, next_sequence_length=None if first else 1, is_first_iteration=first, **self._given
        )
        outputs = hf(**inputs, return_dict=True)
        self._given = hf._update_model_kwargs_for_generation(
            outputs, self._given, is_encoder_decoder=self._model.reads_sources
        )
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        chosen = self._process(self._ids, logits).argmax(-1)
        self._ids = torch.cat([self._ids, chosen[:, None]], dim=-1)
        synchronise(self._ids.device)

    def finish(self, first_seconds: float, seconds: float) -> DecodedBatch:
        """Every layer ran once for each token that was fed; the last one never is."""
        fed = self._ids.shape[1] - 1
        tokens = self._ids[:, self._prompt :].tolist()
        self._given = {}
        return DecodedBatch(
            tuple(map(tuple, tokens)),
            first_seconds,
            seconds,
            claimed_layers=self._rows * fed * self._model.layers,
        )
