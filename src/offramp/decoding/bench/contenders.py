"""The registry of contenders: every way to decode that a policy is timed beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from offramp.decoding.bench.entrant import Candidates, Decode, Decoded, Entrant, PromptBatch, left_out
from offramp.decoding.bench.generating import (
    FirstTokens,
    generate,
    layers_of_draft,
    own_config,
    plain_config,
)
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.errors import OfframpError
from offramp.models.discovery import UNFIT_ERRORS
from offramp.models.model import Model
from offramp.policies.policy import ExitPolicy
from offramp.tracing.exit_heads import ExitHeads

NEVER, NEVER_AGAIN = "never exit", "never exit again"
GENERATE, STATIC_CACHE = "generate()", "generate(static cache)"

DRAFT_LENGTHS = (1, 2, 4)
LOOKUP_LENGTHS = (2, 5, 10)
SEARCHED_TOKENS, SEARCH_REPEATS = 24, 2

FAILURES = (OfframpError, *UNFIT_ERRORS)
"""What a decoder that does not fit a model or a batch raises."""


@dataclass(frozen=True)
class Cell:
    """A policy with the strategy for K and V that it decodes with."""

    policy: ExitPolicy
    kv: str = "propagate"

    @property
    def name(self) -> str:
        """As shown."""
        return f"{self.policy} ({self.kv})"


@dataclass(frozen=True)
class Setting:
    """What all contenders of a run share.

    prompts: by batch. cells: the policies, the main one first. distinct: how many prompts there are; the last
    batch is filled up with them.
    """

    model: Model
    prompts: tuple[PromptBatch, ...]
    new_tokens: int
    cells: tuple[Cell, ...]
    heads: ExitHeads | None = None
    batching: str = "lockstep"
    draft_length: int | str = 4
    task: str | None = None
    distinct: int = 1

    @property
    def exact(self) -> bool:
        """Whether lossless decoders must give the full model's tokens: only float32 tells ties apart."""
        return self.model.dtype == "float32"


Source = Callable[[Setting], Candidates]


def policies(setting: Setting) -> Candidates:
    """Every cell, in our loop."""
    for place, cell in enumerate(setting.cells):
        exits = cell.policy.needs(setting.model.layers)
        lossless = STRATEGIES[cell.kv].lossless or not (exits or cell.policy.short_head)
        yield Entrant(
            cell.name, "policy", _in_our_loop(setting, cell), setting.exact and lossless, required=not place
        )


def _never_exit(setting: Setting) -> Candidates:
    """The full model in our loop."""
    yield Entrant(NEVER, "plain", _in_our_loop(setting, None), setting.exact, required=True)


def _dynamic_cache(setting: Setting) -> Candidates:
    """Plain `generate()`: by definition the full model's output."""
    yield Entrant(GENERATE, "plain", _in_library(setting, full=True), setting.exact, required=True)


def _static_cache(setting: Setting) -> Candidates:
    """`generate()` with a cache of fixed size, not compiled."""
    yield Entrant(STATIC_CACHE, "plain", _in_library(setting, full=True, cache_implementation="static"))


def again(setting: Setting) -> Candidates:
    """The never-exit loop a second time: whatever differs from the first is noise."""
    yield Entrant(NEVER_AGAIN, "a/a", _in_our_loop(setting, None), setting.exact, required=True)


def _early_exit_assistant(setting: Setting) -> Candidates:
    """`generate(assistant_early_exit=k)` at the deepest exit of each policy, at its best draft length.

    Left out where the model runs other layers than the first k.
    """
    deepest = {max(cell.policy.needs(setting.model.layers), default=0) for cell in setting.cells}
    for exit in sorted(deepest - {0}):
        name = f"generate(assistant_early_exit={exit})"
        try:
            run = layers_of_draft(setting.model, setting.prompts[0].ids[:1], exit)
        except FAILURES as error:
            yield left_out(name, "peer", why(error))
            continue
        if run == exit:
            yield from _at_best(setting, name, DRAFT_LENGTHS, partial(_assisted, setting, exit))
        else:
            ignored = (
                f"this family ignores num_hidden_layers: it runs {run} layers where {exit} are asked for"
            )
            yield left_out(name, "peer", ignored)


def _prompt_lookup(setting: Setting) -> Candidates:
    """`generate(prompt_lookup_num_tokens=n)` at its best n: drafts copied from the prompt, no exit at all."""
    yield from _at_best(
        setting,
        "generate(prompt_lookup_num_tokens)",
        LOOKUP_LENGTHS,
        lambda length: _in_library(setting, prompt_lookup_num_tokens=length),
    )


PLAIN: dict[str, Source] = {
    "never exit": _never_exit,
    "dynamic cache": _dynamic_cache,
    "static cache": _static_cache,
}
"""Decoders of the full model; the fastest is what every speedup is held against."""

