"""The contract of an exit policy, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.models.shape import LayerShape, ModelShape
from offramp.policies.grammar import parse_policy, policy_from_json, policy_to_json
from offramp.policies.policy import ExitPolicy
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import FactArray, Trace

DEPTHS = (2, 3, 6, 12, 24, 40, 80, 160)
DOCUMENTS = 4
TOKENS_PER_DOCUMENT = 12
TRACES_PER_DEPTH = 3


def check_policy(policy: ExitPolicy) -> ExitPolicy:
    """Hold a policy against what replay and decoding rely on; returns the policy.

    On random traces of several depths: `choose` gives the exits that `decide` gives when asked exit by exit;
    an exit that is not checked needs no facts; no choice changes when deeper exits or later tokens do;
    checked exits are ascending and below the last. Text and JSON read back as an equal policy.

    Raises PolicyError naming the first rule that is broken.
    """
    _check_round_trip(policy)
    depths = [layers for layers in DEPTHS if _fits(policy, layers)]
    if not depths:
        raise _broken(policy, f"it fits no model of {', '.join(map(str, DEPTHS))} layers")
    for layers in depths:
        for seed in range(TRACES_PER_DEPTH):
            generator = np.random.default_rng([seed, layers])
            trace = _trace(_random_facts(generator, layers), layers)
            _check_checked_exits(policy, layers)
            chosen = policy.choose(trace)
            if chosen.dtype != np.int64 or chosen.shape != (trace.token_count,):
                raise _broken(policy, f"choose gives {chosen.dtype} {chosen.shape}, not int64 [tokens]")
            _check_sequential(policy, trace, chosen)
            _check_blindness(policy, trace, chosen, generator)
    return policy


def choose_one_by_one(policy: ExitPolicy, trace: Trace) -> NDArray[np.int64]:
    """The exits that `decide` gives, token by token and exit by exit, as a decoder asks: int64 [tokens].

    At a checked exit the policy is given the facts it needs, elsewhere none. Slow: the reference of `choose`.
    """
    checked = set(policy.checked_exits(trace.layers))
    facts = {name: trace.fact(name) for name in policy.facts_needed}
    chosen = np.full(trace.token_count, trace.layers, dtype=np.int64)
    for token in range(trace.token_count):
        for column, exit in enumerate(trace.exits[:-1]):
            seen: Mapping[str, float] = {}
            if int(exit) in checked:
                seen = {name: float(fact[token, column]) for name, fact in facts.items()}
            if policy.decide(int(exit), seen):
                chosen[token] = exit
                break
    return chosen


def _fits(policy: ExitPolicy, layers: int) -> bool:
    try:
        policy.checked_exits(layers)
    except PolicyError:
        return False
    return True


def _check_round_trip(policy: ExitPolicy) -> None:
    if parse_policy(str(policy)) != policy:
        raise _broken(policy, "its text reads back as another policy")
    if policy_from_json(json.loads(json.dumps(policy_to_json(policy))), str(policy)) != policy:
        raise _broken(policy, "its JSON reads back as another policy")


def _check_checked_exits(policy: ExitPolicy, layers: int) -> None:
    checked = policy.checked_exits(layers)
    if list(checked) != sorted(set(checked)) or any(not 1 <= exit < layers for exit in checked):
        raise _broken(policy, f"its checked exits {checked} are not ascending within 1 to {layers - 1}")


def _check_sequential(policy: ExitPolicy, trace: Trace, chosen: NDArray[np.int64]) -> None:
    try:
        expected = choose_one_by_one(policy, trace)
    except KeyError as error:
        raise _broken(policy, f"decide reads {error}, which facts_needed does not name there") from error
    different = np.flatnonzero(chosen != expected)
    if different.size:
        token = int(different[0])
        what = f"choose leaves at exit {chosen[token]}, decide at exit {expected[token]}"
        raise _broken(policy, f"{what}, of {trace.layers}")


def _check_blindness(
    policy: ExitPolicy, trace: Trace, chosen: NDArray[np.int64], generator: np.random.Generator
) -> None:
    """Change what a policy must not see, and ask again."""
    other = _random_facts(generator, trace.layers)
    deeper = trace.exits[None, :] > chosen[:, None]
    changed = {name: np.where(deeper, other[name], trace.fact(name)) for name in other}
    if not np.array_equal(policy.choose(_trace(changed, trace.layers)), chosen):
        raise _broken(policy, "a choice depends on exits deeper than the one it takes")
    cut = int(generator.integers(1, trace.token_count))
    later = np.arange(trace.token_count)[:, None] >= cut
    changed = {name: np.where(later, other[name], trace.fact(name)) for name in other}
    if not np.array_equal(policy.choose(_trace(changed, trace.layers))[:cut], chosen[:cut]):
        raise _broken(policy, "a choice depends on later tokens")


def _random_facts(generator: np.random.Generator, layers: int) -> dict[str, FactArray]:
    """Every fact at random, [tokens, layers]: probabilities near 0 and near 1, ties among them."""
    shape = (DOCUMENTS * TOKENS_PER_DOCUMENT, layers)
    facts: dict[str, FactArray] = {}
    for fact in FACTS:
        if fact.dtype == "int32":
            facts[fact.name] = generator.integers(0, 4, shape).astype(np.int32)
            continue
        # One power per token, so that some tokens are sure throughout and some never are.
        values = generator.random(shape) ** np.exp(generator.normal(0.0, 2.0, (shape[0], 1)))
        scale = 10.0 if fact.unit == "nats" else 1.0
        facts[fact.name] = (scale * np.where(values > 0.5, values, np.round(values, 1))).astype(np.float32)
    return facts


def _trace(facts: Mapping[str, FactArray], layers: int) -> Trace:
    layer = LayerShape("attention", 12, 12, 4, 4, 2, None, 0)
    document = np.repeat(np.arange(DOCUMENTS, dtype=np.int32), TOKENS_PER_DOCUMENT)
    position = np.tile(np.arange(TOKENS_PER_DOCUMENT, dtype=np.int32), DOCUMENTS)
    return Trace.from_facts(
        facts, document=document, position=position, shape=ModelShape((layer,) * layers, 2, 4, 2, 8, 4)
    )


def _broken(policy: ExitPolicy, what: str) -> PolicyError:
    return PolicyError(what, where=str(policy), fix="see offramp.policies.policy.ExitPolicy for the contract")
