"""Early exit inside transformers' own `generate`: what `custom_generate=` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Engine
from offramp.decoding.generation.answers import Answers
from offramp.decoding.generation.arguments import given_to_generate, refuse_arguments
from offramp.decoding.generation.binding import (
    HeadsSource,
    PolicySource,
    check_policy,
    check_tuned_heads,
    read_heads_source,
    read_policy_source,
    strategy_of,
    warn_of_strategy,
)
from offramp.decoding.generation.choosing import Chooser
from offramp.decoding.generation.loop import Loop, Plan
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.reading.exits import ExitReader
from offramp.decoding.strategies.draft_length import check_draft_length
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.decoding.strategies.state_maps import StateMaps
from offramp.decoding.strategies.strategy import Request
from offramp.errors import InputError, PolicyError
from offramp.policies.batching import BATCHINGS
from offramp.policies.policy import ExitPolicy
from offramp.policies.signals import suggest
from offramp.tracing.exit_heads import ExitHeads


@dataclass(frozen=True)
class Options:
    """How to decode; see `offramp.generate`."""

    policy: ExitPolicy
    kv: str = "propagate"
    heads: ExitHeads | None = None
    draft_length: int | str = 4
    batching: str = "lockstep"

    def __post_init__(self) -> None:
        """Raise PolicyError for an unknown strategy or batching, InputError for an impossible draft."""
        if self.kv not in STRATEGIES:
            raise PolicyError(
                f"unknown strategy {self.kv!r} for K and V", where="kv=", fix=suggest(self.kv, STRATEGIES)
            )
        if self.batching not in BATCHINGS:
            raise PolicyError(
                f"unknown batching {self.batching!r}",
                where="batching=",
                fix=suggest(self.batching, BATCHINGS),
            )
        check_draft_length(self.draft_length)

    def check(self, engine: Engine, request: Request) -> None:
        """Refuse what the family or the strategy cannot do, before anything runs.

        Raises PolicyError for the policy, InputError for the rest.
        """
        check_policy(self.policy, engine.layers, self.heads)
        STRATEGIES[self.kv].check(request)
        wanted = ["never_exit", *([self.kv] if self.policy.needs(engine.layers) else [])]
        if request.batch > 1 or request.padded:
            wanted.append("lockstep")
        if request.batch > 1 and self.batching == "rebatch":
            wanted.append("rebatch")
        for ability in wanted:
            reason = getattr(engine.abilities, ability)
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
        options: Options,
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
            policy=self.options.policy,
            layers=engine.layers,
            batch=len(input_ids),
            batching=self.options.batching,
            draft_length=self.options.draft_length,
            sampling=bool(generation_config.do_sample),
            processors=tuple(logits_processor),
            forced=self._forced is not None,
            padded=mask is not None and not bool(mask.all()),
            heads=self.options.heads,
            dtype=engine.dtype,
        )
        self.options.check(engine, request)
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
            sampling=request.sampling,
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
            policy=policy,
            reader=ExitReader(
                engine,
                options.heads,
                policy.needs(engine.layers),
                policy.final_facts,
                short_list=policy.short_list,
            ),
            strategy=STRATEGIES[options.kv],
            batching=options.batching,
            draft_length=options.draft_length,
            limit=limit,
            end_tokens=frozenset() if ends is None else frozenset(ends.tolist()),
            decode=self._decode,
            timing=self._timing,
            maps=StateMaps.of(options.heads, engine.layers, engine.stack.device),
        )


def early_exit(
    policy: PolicySource,
    *,
    kv: str | None = None,
    heads: HeadsSource = None,
    draft_length: int | str = 4,
    batching: str = "lockstep",
    task: str | None = None,
) -> EarlyExit:
    """Early exit for `model.generate(**inputs, custom_generate=offramp.early_exit(policy))`.

    All arguments are those of `offramp.generate`; processors, stopping rules, sampling and streamers are
    transformers' own. `.last` of what is returned is the `BatchGeneration` of the last call: exits, executed
    layers, timings. Its texts are empty: transformers' model has no tokenizer. Whether a tuned policy is of
    this very model is not checked, since transformers' model has no fingerprint; `offramp.generate` does.

    Raises PolicyError and InputError as `offramp.generate` does.
    """
    decides, tuned = read_policy_source(policy)
    own = decides.for_task(task)
    fitted = read_heads_source(heads, tuned)

    def check(engine: Engine) -> None:
        if tuned is not None:
            check_tuned_heads(tuned, own, fitted, engine.layers, options.kv)

    options = Options(own, strategy_of(kv, tuned), fitted, draft_length, batching)
    warn_of_strategy(options.kv, tuned)
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
