"""Generating text with a policy that decides, token by token, after how many layers to stop."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.early_exit import EarlyExit
from offramp.decoding.generation.loop import Loop, explain_out_of_memory
from offramp.decoding.generation.prompts import (
    Prompt,
    PromptBatch,
    check_context,
    check_ids,
    check_sampling,
    pad_token,
    prompt_batch,
    token_rows,
)
from offramp.decoding.generation.result import BatchGeneration, Decode, Generation
from offramp.decoding.options import (
    LOCKSTEP,
    Auto,
    DecodingOptions,
    HeadsSource,
    PolicySource,
    check_policy,
)
from offramp.defaults import DRAFT_LENGTH, NEW_TOKENS
from offramp.errors import InputError
from offramp.kit.given import Given
from offramp.kit.numbers import Copied, Count, Whole
from offramp.kit.picture import given_pictures
from offramp.kit.sound import given_sound
from offramp.models.model import Model, decode_text, in_evaluation
from offramp.policies.names import BatchingName, DraftLength, StrategyName
from offramp.policies.rules.fixed import Never

FULL_MODEL = DecodingOptions(Never())

_NOT_HERE = {
    "num_beams": "beam search has no exits of its own",
    "assistant_model": 'drafts come from the model itself: kv="speculate"',
    "prompt_lookup_num_tokens": "it drafts from the prompt instead of from exits",
    "negative_prompt_ids": "it runs the full model beside",
    "guidance_scale": "it runs the full model beside",
    "custom_generate": "this is one already",
    "inputs_embeds": "give token ids",
    "inputs": "give prompt=",
    "input_ids": "give prompt=",
    "attention_mask": "several prompts are padded here; generate_batch takes a mask",
    "cache": "the cache is made here",
    "past_key_values": "the cache is made here",
    "use_cache": "decoding without a cache is not possible",
    "cache_implementation": "the cache is the model's own dynamic one",
    "num_return_sequences": "give the prompt several times",
    "return_dict_in_generate": "use model.hf.generate(custom_generate=offramp.early_exit(policy))",
    "output_scores": "use model.hf.generate(custom_generate=offramp.early_exit(policy))",
    "output_logits": "they are not kept",
    "output_attentions": "they are not kept",
    "output_hidden_states": "they are not kept",
    "max_length": "give max_new_tokens",
}


@in_evaluation
def generate(
    model: Model,
    prompt: Prompt = "",
    *,
    source: str | Sequence[str] | None = None,
    audio: str | Path | Sequence[str | Path] | None = None,
    image: str | Path | Sequence[str | Path] | None = None,
    policy: PolicySource = None,
    kv: StrategyName | None = None,
    heads: HeadsSource = None,
    max_new_tokens: Count = NEW_TOKENS,
    force_tokens: Sequence[Any] | Tensor | None = None,
    chat: bool = False,
    draft_length: DraftLength | Auto = DRAFT_LENGTH,
    lookup: Copied = 0,
    seed: Whole | None = None,
    batching: BatchingName = LOCKSTEP,
    task: str | None = None,
    timing: bool = False,
    streamer: Any = None,
    **sampling: Any,
) -> Generation | list[Generation]:
    """Text that follows a prompt, each token from the exit that a policy chooses; skipped layers do not run.

    prompt: a text, token ids, int64 [1, length], or several of them (padded on the left). A text is encoded
    as `tokenizer(text)`, with chat=True as one user turn of the chat template. The prompt runs all layers, so
    that the first new token leaves at exit L.
    source: what an encoder-decoder reads, a text or several, in the place of prompts. audio: the same of a
    speech model, WAV files. image: of an image-text model, the file of a picture that the prompt asks about,
    or several, each with a prompt of its own or all with one.
    policy: a policy, its text, the path of a policy.json, a tuned policy, or None for the full model; task:
    the workload class, for policies that hold one per class.
    kv: what becomes of skipped layers' K and V (`offramp.decoding.strategies.registry.STRATEGIES`); None: as
    a tuned policy was tuned, "propagate" for any other. Warns where a tuned policy gets another one.
    heads: exit heads, or the path of their file, that exits below L are read through. batching: "lockstep"
    (all rows leave together, at the deepest of their exits) or "rebatch" (each leaves at its own).
    draft_length: tokens drafted before a verification, at most, or "auto" ("speculate").
    lookup: tokens at most that are copied from the text so far where it repeats itself (prompt lookup), and
    verified by all layers at once before the policy is asked; with kv "recompute", one prompt at a time.
    max_new_tokens: at most; a row ends with the model's end token, which is included.
    force_tokens: [new] or [batch, new] token ids that are fed instead of the chosen ones, all of them
    whatever they say, so that the policy's decisions can be held against a replay of the same text.
    sampling: options of transformers' `generate` (temperature, top_k, top_p, repetition_penalty,
    stopping_criteria, ...). Greedy unless do_sample=True or an option is given that only sampling has;
    temperature=0 is greedy too.
    seed: of the samples; the global random state is left alone. streamer: transformers' own; one with a
    method `put_exits` is given the exits of the tokens, int64 [batch], just before `put`.
    timing: split seconds into parts, which costs a little time.

    Returns one Generation for one prompt, a list of them for a list. A non-finite logit ends the generation
    with a warning; `Generation.problem` says where, and what came before is returned.

    Raises InputError (PolicyError among them) before anything runs: a policy that is unknown, does not fit
    the model, was tuned for another model or other heads, or is an oracle; a strategy that the family or the
    policy cannot have; an empty prompt, or one too long for the context; options that contradict each other.
    OfframpError if memory runs out, with what would fit.

    >>> answer = offramp.generate(model, "The sea was", policy="static:exit=2", max_new_tokens=4)
    >>> answer.exits  # the prompt runs whole, so that the first new token leaves at the last layer
    array([4, 2, 2, 2])
    """
    sampling = read_sampling(sampling)
    given, single = _given(source, audio, image, prompt)
    prompts = prompt_batch(model, "" if image is not None else prompt, chat=chat, given=given, single=single)
    forced = _forced(model, force_tokens, prompts, sampling)
    options = DecodingOptions.read(
        policy,
        kv=kv,
        heads=heads,
        draft_length=draft_length,
        lookup=lookup,
        batching=batching,
        new_tokens=max_new_tokens if forced is None else forced.shape[1],
    ).for_task(task)
    with model.given(prompts.given) if given else contextlib.nullcontext():
        result = generate_batch(
            model,
            prompts.ids,
            prompts.mask,
            options,
            force_tokens=forced,
            seed=seed,
            timing=timing,
            streamer=streamer,
            **sampling,
        )
    return result.rows[0] if prompts.single else list(result.rows)


def _given(source: Any, audio: Any, image: Any, prompt: Prompt) -> tuple[list[Given], bool]:
    """What a model is given beside token ids, and whether it is one thing. Raises InputError for several
    kinds, and for pictures without a text that asks of each."""
    asked = {"source": source, "audio": audio, "image": image}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return [], False
    if len(asked) > 1:
        where = " and ".join(f"{name}=" for name in asked)
        raise InputError("a text, a sound or a picture is given", where=where, fix="give one of these")
    ((name, value),) = asked.items()
    single = isinstance(value, str | Path)
    values = [value] if single else list(value)
    if name != "image":
        return [(Given if name == "source" else given_sound)(each) for each in values], single
    prompts = [prompt] * len(values) if isinstance(prompt, str) else list(prompt)
    return given_pictures(values, prompts, "prompt="), single


def generate_batch(
    model: Model,
    ids: Tensor,
    mask: Tensor | None = None,
    options: DecodingOptions = FULL_MODEL,
    *,
    force_tokens: Tensor | None = None,
    seed: int | None = None,
    timing: bool = False,
    streamer: Any = None,
    **sampling: Any,
) -> BatchGeneration:
    """`generate` for int64 [batch, length] and what the whole batch ran; see there for everything else.

    mask: int64 [batch, length], 0 for padding on the left; None without any. options: by default the full
    model. force_tokens: int64 [batch, new].
    """
    options.check_model(model)
    sampling = read_sampling(sampling)
    _refuse_options(sampling)
    check_sampling(sampling)
    check_streamer(streamer)
    check_context(model, ids.shape[1], options.new_tokens)
    early = EarlyExit(
        options,
        engine=engine_of(model),
        forced=force_tokens,
        timing=timing,
        streamer=streamer,
        decode=decoder_of(model),
        random=_random(seed, model),
    )
    prepared = _prepared(model, ids, mask, options.new_tokens, sampling)
    with explain_out_of_memory(model, ids, options.new_tokens):
        try:
            model.hf.generate(ids, custom_generate=early, streamer=streamer, **prepared)
        except (ValueError, TypeError) as error:
            if early.started:
                raise
            raise InputError(
                str(error), where="generate()", fix="see transformers' options of generate"
            ) from error
    assert early.last is not None  # transformers calls what it is given
    for row in early.last.rows:
        if row.problem is not None:
            warnings.warn(f"the generation stopped: {row.problem}", RuntimeWarning, stacklevel=3)
    return early.last


def hold_batch(model: Model, ids: Tensor, mask: Tensor | None, options: DecodingOptions) -> Loop:
    """The loop that `generate_batch` would run, for a caller that takes its steps one by one.

    Greedy, of exactly so many new tokens, whatever end tokens come. Everything else as there.

    Raises what `generate_batch` raises before anything runs.
    """
    check_policy(options.policy, model.layers, options.heads)
    check_context(model, ids.shape[1], options.new_tokens)
    early = EarlyExit(options, engine=engine_of(model), decode=decoder_of(model), held=True)
    prepared = _prepared(model, ids, mask, options.new_tokens, {"eos_token_id": None})
    model.hf.generate(ids, custom_generate=early, **prepared)
    assert early.loop is not None  # transformers calls what it is given
    return early.loop


def decoder_of(model: Model) -> Decode:
    """Token ids to text with the tokenizer alone: a result that is kept does not keep the weights."""
    return partial(decode_text, model.tokenizer)


def _prepared(
    model: Model, ids: Tensor, mask: Tensor | None, new_tokens: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of transformers' `generate`."""
    samples = any(sampling.get(name) is not None for name in SAMPLES)
    prepared = {
        "attention_mask": torch.ones_like(ids) if mask is None else mask,
        "max_new_tokens": new_tokens,
        "do_sample": samples,
        "pad_token_id": pad_token(model),
        **sampling,
    }
    if model.hf.generation_config.eos_token_id is None and model.eos_token_ids:
        prepared.setdefault("eos_token_id", list(model.eos_token_ids))
    if prepared.get("stop_strings") is not None:
        prepared["stopping_criteria"] = _with_stop_strings(model, prepared)
    return prepared


