"""Given tokens, each with its probability under the exit that a policy chooses for its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.generation.early_exit import check_decodable
from offramp.decoding.generation.loop import STRATEGIES, describe_problem, explain_out_of_memory
from offramp.decoding.generation.next_token import Chooser, NonFiniteLogits, require_whole
from offramp.decoding.generation.prompts import check_ids, prompt_entropy
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.strategy import Gear, PolicyDriver, Strategy
from offramp.errors import InputError, OfframpError, PolicyError
from offramp.models.devices import float64_device
from offramp.models.model import Model
from offramp.policies.cost_breakdown import Usage


@dataclass(frozen=True)
class ScoredContinuation:
    """A continuation as it was predicted, token by token.

    logprobs: float64 [tokens], log-probability in nats of each token, under the logits that predicted it.
    chosen: int64 [tokens], the most probable token in its place. exits: int64 [tokens], where each prediction
    left; under "speculate" the drafts' exits, while the logits are those of exit L. layers: L.
    layers_executed: positions times layers that ran for the continuation, the context's not included. usage:
    all that ran for it (see `offramp.policies.cost_breakdown`).
    """

    logprobs: NDArray[np.float64]
    chosen: NDArray[np.int64]
    exits: NDArray[np.int64]
    layers: int
    layers_executed: int
    usage: Usage

    @property
    def logprob(self) -> float:
        """Log-probability of the whole continuation in nats."""
        return float(self.logprobs.sum())


class Scorer:
    """Scores continuations under a policy, one step of the decoder per token.

    All of a context but its last token runs at full depth, as a prompt does. From its last token on, each
    token is one step of the KV strategy, so that every token of the continuation is predicted by the exit
    that the policy chooses: in `offramp.generate` the first new token comes out of the prompt instead, at
    full depth. A context of one token has nothing that runs at full depth.

    Raises PolicyError and InputError as `offramp.generate` does, and PolicyError for a policy that reads
    outputs off a short list, which gives no probability of the tokens that are not on it.
    """

    def __init__(self, model: Model, options: DecodingOptions) -> None:
        self._model = model
        self._engine = engine_of(model)
        self._options = options
        policy, layers = options.policy, self._engine.layers
        check_decodable(self._engine, options)
        if policy.short_list:
            raise PolicyError(
                f"{policy} reads outputs off a short list, which gives other tokens no probability",
                where="policy=",
                fix="generate with it, or score with a policy that reads the whole vocabulary",
            )
        self._reader = ExitReader(self._engine, options.heads, policy.needs(layers), policy.final_facts)

    @torch.no_grad()
    def score(self, context: Sequence[int], continuation: Sequence[int]) -> ScoredContinuation:
        """The continuation after the context: token ids, at least one of each.

        Raises InputError for an id that is none of the model's, PolicyError for a policy that reads the
        prompt where the context is one token, OfframpError for a logit that is not finite or if memory runs
        out.
        """
        self._check_tokens(context, continuation)
        ids = torch.tensor([[*context]], device=self._model.hf.device)
        forced = torch.tensor([[*continuation]], device=ids.device)
        with explain_out_of_memory(self._model, ids, len(continuation)):
            return self._score(ids, forced)

    def _score(self, ids: Tensor, forced: Tensor) -> ScoredContinuation:
        meter = Meter()
        sequences = Sequences(self._engine, ids[:, :-1], None, meter)
        chooser = Chooser(lambda _, scores: scores, prompt=ids.shape[1], forced=forced)
        try:
            facts = self._run_prompt(sequences, ids)
            meter.start()
            strategy = STRATEGIES[self._options.kv](self._gear(sequences, chooser, facts))
            return self._run_steps(strategy, ids[:, -1:], forced[0])
        finally:
            # A traceback may outlive this; the cache shall not.
            sequences.cache = None
            sequences.unfeed(0)

    def _run_prompt(self, sequences: Sequences, ids: Tensor) -> Mapping[str, NDArray[np.float64]]:
        """The context but for its last token, through every layer; document facts that the policy reads."""
        names = self._options.policy.document_facts
        if sequences.length:
            inputs = sequences.inputs(0, sequences.length)
            hidden = sequences.run(inputs.hidden, inputs, 0, self._engine.layers)
            return prompt_entropy(self._engine.stack, hidden, None, names) if names else {}
        if names:
            raise PolicyError(
                f"{self._options.policy} reads {', '.join(names)}, and nothing comes before this context's "
                "only token",
                where="policy=",
                fix="score with a longer context, or choose a policy that does not read the prompt",
            )
        # The model makes its cache when it is first given something; no layer runs.
        sequences.feed(ids)
        sequences.inputs(0, 1)
        sequences.unfeed(0)
        return {}

    def _gear(self, sequences: Sequences, chooser: Chooser, facts: Mapping[str, NDArray[np.float64]]) -> Gear:
        options, engine, meter = self._options, self._engine, sequences.meter
        assert chooser.forced is not None  # as `_score` made it
        return Gear(
            options=options,
            sequences=sequences,
            driver=PolicyDriver(options.policy, engine.layers, 1, self._reader, meter, facts),
            chooser=chooser,
            tokens=lambda: sequences.ids,
            limit=chooser.forced.shape[1],
        )

    def _run_steps(self, strategy: Strategy, last: Tensor, forced: Tensor) -> ScoredContinuation:
        """Feed the context's last token, int64 [1, 1], then the forced ones [tokens], all but the last."""
        gear = strategy.gear
        logprobs: list[float] = []
        chosen: list[int] = []
        exits: list[int] = []
        while len(logprobs) < len(forced):
            try:
                advance = strategy.advance(last)
                require_whole(torch.cat([choice.broken for choice in advance.choices]))
            except NonFiniteLogits as broken:
                raise OfframpError(
                    "the likelihood of a continuation is not known: "
                    + describe_problem(self._engine, gear.sequences.ids[0], len(logprobs)),
                    where=f"its token {len(logprobs) + 1}",
                    fix="load the model in float32, or take the text out",
                ) from broken
            right = forced[len(logprobs) : len(logprobs) + len(advance.choices)]
            scores = torch.cat([choice.scores for choice in advance.choices])  # of a batch of one
            all_logprobs = scores.to(float64_device(last.device)).double().log_softmax(-1)
            logprobs += all_logprobs.gather(-1, right[:, None].to(all_logprobs.device))[:, 0].tolist()
            chosen += torch.cat([choice.chosen for choice in advance.choices]).tolist()
            exits += advance.exits[0].tolist()
            last = advance.choices[-1].fed[:, None]
        return ScoredContinuation(
            logprobs=np.array(logprobs),
            chosen=np.array(chosen, dtype=np.int64),
            exits=np.array(exits, dtype=np.int64),
            layers=self._engine.layers,
            layers_executed=gear.meter.executed - gear.meter.prompt_layers,
            usage=gear.meter.usage,
        )

    def _check_tokens(self, context: Sequence[int], continuation: Sequence[int]) -> None:
        if not context or not continuation:
            raise InputError(
                "a context and a continuation need at least one token each", where="scoring a continuation"
            )
        for tokens, where in ((context, "context="), (continuation, "continuation=")):
            check_ids(tokens, self._model.shape.vocabulary_size, where)
