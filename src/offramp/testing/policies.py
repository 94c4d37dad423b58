"""The contract of an exit policy, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.arguments import checked
from offramp.models.shape import LayerShape, ModelShape
from offramp.policies.decisions import Decisions, probed_facts, replay_decisions, require_exits, task_of
from offramp.policies.grammar import parse_policy, policy_from_json, policy_to_json
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens
from offramp.policies.policy_checks import ContractError
from offramp.policies.rules.around import Around
from offramp.policies.signals import is_opened, looks_back, probe_of
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME
from offramp.tracing.trace import FactArray, Trace

DEPTHS = (2, 3, 6, 12, 24, 40, 80, 160)
LENGTHS = (12, 7, 16, 1)
"""Tokens of the documents of each random trace."""
TRACES_PER_DEPTH = 3
CUTS = 4
"""Places from which on the tokens of a random trace are exchanged for others, one after the other."""


@checked
def check_policy(policy: ExitPolicy) -> ExitPolicy:
    """Hold a policy against what replay and decoding rely on; returns the policy.

    Text and JSON read back as an equal policy. On random traces of several depths, for every workload class
    that it names: it needs ascending exits below L, and facts (those at L too) that a probe gives; replay
    takes and checks the exits that one stream at a time does, token by token, when given facts only where it
    reads them; no choice changes when a token's deeper exits, later tokens, or facts that no token reads do.
    A policy that declares `reachable = False` is held only to the round trip and to exits that the trace has.

    Raises PolicyError naming the first rule that is broken.
    """
    _check_round_trip(policy)
    for task in (None, *policy.tasks):
        own = policy.for_task(task)
        depths = [layers for layers in DEPTHS if _fits(own, layers)]
        if not depths:
            raise _broken(own, f"it fits no model of {', '.join(map(str, DEPTHS))} layers")
        for layers in depths:
            _check_needs(own, layers)
            for seed in range(TRACES_PER_DEPTH):
                generator = np.random.default_rng([seed, layers])
                trace = _random_trace(generator, layers, own, task)
                if own.reachable:
                    _check_decisions(policy, own, trace, generator)
                else:
                    _check_exits(own, replay_decisions(policy, trace).exits, trace)
    return policy


@dataclass(frozen=True)
class OneByOne:
    """exits: int64 [tokens]. probed: bool [tokens, checked exits]."""

    exits: NDArray[np.int64]
    probed: NDArray[np.bool_]


def choose_one_by_one(policy: ExitPolicy, trace: Trace) -> OneByOne:
    """Where each token leaves and is checked, token by token and exit by exit, as a decoder asks.

    At an exit that the policy checks it is given the facts it needs there, elsewhere it is not asked. Slow:
    the reference of `replay_decisions`.
    """
    policy = policy.for_task(task_of(trace))
    needs = policy.needs(trace.layers)
    checked = list(probed_facts(policy, trace.layers))
    exits = np.full(trace.token_count, trace.layers, dtype=np.int64)
    probed = np.zeros((trace.token_count, len(checked)), dtype=np.bool_)
    decider, index = policy.decider(trace.layers, 1), 0
    for token in range(trace.token_count):
        if token and trace.document[token] != trace.document[token - 1]:
            decider, index = policy.decider(trace.layers, 1), 0
        document = {name: trace.document_fact(name)[[token]] for name in policy.document_facts}
        decider.begin(Tokens(np.array([index]), document))
        for exit, names in needs.items():
            if not _answer(policy, decider.checks(exit)):
                continue
            column = int(np.searchsorted(trace.exits, exit))
            if names:
                probed[token, checked.index(exit)] = True
            facts = {name: trace.fact(name)[[token], column] for name in names}
            if _answer(policy, decider.decide(exit, facts)):
                exits[token] = exit
                break
        final = {name: trace.fact(name)[[token], -1] for name in policy.final_facts}
        if exits[token] == trace.layers:
            if trace.layers in checked:
                probed[token, -1] = True
        else:
            final = {name: _garbage(values) for name, values in final.items()}
        decider.end(exits[[token]], final)
        index += 1
    return OneByOne(exits, probed)


def _answer(policy: ExitPolicy, rows: Rows) -> bool:
    """The answer for the one stream that was asked for."""
    if getattr(rows, "dtype", None) != np.bool_ or rows.shape != (1,):
        raise _broken(policy, f"it answers {rows!r} for one stream, not bool [streams]")
    return bool(rows[0])


def _fits(policy: ExitPolicy, layers: int) -> bool:
    try:
        policy.needs(layers)
    except ContractError:
        raise
    except PolicyError:
        return False
    return True


def _check_round_trip(policy: ExitPolicy) -> None:
    if parse_policy(str(policy)) != policy:
        raise _broken(policy, "its text reads back as another policy")
    if policy_from_json(json.loads(json.dumps(policy_to_json(policy))), str(policy)) != policy:
        raise _broken(policy, "its JSON reads back as another policy")


def _check_needs(policy: ExitPolicy, layers: int) -> None:
    needs = policy.needs(layers)
    exits = list(needs)
    if exits != sorted(set(exits)) or any(not 1 <= exit < layers for exit in exits):
        raise _broken(policy, f"the exits {exits} that it needs do not ascend within 1 to {layers - 1}")
    for facts in needs.values():
        for fact in facts:
            probe_of(fact)
    for fact in policy.final_facts:
        probe_of(fact)


def _check_exits(policy: ExitPolicy, exits: NDArray[np.int64], trace: Trace) -> None:
    require_exits(policy, exits, trace)
    if policy.reachable and not np.isin(exits, [*policy.leaves_at(trace.layers), trace.layers]).all():
        raise _broken(policy, "it takes exits that it does not say tokens leave at")


def _check_decisions(
    policy: ExitPolicy, own: ExitPolicy, trace: Trace, generator: np.random.Generator
) -> None:
    """Replay against one stream at a time, and against changes of what must not be seen.

    own: the policy for the trace's workload class.
    """
    expected = choose_one_by_one(own, trace)
    decisions = replay_decisions(policy, trace)
    _check_exits(own, decisions.exits, trace)
    _check_sequential(own, decisions, expected)
    other = _random_facts(generator, trace.token_count, trace.exits)
    deeper = trace.exits[None, :] > decisions.exits[:, None]
    if not np.array_equal(replay_decisions(policy, _changed(trace, other, deeper)).exits, decisions.exits):
        raise _broken(own, "a choice depends on exits deeper than the one it takes")
    for cut in generator.choice(np.arange(1, trace.token_count), CUTS, replace=False).tolist():
        later = np.broadcast_to(np.arange(trace.token_count)[:, None] >= cut, deeper.shape)
        if not np.array_equal(
            replay_decisions(policy, _changed(trace, other, later)).exits[:cut], decisions.exits[:cut]
        ):
            raise _broken(own, "a choice depends on later tokens")
    if not np.array_equal(replay_decisions(_Spoiled(own), trace).exits, decisions.exits):
        raise _broken(own, "a choice depends on facts of streams that read none, having left or not checking")


def _check_sequential(policy: ExitPolicy, decisions: Decisions, expected: OneByOne) -> None:
    different = np.flatnonzero(decisions.exits != expected.exits)
    if different.size:
        token = int(different[0])
        found, alone = decisions.exits[token], expected.exits[token]
        what = f"a token leaves at exit {found} in replay, {alone} on its own"
        raise _broken(policy, what)
    for place, exit in enumerate(decisions.needs):
        if not np.array_equal(decisions.probed_at(place), expected.probed[:, place]):
            raise _broken(policy, f"replay checks other tokens at exit {exit} than a decoder does")


@dataclass(frozen=True)
class _Spoiled(Around):
    """A policy that is given garbage for every stream that reads nothing."""

    policy: ExitPolicy

    kind: ClassVar[str] = "spoiled"

    def decider(self, layers: int, streams: int) -> Decider:
        """The policy's, spoiled."""
        return _Spoils(self.policy.decider(layers, streams), layers)


