"""The loop over tokens: the prompt at full depth, then one step of a KV strategy after the other.

Given tokens go the same way, for the probability of each under the exit that a policy chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import DeviceClock, Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.exit_readout.reader import ExitReader, Reader
from offramp.decoding.generation.prompts import check_ids, prompt_entropy
from offramp.decoding.generation.result import BatchGeneration, Generation
from offramp.decoding.generation.transcript import Transcript
from offramp.decoding.options import DecodingOptions, check_policy
from offramp.decoding.strategies.next_token import Advance, Chooser, NonFiniteLogits, is_broken, require_whole
from offramp.decoding.strategies.registry import strategy_of
from offramp.decoding.strategies.strategy import Conditions, Gear, PolicyDriver, Strategy
from offramp.errors import InputError, OfframpError, PolicyError
from offramp.models.conditioned import Conditioned, condition_of, own_model, under
from offramp.models.devices import float64_device, free_bytes
from offramp.models.model import Model, alone_with
from offramp.policies.cost_breakdown import Usage
from offramp.policies.kv import RECOMPUTE
from offramp.policies.policy import ExitPolicy
from offramp.policies.steps import BATCHINGS


def check_decodable(
    engine: Engine,
    options: DecodingOptions,
    *,
    batch: int = 1,
    padded: bool | None = None,
    processors: Sequence[Any] = (),
) -> None:
    """Refuse what the family or the strategy cannot do, before anything runs.

    padded: whether some row is, by default if there are several; processors: of logits (see `Conditions`).

    Raises PolicyError for the policy, InputError for the rest.
    """
    padded = batch > 1 if padded is None else padded
    conditions = Conditions(options, engine.layers, engine.dtype, batch, tuple(processors), padded)
    check_policy(options.policy, engine.layers, options.heads)
    strategy_of(options).check(conditions)
    leaves = bool(options.policy.needs(engine.layers))
    wanted = ["never_exit", *([RECOMPUTE.name] if options.lookup else [options.kv] if leaves else [])]
    if batch > 1 or padded:
        wanted.append("lockstep")
    if batch > 1 and options.batching == "rebatch":
        wanted.append("rebatch")
    family = type(own_model(engine.hf)).__name__
    if padded and batch > 1 and isinstance(engine.hf, Conditioned):
        raise InputError(
            "prompts with sources are decoded together if they are of one length",
            where="prompt=",
            fix="decode them one at a time",
        )
    if options.lookup and engine.recurrent:
        raise InputError(
            f"{family} keeps a recurrent state, out of which no wrong draft can be taken",
            where="lookup= (--lookup)",
            fix="leave it out",
        )
    for ability in wanted:
        reason = engine.abilities.reason(ability)
        if reason is not None:
            raise InputError(
                f"{family} cannot decode this way ({ability}): {reason}",
                where="batching=" if ability in BATCHINGS else "kv=",
                fix="choose another strategy, or decode one prompt at a time; see docs/families.md",
            )


@torch.no_grad()
def describe_problem(engine: Engine, ids: Tensor, new: int) -> str:
    """Where the logits after some tokens broke: token and layer, found by running all layers on them.

    Layer by layer, since hooks on the model would meet generations in other threads. ids: int64 [length],
    prompt and new tokens. new: how many new tokens there are.
    """
    sequences = Sequences(engine, ids[None], None, Meter())
    inputs = sequences.inputs(0, len(ids))
    hidden, where = inputs.hidden, ""
    for index in range(engine.layers):
        hidden = sequences.run(hidden, inputs, index, index + 1)
        if not bool(torch.isfinite(hidden).all()):
            where = f"layer {index + 1} gives"
            break
    if not where:
        broken = bool(is_broken(sequences.read_out(hidden)).any())
        where = (
            "the output head gives" if broken else "only an exit, or K and V of this very generation, give"
        )
    return (
        f"new token {new + 1} (position {len(ids)}): {where} a number that is not finite, "
        f"from the tokens up to {int(ids[-1])} at position {len(ids) - 1}"
    )


# What torch's allocators say, on processors and accelerators.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "alloc_cpu")


@contextmanager
def explain_out_of_memory(model: Model, ids: Tensor, new_tokens: int) -> Iterator[None]:
    """Turn an allocation that failed into an OfframpError that says what would fit.

    ids: int64 [batch, length], the prompts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in _SAID):
            raise
        raise _explained(model, ids, new_tokens) from error


