"""The registry of contenders: every way to decode that a policy is timed beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.options import DecodingOptions
from offramp.defaults import SHORTLIST
from offramp.errors import OfframpError
from offramp.models.calls import UNFIT_ERRORS
from offramp.policies.kv import STRATEGIES
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.short_list import with_short_head
from offramp.timing.accelerations import Parts
from offramp.timing.decoder import (
    Candidates,
    Decode,
    DecodedBatch,
    Decoder,
    LoopRunning,
    PlainRunning,
    Running,
    Setting,
    generate,
    layers_of_draft,
    left_out,
    own_config,
    plain_config,
)
from offramp.timing.results import A_A, LOOKUP, NO_TIME, SHORT_LIST, Contender

NEVER = "never exit"
GENERATE, STATIC_CACHE = "generate()", "generate(static cache)"
ONE_CALL = "generate() in one call"
"""The other two take its steps one by one, so that they can take turns."""

DECODINGS_OF_A_TRIAL = 2
"""A warm-up, and what is counted."""
DRAFT_LENGTHS = (1, 2, 4)
LOOKUP_LENGTHS = (2, 5, 10)
SEARCHED_TOKENS = 16

FAILURES = (OfframpError, *UNFIT_ERRORS)
"""What a decoder that does not fit a model or a batch raises."""


Source = Callable[[Setting], Candidates]


def policies(setting: Setting) -> Candidates:
    """Every cell, in our loop."""
    for place, cell in enumerate(setting.cells):
        exits = cell.policy.needs(setting.model.layers)
        lossless = STRATEGIES[cell.kv].lossless or not (exits or cell.policy.short_head)
        decoder = _in_our_loop(cell.name, "policy", setting, cell)
        yield replace(
            decoder,
            output_must_match=setting.exact and lossless,
            required=not place,
            short_list=cell.policy.short_list,
            full_depth=cell.policy.full_depth,
        )


CUT_HEAD = with_short_head(Never())
"""The policy of the full model with its output head cut to the short list."""


def _cut_head(setting: Setting) -> Candidates:
    """The full model with its output head cut to the short list, unless that is a policy here."""
    cell = replace(setting.main.full_model, policy=CUT_HEAD)
    policies = [other.policy for other in setting.cells]
    if CUT_HEAD in policies:
        return
    listed = SHORTLIST if cell.heads is None or cell.heads.shortlist is None else len(cell.heads.shortlist)
    if listed >= setting.model.shape.vocabulary_size and not any(policy.short_list for policy in policies):
        why_not = "the short list holds the whole vocabulary"
        yield left_out(str(CUT_HEAD), SHORT_LIST, why_not, full_depth=True)
        return
    decoder = _in_our_loop(str(CUT_HEAD), SHORT_LIST, setting, cell)
    yield replace(decoder, short_list=True, full_depth=True)


def _never_exit(setting: Setting) -> Candidates:
    """The full model in our loop."""
    decoder = _in_our_loop(NEVER, "plain", setting, setting.main.full_model)
    yield replace(decoder, output_must_match=setting.exact, required=True)


def _dynamic_cache(setting: Setting) -> Candidates:
    """The steps of plain `generate()`."""
    start = partial(PlainRunning, setting.model)
    yield Decoder(GENERATE, "plain", start, output_must_match=setting.exact)


def _static_cache(setting: Setting) -> Candidates:
    """The steps of `generate()` with a cache of fixed size, not compiled."""
    yield Decoder(STATIC_CACHE, "plain", partial(PlainRunning, setting.model, cache_implementation="static"))


def _one_call(setting: Setting) -> Candidates:
    """Plain `generate()` itself: by definition the full model's output."""
    yield Decoder(
        ONE_CALL, "plain", whole=_all_layers(setting), output_must_match=setting.exact, required=True
    )


def again(decoder: Decoder) -> Decoder:
    """The same a second time: whatever differs from the first is noise, or a defect of the timing."""
    return replace(decoder, name=f"{decoder.name} again", role=A_A, note=None, repeats=decoder.name)


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
    found = _at_best(
        setting,
        LOOKUP,
        LOOKUP_LENGTHS,
        lambda length: _in_library(setting, prompt_lookup_num_tokens=length),
    )
    for candidate in found:
        yield replace(candidate, full_depth=True)


@dataclass(frozen=True)
class Entry:
    """One way to decode that policies are timed beside. A further one is a line of `CONTENDERS`."""

    name: str
    """By which an `Extent` invites it."""
    make: Source
    """Its contenders in a setting, or why it has none."""
    trials: Callable[[Setting], int] | None = None
    """Short decodings that making it takes, to find its best draft length: it waits until others were tried
    out, and is left out where that would take too long. None for none."""
    belongs: Callable[[Setting], bool] = lambda setting: False
    """Whether it belongs beside the policies of a setting, whoever is invited."""


CUT, ASSISTANT = "cut head", "early-exit assistant"
DYNAMIC, STATIC, WHOLE = "dynamic cache", "static cache", "one call"

CONTENDERS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            CUT,
            _cut_head,
            belongs=lambda setting: any(cell.policy.short_list for cell in setting.cells),
        ),
        Entry(NEVER, _never_exit),
        Entry(DYNAMIC, _dynamic_cache),
        Entry(STATIC, _static_cache),
        Entry(WHOLE, _one_call),
        Entry(
            ASSISTANT,
            _early_exit_assistant,
            lambda setting: len(setting.cells) * (len(DRAFT_LENGTHS) + DECODINGS_OF_A_TRIAL),
        ),
        Entry(LOOKUP, _prompt_lookup, lambda setting: len(LOOKUP_LENGTHS) + DECODINGS_OF_A_TRIAL),
    )
}