class _Spoils(Decider):
    """Overwrites the facts of streams that have left, that do not check, or that did not run to exit L."""

    def __init__(self, inner: Decider, layers: int) -> None:
        self.inner = inner
        self.layers = layers
        self.running = np.zeros(0, dtype=np.bool_)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.inner.begin(tokens)
        self.running = np.ones(self.streams, dtype=np.bool_)

    def checks(self, exit: int) -> Rows:
        return self.inner.checks(exit)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        read = self.running & self.inner.checks(exit)
        spoiled = {name: np.where(read, values, _garbage(values)) for name, values in facts.items()}
        leaving = read & self.inner.decide(exit, spoiled)
        self.running &= ~leaving
        return leaving

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        through = exits == self.layers
        self.inner.end(
            exits, {name: np.where(through, values, _garbage(values)) for name, values in final.items()}
        )


def _garbage(values: FactArray) -> FactArray:
    """No number, or no token id, in the shape and type of some facts."""
    return np.full_like(values, np.nan if values.dtype.kind == "f" else -1)


def _random_trace(generator: np.random.Generator, layers: int, policy: ExitPolicy, task: str | None) -> Trace:
    """Every fact at random, at every exit, or only at the policy's where it compares its own exits."""
    needs = policy.needs(layers)
    compares = any(looks_back(fact) for facts in needs.values() for fact in facts)
    exits = np.array([*needs, layers] if compares else range(1, layers + 1), dtype=np.int64)
    opening = next((exit for exit, facts in needs.items() if facts and not any(map(is_opened, facts))), None)
    document = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS)
    layer = LayerShape("attention", 12, 12, 4, 4, 2, None, 0)
    return Trace.from_facts(
        _random_facts(generator, len(document), exits),
        document=document,
        exits=exits,
        position=np.arange(len(document), dtype=np.int32),
        shape=ModelShape((layer,) * layers, 2, 4, 2, 8, 4),
        provenance={"request": {"workload": {"name": task}, "heads": {"candidate_exit": opening}}},
        document_facts={name: generator.exponential(2.0, len(LENGTHS))[document] for name in DOCUMENT_FACTS},
    )


