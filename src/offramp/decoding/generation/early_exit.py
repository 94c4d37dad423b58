"""Early exit inside transformers' own `generate`: what `custom_generate=` takes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.generation.loop import Loop, Plan, check_decodable
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.generation.transcript import Transcript
from offramp.decoding.options import (
    LOCKSTEP,
    Auto,
    DecodingOptions,
    HeadsSource,
    PolicySource,
)
from offramp.decoding.strategies.next_token import Chooser
from offramp.defaults import DRAFT_LENGTH
from offramp.errors import InputError
from offramp.kit.numbers import Copied
from offramp.models.model import alone_with
from offramp.models.pictured import FEATURES
from offramp.policies.names import BatchingName, DraftLength, StrategyName

ENCODED = "encoder_outputs"
KEPT_BACK = ("streamer", "assistant_model")
"""Arguments of transformers' `generate` that it does not hand to a custom loop."""


def given_to_generate() -> dict[str, Any]:
    """What transformers' `generate` was given but keeps from a custom loop, by KEPT_BACK.

    Empty if the loop was called by anything else. Warns if a transformers of another version hides them.
    """
    # Two frames up: the custom loop's caller. transformers 5.24 passes a callable only those arguments that
    # its own loop has not: neither of these.
    caller = sys._getframe(2)
    if not caller.f_globals.get("__name__", "").startswith("transformers."):
        return {}
    hidden = [name for name in KEPT_BACK if name not in caller.f_locals]
    if hidden:
        warnings.warn(
            f"this version of transformers does not tell whether {' or '.join(hidden)} was given to "
            "generate(): it is ignored; give a streamer to offramp.generate(streamer=...)",
            RuntimeWarning,
            stacklevel=4,
        )
    return {name: caller.f_locals.get(name) for name in KEPT_BACK}


def refuse_arguments(
    input_ids: Tensor,
    generation_config: Any,
    logits_processor: Any,
    kept_back: dict[str, Any],
    model_kwargs: dict[str, Any],
    synced_gpus: bool,
    own: bool = False,
) -> None:
    """Raise InputError for arguments of transformers' `generate` that early exit cannot honour.

    own: it was called by `offramp.generate`.
    """
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor
    from transformers.generation.configuration_utils import GenerationMode

    config, cache = generation_config, model_kwargs.get("cache")
    mode = config.get_generation_mode(kept_back.get("assistant_model"))
    wanted = {
        f"{mode.value.replace('_', ' ')}": mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE),
        "an assistant model": kept_back.get("assistant_model") is not None,
        "inputs_embeds": input_ids.shape[1] == 0 or "inputs_embeds" in model_kwargs,
        "use_cache=False": config.use_cache is False,
        "a cache implementation": config.cache_implementation is not None,
        "a cache of one's own": getattr(cache, "_is_user_defined", False),
        "output_attentions": config.output_attentions,
        "output_hidden_states": config.output_hidden_states,
        "output_logits": config.output_logits,
        "negative prompts and guidance": any(
            isinstance(process, UnbatchedClassifierFreeGuidanceLogitsProcessor)
            for process in logits_processor
        ),
        "several processes in step": synced_gpus,
        **{f"the argument {name}": True for name in model_kwargs if not _is_honoured(name, model_kwargs)},
    }
    for what, is_wanted in wanted.items():
        if is_wanted:
            raise InputError(
                f"early exit cannot honour {what}",
                where="generation_config.json, or an option"
                if own
                else "model.generate(custom_generate=...)",
                fix="leave it out"
                if own
                else "leave it out, also in generation_config.json, or generate without custom_generate",
            )
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is not None and not torch.equal(positions, _positions(input_ids, mask)):
        raise InputError(
            "early exit cannot honour position_ids of one's own",
            where="model.generate(custom_generate=...)",
            fix="leave them out; positions follow from attention_mask",
        )