PLAIN_DECODERS = (NEVER, DYNAMIC, STATIC, WHOLE)
"""Decoders of the full model; the fastest is what every other one is held against."""
PEERS = (ASSISTANT, LOOKUP)
"""What users would pick instead."""


@dataclass(frozen=True)
class Extent:
    """Who takes part beside the policies, and how it begins."""

    invited: tuple[str, ...] = (*PLAIN_DECODERS, *PEERS)
    """Names of `CONTENDERS`."""
    plain: str | None = None
    """The plain decoder that all are held against, None for the fastest."""
    warm_up_tokens: int = 2
    """Decoded by each before anything is counted."""
    beside: tuple[Parts, ...] = ()
    """What a user allows besides: combinations of accelerations without exits, some on another model."""
    races: bool = False
    """Whether what has no exits is timed only until it is shown to be slower than another such."""
    slower: Mapping[str, str] = field(default_factory=dict)
    """What has no exits and was shown before to be slower than another such: the faster by the slower one."""


WITHOUT_PEERS = Extent(PLAIN_DECODERS)
BASELINES_ALONE = Extent((NEVER, WHOLE, LOOKUP), races=True)
"""What baselines are timed beside before anything else is."""
SHORT = Extent((CUT, NEVER, DYNAMIC, WHOLE, LOOKUP), races=True)
"""What a verdict and forecasts need: whatever is without exits."""


def plain_decoders(setting: Setting) -> Candidates:
    """Those of the full model, or why they cannot be tried."""
    for name in PLAIN_DECODERS:
        yield from CONTENDERS[name].make(setting)


def candidates_of(setting: Setting, extent: Extent) -> Candidates:
    """Policies, and those of `CONTENDERS` that need no search, or why they cannot be tried."""
    yield from policies(setting)
    for entry in CONTENDERS.values():
        if entry.trials is None and (entry.name in extent.invited or entry.belongs(setting)):
            for candidate in entry.make(setting):
                faster = extent.slower.get(candidate.name)
                yield candidate if faster is None else _slower(candidate.name, candidate.role, faster)


def searched_of(setting: Setting, extent: Extent, seconds: float, most: float) -> Candidates:
    """Those that are searched for their best draft length, or that there was no time for that.

    seconds: that a short decoding takes, about. most: that all of it may take.
    """
    trials = {
        entry.name: entry.trials(setting)
        for entry in CONTENDERS.values()
        if entry.trials is not None and entry.name in extent.invited
    }
    for name in trials:
        if name in extent.slower:
            yield _slower(name, "peer", extent.slower[name])
        elif seconds * sum(trials.values()) > most:
            yield left_out(name, "peer", NO_TIME)
        else:
            yield from CONTENDERS[name].make(setting)


def _slower(name: str, role: str, faster: str) -> Contender:
    return left_out(name, role, f"slower than {faster}, beside which it was timed before", full_depth=True)


def why(error: Exception) -> str:
    """What made a contender fail, in one line."""
    what = error.what if isinstance(error, OfframpError) else f"{type(error).__name__}: {error}"
    return " ".join(what.split())


def _in_our_loop(name: str, role: str, setting: Setting, cell: DecodingOptions) -> Decoder:
    """Decoding with a policy."""

    def start(prompts: PromptBatch, new_tokens: int) -> Running:
        return LoopRunning(setting.model, prompts, replace(cell, new_tokens=new_tokens))

    return Decoder(name, role, start)


def decode_timed(setting: Setting, cell: DecodingOptions, prompts: PromptBatch) -> BatchGeneration:
    """One decoding of a batch of prompts with a policy that splits its seconds into parts."""
    configured = own_config(setting.model.hf, plain_config(setting.new_tokens))
    with configured, setting.model.given(prompts.given):
        return generate_batch(
            setting.model,
            prompts.ids,
            prompts.mask,
            cell,
            eos_token_id=None,
            timing=True,
        )


def _in_library(setting: Setting, **keywords: Any) -> Decode:
    """`generate()`, which says nothing of the layers that it runs."""
    return lambda prompts, new_tokens: generate(setting.model, prompts, new_tokens, **keywords)


def _all_layers(setting: Setting) -> Decode:
    """`generate()` that claims to run every layer once for each token that it is fed."""

    def decode(prompts: PromptBatch, new_tokens: int) -> DecodedBatch:
        rows, positions = prompts.ids.shape
        layers = rows * (positions + new_tokens - 1) * setting.model.layers
        return replace(generate(setting.model, prompts, new_tokens), claimed_layers=layers)

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
    note = f"{name}: drafts of {best}, the fastest of {tried} in a trial"
    yield Decoder(name, "peer", whole=make(best), note=note)


def seconds_in_trial(setting: Setting, decode: Decode) -> float:
    """Seconds per token in a short run on the first prompts."""
    return decode(setting.prompts[0], searched_tokens(setting)).seconds_per_token


def searched_tokens(setting: Setting) -> int:
    """New tokens of a short run."""
    return min(setting.new_tokens, SEARCHED_TOKENS)