def _random_facts(
    generator: np.random.Generator, tokens: int, exits: NDArray[np.int64]
) -> dict[str, FactArray]:
    """Every fact at random, [tokens, exits]: probabilities near 0 and near 1, ties among them."""
    shape = (tokens, len(exits))
    facts: dict[str, FactArray] = {}
    for fact in FACT_BY_NAME.values():
        if fact.dtype == "int32":
            facts[fact.name] = generator.integers(0, 4, shape).astype(np.int32)
            continue
        # One power per token, so that some tokens are sure throughout and some never are.
        values = generator.random(shape) ** np.exp(generator.normal(0.0, 2.0, (tokens, 1)))
        scale = 1.0 if fact.unit in ("probability", "share", "cosine") else 10.0
        facts[fact.name] = (scale * np.where(values > 0.5, values, np.round(values, 1))).astype(np.float32)
    return facts


def _changed(trace: Trace, other: Mapping[str, FactArray], where: NDArray[np.bool_]) -> Trace:
    """The trace with other facts in some places: bool [tokens, exits]."""
    return Trace.from_facts(
        {name: np.where(where, other[name], trace.fact(name)) for name in other},
        document=trace.document,
        exits=trace.exits,
        position=trace.position,
        shape=trace.shape,
        provenance=trace.provenance,
        document_facts={name: trace.document_fact(name) for name in DOCUMENT_FACTS},
    )


def _broken(policy: ExitPolicy, what: str) -> PolicyError:
    return PolicyError(what, where=str(policy), fix="see offramp.policies.policy.ExitPolicy for the contract")
