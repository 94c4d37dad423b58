"""Early exit inside transformers' own `generate`: what `custom_generate=` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.compatibility import (
    HeadsSource,
    PolicySource,
    check_policy,
    check_tuned_heads,
)
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.generation.arguments import given_to_generate, refuse_arguments
from offramp.decoding.generation.loop import Loop, Plan
from offramp.decoding.generation.next_token import Chooser
from offramp.decoding.generation.result import Answers, BatchGeneration
from offramp.decoding.options import LOCKSTEP, DecodingOptions
from offramp.decoding.strategies.draft_length import Auto
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.decoding.strategies.strategy import Request
from offramp.errors import InputError
from offramp.policies.steps import BATCHINGS, DRAFT_LENGTH


def check_decodable(
    engine: Engine, options: DecodingOptions, request: Request | None = None, *, batch: int = 1
) -> None:
    """Refuse what the family or the strategy cannot do, before anything runs.

    request: None for `batch` texts, padded if they are several.

    Raises PolicyError for the policy, InputError for the rest.
    """
    request = request or Request(options, engine.layers, engine.dtype, batch, padded=batch > 1)
    check_policy(options.policy, engine.layers, options.heads)
    STRATEGIES[options.kv].check(request)
    wanted = ["never_exit", *([options.kv] if options.policy.needs(engine.layers) else [])]
    if request.batch > 1 or request.padded:
        wanted.append("lockstep")
    if request.batch > 1 and options.batching == "rebatch":
        wanted.append("rebatch")
    for ability in wanted:
        reason = engine.abilities.reason(ability)
        if reason is not None:
            raise InputError(
                f"{type(engine.hf).__name__} cannot decode this way ({ability}): {reason}",
                where="batching=" if ability in BATCHINGS else "kv=",
                fix="choose another strategy, or decode one prompt at a time; see docs/families.md",
            )


class EarlyExit:
    """Decodes in the place of transformers' own loop: `model.generate(..., custom_generate=this)`.

    transformers prepares everything, processors and stopping rules included, and is given back what its own
    loop would give: int64 [batch, length], or `GenerateDecoderOnlyOutput` with `return_dict_in_generate`.
    last: the whole result of the last call that ended, None before. forced: int64 [batch, new], fed instead
    of what is chosen. streamer: for callers that hand theirs over, since transformers does not. random: where
    samples come from, None for torch's global generator. held: the loop is made and not run, and the prompt
    comes back alone; `loop` is the one of the last call.
    """

    def __init__(
        self,
        options: DecodingOptions,
        *,
        engine: Engine | None = None,
        forced: Tensor | None = None,
        timing: bool = False,
        streamer: Any = None,
        decode: Callable[[list[int]], str] | None = None,
        before: Callable[[Engine], None] | None = None,
        random: torch.Generator | None = None,
        held: bool = False,
    ) -> None:
        self.options = options
        self.last: BatchGeneration | None = None
        self.started = False
        self._engine = engine
        self._forced = forced
        self._timing = timing
        self._streamer = streamer
        self._decode = decode or (lambda tokens: "")
        self._before = before
        self._random = random
        self._held = held
        self.loop: Loop | None = None

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
        given = {} if self._engine is not None else given_to_generate()
        refuse_arguments(input_ids, generation_config, logits_processor, given, model_kwargs, synced_gpus)
        engine = self._engine or engine_of(model)
        if self._before is not None:
            self._before(engine)
        mask = model_kwargs.get("attention_mask")
        limit = int(generation_config.max_length) - input_ids.shape[1]
        request = Request(
            options=self.options,
            layers=engine.layers,
            dtype=engine.dtype,
            batch=len(input_ids),
            processors=tuple(logits_processor),
            padded=mask is not None and not bool(mask.all()),
        )
        check_decodable(engine, self.options, request)
        answers = Answers(
            input_ids,
            stops=stopping_criteria if self._forced is None else _at_length(input_ids.shape[1] + limit),
            pad=_pad_of(generation_config, stopping_criteria),
            streamer=self._streamer or streamer or given.get("streamer"),
            keep_scores=bool(generation_config.return_dict_in_generate and generation_config.output_scores),
        )
        chooser = Chooser(
            logits_processor,
            prompt=input_ids.shape[1],
            sampling=bool(generation_config.do_sample),
            forced=self._forced,
            random=self._random,
        )
        plan = self._plan(engine, limit, generation_config)
        self.started = True
        self.loop = Loop(plan, answers, mask, chooser)
        if self._held:
            return input_ids
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
            decode=self._decode,
            timing=self._timing,
        )


def early_exit(
    policy: PolicySource,
    *,
    kv: str | None = None,
    heads: HeadsSource = None,
    draft_length: int | str | Auto = DRAFT_LENGTH,
    batching: str = LOCKSTEP,
    task: str | None = None,
) -> EarlyExit:
    """Early exit for `model.generate(**inputs, custom_generate=offramp.early_exit(policy))`.

    All arguments are those of `offramp.generate`; processors, stopping rules, sampling and streamers are
    transformers' own. `.last` of what is returned is the `BatchGeneration` of the last call: exits, executed
    layers, timings. Its texts are empty: transformers' model has no tokenizer. Whether a tuned policy is of
    this very model is not checked, since transformers' model has no fingerprint; `offramp.generate` does.

    Raises PolicyError and InputError as `offramp.generate` does.
    """
    options = DecodingOptions.read(
        policy, kv=kv, heads=heads, draft_length=draft_length, batching=batching
    ).for_task(task)

    def check(engine: Engine) -> None:
        if options.tuned is not None:
            check_tuned_heads(options.tuned, options.policy, options.heads, engine.layers, options.kv)

    return EarlyExit(options, before=check)


def _pad_of(generation_config: Any, stopping_criteria: Any) -> int | None:
    """The token after a row's end; None if rows go on, as transformers lets them without an end token."""
    if not any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
        return None
    return int(generation_config._pad_token_tensor)


def _at_length(length: int) -> Callable[[Tensor, Any], Tensor]:
    def stops(ids: Tensor, scores: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= length, dtype=torch.bool, device=ids.device)

    return stops


def _as_transformers(answers: Answers, generation_config: Any) -> Any:
    if not generation_config.return_dict_in_generate:
        return answers.ids
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    output: Any = GenerateDecoderOnlyOutput
    return output(sequences=answers.ids, scores=None if answers.scores is None else tuple(answers.scores))