def _with_stop_strings(model: Model, prepared: dict[str, Any]) -> Any:
    """The stopping criteria with one for strings, which transformers needs a tokenizer for."""
    from transformers import StoppingCriteriaList, StopStringCriteria

    strings = prepared.pop("stop_strings")
    criteria = prepared.get("stopping_criteria") or []
    return StoppingCriteriaList([*criteria, StopStringCriteria(model.tokenizer, strings)])


def _refuse_options(sampling: dict[str, Any]) -> None:
    for name, reason in _NOT_HERE.items():
        value = sampling.get(name)
        if value is not None and not (name in ("num_beams", "num_return_sequences") and value == 1):
            raise InputError(f"{name} is not possible here: {reason}", where=f"{name}=", fix="leave it out")


def _forced(
    model: Model, tokens: Sequence[Any] | Tensor | None, prompts: PromptBatch, sampling: dict[str, Any]
) -> Tensor | None:
    """Forced tokens as int64 [batch, new]. Raises InputError unless they fit the prompts and the model."""
    if tokens is None:
        return None
    where = "force_tokens="
    if sampling.get("do_sample") or any(sampling.get(name) is not None for name in SAMPLES):
        raise InputError(
            "tokens that are forced cannot be sampled", where=where, fix="leave the options of sampling out"
        )
    rows = token_rows(tokens, where)
    batch = len(prompts.ids)
    if len(rows) != batch or len({len(row) for row in rows}) != 1 or not rows[0]:
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})} tokens"
        raise InputError(
            f"the forced tokens are {shape}, for {batch} prompts",
            where=where,
            fix="give each prompt the same number of tokens, at least one",
        )
    for row in rows:
        check_ids(row, model.shape.vocabulary_size, where)
    return torch.tensor(rows, device=prompts.ids.device)


def _random(seed: int | None, model: Model) -> torch.Generator | None:
    """Random numbers of a seed that no other generation takes any of; None for torch's global ones."""
    return None if seed is None else torch.Generator(model.hf.device).manual_seed(seed)


SAMPLES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that only mean something for sampling; giving one asks for it."""


def read_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sampling as they are meant: numpy's numbers are Python's, and at a temperature of 0 the most
    probable token is taken."""
    options = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()
    }
    temperature = options.get("temperature")
    if isinstance(temperature, bool) or temperature != 0:
        return dict(options)
    return {name: value for name, value in options.items() if name not in (*SAMPLES, "do_sample")}


def check_streamer(streamer: Any) -> None:
    """Raise InputError for what is no streamer of transformers."""
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise InputError(
            f"streamer cannot be {type(streamer).__name__} {streamer!r}",
            where="streamer=",
            fix="give one of transformers' (it has put and end)",
        )