def _of_decoder(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of an encoder-decoder's arguments those of its decoder, as a causal language model is given them: what
    the encoder read, or of pictures was seen, an engine has (`offramp.models.conditioned`)."""
    model_kwargs = {name: value for name, value in model_kwargs.items() if name != FEATURES}
    if ENCODED not in model_kwargs:
        return model_kwargs
    kept = {name: value for name, value in model_kwargs.items() if name not in (ENCODED, "attention_mask")}
    return {name.removeprefix("decoder_"): value for name, value in kept.items()}


_HONOURED = frozenset({"attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep"})


def _is_honoured(name: str, model_kwargs: dict[str, Any]) -> bool:
    """Whether an argument makes no difference or one that is made: tokenizers add types that are all 0,
    transformers to image-text models that no picture was seen."""
    return (
        name in _HONOURED
        or (name == "token_type_ids" and not model_kwargs[name].any())
        or (name == FEATURES and not model_kwargs[name])
    )


def _positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    counted = torch.ones_like(ids) if mask is None else mask
    return (counted.cumsum(1) - 1).clamp(min=0)


@dataclass(eq=False, repr=False)
class EarlyExit:
    """Decodes in the place of transformers' own loop: `model.generate(..., custom_generate=this)`.

    transformers prepares everything, processors and stopping rules included, and is given back what its own
    loop would give: int64 [batch, length], or `GenerateDecoderOnlyOutput` with `return_dict_in_generate`.
    """

    options: DecodingOptions
    _: KW_ONLY
    engine: Engine | None = None
    forced: Tensor | None = None
    """int64 [batch, new], fed instead of what is chosen."""
    timing: bool = False
    streamer: Any = None
    """For callers that hand theirs over, since transformers does not."""
    decode: Callable[[list[int]], str] = lambda tokens: ""
    before: Callable[[Engine], None] = lambda engine: None
    random: torch.Generator | None = None
    """Where samples come from, None for torch's global generator."""
    held: bool = False
    """The loop is made and not run, and the prompt comes back alone; `loop` is the one of the last call."""
    last: BatchGeneration | None = field(init=False, default=None)
    """The whole result of the last call that ended, None before."""
    started: bool = field(init=False, default=False)
    loop: Loop | None = field(init=False, default=None)

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Generate as transformers' `_sample` does; arguments and result are the same.

        Raises InputError for arguments that early exit cannot honour.
        """
        self.last = None
        # With an engine of its own it is called by `offramp.generate`, which hands over all that there is.
        kept_back = {} if self.engine is not None else given_to_generate()
        if self.engine is not None:
            model_kwargs = _of_decoder(model_kwargs)
        refuse_arguments(
            *(input_ids, generation_config, logits_processor, kept_back, model_kwargs, synced_gpus),
            own=self.engine is not None,
        )
        engine = self.engine or engine_of(model)
        self.before(engine)
        # Looked at once: what has no padding then is nothing that every step would have to be asked for.
        mask = model_kwargs.get("attention_mask")
        mask = None if mask is None or bool(mask.all()) else mask
        limit = int(generation_config.max_length) - input_ids.shape[1]
        with alone_with(model):
            check_decodable(
                engine,
                self.options,
                batch=len(input_ids),
                padded=mask is not None,
                processors=logits_processor,
            )
        answers = Transcript(
            input_ids,
            stops=stopping_criteria if self.forced is None else _at_length(input_ids.shape[1] + limit),
            pad=_pad_of(generation_config, stopping_criteria),
            streamer=self.streamer or streamer or kept_back.get("streamer"),
            keep_scores=bool(generation_config.return_dict_in_generate and generation_config.output_scores),
        )
        chooser = Chooser(
            logits_processor,
            prompt=input_ids.shape[1],
            sampling=bool(generation_config.do_sample),
            forced=self.forced,
            random=self.random,
        )
        plan = self._plan(engine, limit, generation_config)
        self.started = True
        self.loop = Loop(plan, answers, mask, chooser)
        if self.held:
            return input_ids
        with alone_with(model):
            self.last = self.loop.run()
        answers.end()
        return _as_transformers(answers, generation_config)

    def _plan(self, engine: Engine, limit: int, generation_config: Any) -> Plan:
        options, ends = self.options, generation_config._eos_token_tensor
        policy = options.policy
        return Plan(
            engine=engine,
            options=options,
            reader=ExitReader(
                engine,
                options.heads,
                policy.needs(engine.layers),
                policy.final_facts,
                short_list=policy.short_list,
            ),
            limit=limit,
            end_tokens=frozenset() if ends is None else frozenset(ends.tolist()),
            decode=self.decode,
            timing=self.timing,
        )


def early_exit(
    policy: PolicySource,
    *,
    kv: StrategyName | None = None,
    heads: HeadsSource = None,
    draft_length: DraftLength | Auto = DRAFT_LENGTH,
    lookup: Copied = 0,
    batching: BatchingName = LOCKSTEP,
    task: str | None = None,
) -> EarlyExit:
    """Early exit for `model.generate(**inputs, custom_generate=offramp.early_exit(policy))`.

    All arguments are those of `offramp.generate`; processors, stopping rules, sampling and streamers are
    transformers' own. `.last` of what is returned is the `BatchGeneration` of the last call: exits, executed
    layers, timings. Its texts are empty: transformers' model has no tokenizer. Whether a tuned policy is of
    this very model is not checked, since transformers' model has no fingerprint; `offramp.generate` does.

    Raises PolicyError and InputError as `offramp.generate` does.

    >>> inputs = tokenizer(["The sea was"], return_tensors="pt")
    >>> early = offramp.early_exit("static:exit=2")
    >>> ids = hf_model.generate(**inputs, custom_generate=early, max_new_tokens=4)
    >>> early.last.rows[0].exits
    array([4, 2, 2, 2])
    """
    options = DecodingOptions.read(
        policy, kv=kv, heads=heads, draft_length=draft_length, lookup=lookup, batching=batching
    ).for_task(task)
    return EarlyExit(options, before=lambda engine: options.check_tuned_heads(engine.layers))


def _pad_of(generation_config: Any, stopping_criteria: Any) -> int | None:
    """The token after a row's end; None if rows go on, as transformers lets them without an end token."""
    if not any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
        return None
    return int(generation_config._pad_token_tensor)


def _at_length(length: int) -> Callable[[Tensor, Any], Tensor]:
    def stops(ids: Tensor, scores: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= length, dtype=torch.bool, device=ids.device)

    return stops


def _as_transformers(answers: Transcript, generation_config: Any) -> Any:
    if not generation_config.return_dict_in_generate:
        return answers.ids
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    output: Any = GenerateDecoderOnlyOutput
    return output(sequences=answers.ids, scores=None if answers.scores is None else tuple(answers.scores))