def _explained(model: Model, ids: Tensor, new_tokens: int) -> OfframpError:
    batch, length = ids.shape
    per_token = key_value_bytes(model)
    free = free_bytes(ids.device)
    # Half of what is free: the prompt's activations and the logits want the rest.
    fitting = free // 2 // max(per_token, 1)
    rows = fitting // (length + new_tokens)
    if rows >= 1 and batch > 1:
        fix = f"decode {min(rows, batch - 1)} prompts at a time"
    else:
        tokens = min(fitting // batch, length + new_tokens - 1)
        fix = f"give at most {tokens} tokens a prompt, new ones included"
    return OfframpError(
        f"memory ran out for {batch} x {length + new_tokens} tokens, whose K and V take "
        f"{batch * (length + new_tokens) * per_token / 2**20:,.0f} MiB; {free / 2**20:,.0f} MiB are free",
        where=f"generating with {model.name}",
        fix=fix,
    )


def key_value_bytes(model: Model) -> int:
    """Bytes of K and V that one token of one sequence keeps, all layers together."""
    elements = sum(layer.key_value_width for layer in model.shape.layers)
    return int(elements * model.shape.element_bytes)


@dataclass(frozen=True)
class Plan:
    """How a batch is to be decoded."""

    engine: Engine
    options: DecodingOptions
    reader: Reader
    limit: int
    """New tokens at most."""
    end_tokens: frozenset[int]
    decode: Callable[[list[int]], str]
    """Token ids to text."""
    timing: bool = False
    """Seconds are split into parts."""

    @property
    def policy(self) -> ExitPolicy:
        """Of the options."""
        return self.options.policy

    @property
    def strategy(self) -> type[Strategy]:
        """Of the options, for K and V."""
        return strategy_of(self.options)


class Loop:
    """One generation of a batch, from its prompt on: at a stretch by `run`, or step by step.

    mask: int64 [batch, length] with 0 for padding, None without any. meter: None for one of the loop's own.
    first_seconds: until the first new token; seconds: of the steps after it. Both end when new tokens are on
    the host, so that an accelerator has done all that they took.
    """

    def __init__(
        self,
        plan: Plan,
        answers: Transcript,
        mask: Tensor | None,
        chooser: Chooser,
        meter: Meter | None = None,
    ) -> None:
        self.plan = plan
        self.answers = answers
        self.mask = mask
        self.chooser = chooser
        self.meter = Meter(plan.timing, DeviceClock(answers.ids.device)) if meter is None else meter
        self.sequences = Sequences(plan.engine, answers.ids, mask, self.meter)
        self._condition = condition_of(plan.engine.hf)  # which rows that are over leave in `sequences`
        self.problems: dict[int, str] = {}
        self.drops = self._drops()
        self.strategy: Strategy | None = None
        self.first_seconds = self.seconds = 0.0

    def run(self) -> BatchGeneration:
        """Decode until every row has ended or a logit is not finite."""
        for _ in self.steps():
            pass
        return self.result()

    @torch.no_grad()
    def steps(self) -> Iterator[int]:
        """Decode step by step: gives how many new tokens there are, after the prompt and after each step.

        The time between two steps is nobody's. Closed early it lets go of the cache, as at the end.
        """
        resumed = time.perf_counter()
        try:
            # 1. The prompt runs whole, and the full model gives the first new token.
            facts = self._run_prompt()
            self.first_seconds = time.perf_counter() - resumed
            yield self.new_tokens
            resumed = time.perf_counter()
            self.meter.start()
            if self.answers.done:
                return
            # 2. From then on a strategy for K and V takes one step after the other.
            strategy = self.strategy = self.plan.strategy(self.gear(facts))
            while not self.answers.done:
                self.step(strategy)
                self.seconds += time.perf_counter() - resumed
                yield self.new_tokens
                resumed = time.perf_counter()
                self.meter.start()
        except NonFiniteLogits as broken:
            self._note_problem(broken.row)
            if self.strategy is not None:
                self.seconds += time.perf_counter() - resumed
        finally:
            # A traceback may outlive this; the cache shall not.
            self.sequences.cache = None
            self.sequences.unfeed(0)

    @property
    def new_tokens(self) -> int:
        """New tokens of each row so far, those after a row's end included."""
        return self.answers.ids.shape[1] - self.answers.prompt

    def _run_prompt(self) -> Mapping[str, NDArray[np.float64]]:
        """The prompt through every layer, and the first new token; document facts that the policy reads."""
        sequences, layers = self.sequences, self.plan.engine.layers
        inputs = sequences.inputs(0, sequences.length)
        hidden = sequences.run(inputs.hidden, inputs, 0, layers)
        if self.plan.policy.short_head:
            logits = self.plan.reader.logits(layers, hidden[:, -1:])
        else:
            logits = sequences.read_out(hidden)
        choice = self.chooser.choose(sequences.ids, logits)
        facts = {}
        if self.plan.policy.document_facts:
            facts = prompt_entropy(self.plan.engine.stack, hidden, self.mask, self.plan.policy.document_facts)
        exits = np.full((sequences.batch, 1), layers, dtype=np.int64)
        self.answers.add(Advance((choice,), exits))
        return facts

    def gear(self, facts: Mapping[str, NDArray[np.float64]]) -> Gear:
        """What a strategy works with. facts: of the documents, as the policy reads them."""
        plan, batch = self.plan, self.sequences.batch
        driver = PolicyDriver(plan.policy, plan.engine.layers, batch, plan.reader, self.meter, facts)
        return Gear(
            options=plan.options,
            sequences=self.sequences,
            driver=driver,
            chooser=self.chooser,
            tokens=lambda: self.answers.ids,
            limit=plan.limit,
            # Forced tokens go on whatever they say.
            end_tokens=() if self.chooser.forced is not None else tuple(plan.end_tokens),
        )

    @torch.no_grad()
    def step(self, strategy: Strategy) -> None:
        """Everything between two tokens: one step of a strategy, and what becomes of its tokens."""
        running = ~self.answers.over
        strategy.gear.driver.finished[:] = ~running
        self.chooser.finished = None if running.all() else self.answers.finished
        # 1. Rows that are over leave the batch.
        if self.drops and int(running.sum()) < self.sequences.batch:
            self._drop(strategy, running)
        # 2. The strategy feeds the last tokens, asks the policy, leaves, and sees to K and V.
        executed = self.meter.executed
        advance = strategy.advance(self.answers.last)
        # 3. The new tokens join the answers, which say what is over now.
        self.answers.add(advance)
        # 4. What ran is charged to the rows.
        shares = advance.layers
        if shares is None:
            share = (self.meter.executed - executed) // self.sequences.batch
            shares = np.full(len(running), share, dtype=np.int64)
        self.answers.add_layers(shares, running)
        self.meter.lap("overhead")

    def _drops(self) -> bool:
        """Whether rows leave the batch as soon as they are over, unless they go on or are scored."""
        plan, answers = self.plan, self.answers
        if self.sequences.batch == 1 or plan.options.batching != "lockstep" or not plan.strategy.drops:
            return False
        return answers.pads and answers.scores is None and plan.engine.abilities.reason("drop") is None

    def _drop(self, strategy: Strategy, running: NDArray[np.bool_]) -> None:
        """Only running rows, bool [batch], go on."""
        driver = strategy.gear.driver
        before = np.arange(len(running)) if driver.present is None else driver.present
        rows = np.flatnonzero(running[before])
        self.sequences.select_rows(rows)
        device = self.answers.ids.device
        strategy.keep_rows(torch.from_numpy(rows).to(device))
        driver.present = np.flatnonzero(running)
        self.chooser.present = torch.from_numpy(driver.present).to(device)

    def _note_problem(self, row: int) -> None:
        ids = self.answers.ids[row]
        if self.mask is not None:
            ids = ids[int((self.mask[row] == 0).sum()) :]
        new = len(self.answers.rows[row].tokens)
        condition = self._condition and self._condition.of_rows([row])
        with under(self.plan.engine.hf, condition):
            problem = describe_problem(self.plan.engine, ids, new)
        for running in np.flatnonzero(~self.answers.over).tolist():
            self.problems[running] = problem if running == row else f"stopped with row {row}: {problem}"

    def result(self) -> BatchGeneration:
        """What came out and what ran for it, once the steps have ended."""
        meter, strategy = self.meter, self.strategy
        return BatchGeneration(
            rows=tuple(map(self._generation, range(len(self.answers.rows)))),
            usage=meter.usage,
            steps=sum(count for item, count in meter.usage.items() if item.part == "overhead"),
            seconds=self.seconds,
            first_token_seconds=self.first_seconds,
            part_seconds=dict(meter.seconds) if meter.timing else None,
            drafted=strategy.drafted if strategy else 0,
            accepted=strategy.accepted if strategy else 0,
            layers_executed=meter.executed,
        )

    def _generation(self, row: int) -> Generation:
        """One row's result."""
        plan, answer, problem = self.plan, self.answers.rows[row], self.problems.get(row)
        prompt_layers = self.meter.prompt_layers // len(self.answers.rows)
        if problem is not None:
            stopped = "problem"
        elif answer.tokens and answer.tokens[-1] in plan.end_tokens:
            stopped = "end token"
        else:
            stopped = "length" if len(answer.tokens) >= plan.limit else "criteria"
        return Generation(
            text=plan.decode(answer.tokens),
            tokens=answer.tokens,
            chosen=answer.chosen,
            exits=np.array(answer.exits, dtype=np.int64),
            layers=plan.engine.layers,
            layers_executed=prompt_layers + answer.layers,
            prompt_layers=prompt_layers,
            prompt_tokens=self.answers.prompt if self.mask is None else int(self.mask[row].sum()),
            stopped=stopped,
            problem=problem,
            decode=plan.decode,
        )


@dataclass(frozen=True)
class ScoredContinuation:
    """A continuation as it was predicted, token by token."""

    logprobs: NDArray[np.float64]
    """float64 [tokens], log-probability in nats of each token, under the logits that predicted it."""
    chosen: NDArray[np.int64]
    """int64 [tokens], the most probable token in its place."""
    exits: NDArray[np.int64]
    """int64 [tokens], where each prediction left; under "speculate" the drafts' exits, while the logits are
    those of exit L."""
    layers: int
    """L, the layers of the model."""
    layers_executed: int
    """Positions times layers that ran for the continuation, the context's not included."""
    usage: Usage
    """All that ran for it (see `offramp.policies.cost_breakdown`)."""

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
        with alone_with(self._model.hf), explain_out_of_memory(self._model, ids, len(continuation)):
            return self._score(ids, forced)

    def _score(self, ids: Tensor, forced: Tensor) -> ScoredContinuation:
        meter = Meter()
        sequences = Sequences(self._engine, ids[:, :-1], None, meter)
        chooser = Chooser(lambda _, scores: scores, prompt=ids.shape[1], forced=forced)
        try:
            facts = self._run_prompt(sequences, ids)
            meter.start()
            strategy = strategy_of(self._options)(self._gear(sequences, chooser, facts))
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