PEERS: dict[str, Source] = {"early-exit assistant": _early_exit_assistant, "prompt lookup": _prompt_lookup}
"""What users would pick instead."""


@dataclass(frozen=True)
class Extent:
    """Who takes part beside the policies and the plain decoders, and how much is decoded untimed.

    peers: what users would pick instead, searched for their best draft length. static_cache: `generate()`
    with one. untimed_batches: of prompts, that every contender decodes while its layers are counted; None for
    all. warm_up_tokens: decoded by each before that.
    """

    peers: bool = True
    static_cache: bool = True
    untimed_batches: int | None = None
    warm_up_tokens: int = 24


SHORT = Extent(peers=False, static_cache=False, untimed_batches=1, warm_up_tokens=4)
"""What intervals and a verdict need, and no more."""


def candidates_of(setting: Setting, extent: Extent) -> Candidates:
    """All that take part in a run, and those that cannot."""
    plain = [source for source in PLAIN.values() if extent.static_cache or source is not _static_cache]
    sources = [policies, *plain, again, *(PEERS.values() if extent.peers else ())]
    for source in sources:
        yield from source(setting)


def why(error: Exception) -> str:
    """What made a contender fail, in one line."""
    what = error.what if isinstance(error, OfframpError) else f"{type(error).__name__}: {error}"
    return " ".join(what.split())


def _in_our_loop(setting: Setting, cell: Cell | None) -> Decode:
    """Decoding with a policy, or the full model without one."""

    def decode(prompts: PromptBatch, new_tokens: int) -> Decoded:
        first = FirstTokens()
        started = time.perf_counter()
        ran = _generate_batch(setting, cell, prompts, new_tokens, streamer=first)
        tokens = tuple(tuple(row.tokens) for row in ran.rows)
        ended = time.perf_counter()
        problems = [row.problem for row in ran.rows if row.problem is not None]
        if problems:
            raise OfframpError(problems[0], where=setting.model.name, fix="leave this policy or prompt out")
        return Decoded(
            tokens=tokens,
            first_seconds=first.at - started,
            seconds=ended - first.at,
            first_tokens=first.count,
            claimed_layers=ran.layers_executed,
            record=ran,
        )

    return decode


def decode_timed(setting: Setting, cell: Cell, prompts: PromptBatch) -> BatchGeneration:
    """One decoding of a batch of prompts with a policy that splits its seconds into parts."""
    return _generate_batch(setting, cell, prompts, setting.new_tokens, timing=True)


def _generate_batch(
    setting: Setting, cell: Cell | None, prompts: PromptBatch, new_tokens: int, **options: Any
) -> BatchGeneration:
    with own_config(setting.model.hf, plain_config(new_tokens)):
        return generate_batch(
            setting.model,
            prompts.ids,
            prompts.mask,
            policy=None if cell is None else cell.policy,
            kv="propagate" if cell is None else cell.kv,
            heads=setting.heads,
            max_new_tokens=new_tokens,
            draft_length=setting.draft_length,
            batching=setting.batching,
            task=setting.task,
            eos_token_id=None,
            **options,
        )


def _in_library(setting: Setting, *, full: bool = False, **keywords: Any) -> Decode:
    """`generate()`. full: it claims to run every layer once for each token that it is fed."""

    def decode(prompts: PromptBatch, new_tokens: int) -> Decoded:
        found = generate(setting.model, prompts, new_tokens, **keywords)
        if not full:
            return found
        rows, positions = prompts.ids.shape
        return found.claiming(rows * (positions + new_tokens - 1) * setting.model.layers)

    return decode


def _assisted(setting: Setting, exit: int, length: int) -> Decode:
    drafts = {
        "num_assistant_tokens": length,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    return _in_library(setting, config=drafts, assistant_early_exit=exit)


def _at_best(
    setting: Setting, name: str, lengths: Sequence[int], make: Callable[[int], Decode]
) -> Candidates:
    """The decoder with the draft length that was fastest in a short run."""
    tokens = searched_tokens(setting)
    fitting = [length for length in lengths if length + 1 < tokens] or [min(lengths)]
    try:
        seconds = {length: seconds_in_trial(setting, make(length)) for length in fitting}
    except FAILURES as error:
        yield left_out(name, "peer", why(error))
        return
    best = min(seconds, key=lambda length: seconds[length])
    tried = ", ".join(map(str, fitting))
    yield Entrant(
        name, "peer", make(best), note=f"{name}: drafts of {best}, the fastest of {tried} in a trial"
    )


def seconds_in_trial(setting: Setting, decode: Decode) -> float:
    """Seconds per token in a short run on the first prompts, the better of a few."""
    tokens = searched_tokens(setting)
    return min(decode(setting.prompts[0], tokens).seconds_per_token for _ in range(SEARCH_REPEATS))


def searched_tokens(setting: Setting) -> int:
    """New tokens of a short run."""
    return min(setting.new_tokens, SEARCHED_TOKENS)
