"""Random traces for the tests of rules, and what a rule is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scalar_policies import Document

from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.signals import SIGNALS
from offramp.testing.policies import choose_one_by_one
from offramp.tracing.facts import FACT_BY_NAME
from offramp.tracing.trace import Trace
from policy_traces import make_shape

LAYERS = 6
LENGTHS = (9, 1, 14, 6)
PROMPT_ENTROPY = (0.5, 1.0, 2.0, 0.0)
LEVELS = 10
DOCUMENT = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS)

SEEDS = st.integers(0, 9999)
EXITS = st.sets(st.integers(1, LAYERS - 1), min_size=1).map(sorted)
MANY_EXITS = st.sets(st.integers(1, LAYERS - 1), min_size=4).map(sorted)
VALUES = st.integers(0, LEVELS).map(lambda level: level / LEVELS)
# Whose check before may be any exit, so that one trace serves every set of exits.
PLAIN = st.sampled_from(sorted(name for name, signal in SIGNALS.items() if not signal.opens))
CONFIDENCES = st.sampled_from(("max_prob", "margin", "restricted_margin", "correctness"))
few = settings(max_examples=30, deadline=None)


def random_trace(seed: int, exits: list[int] | None = None, candidate_exit: int | None = None) -> Trace:
    """Random facts with many ties; deeper exits are surer and agree more often."""
    generator = np.random.default_rng(seed)
    traced = np.array([*(exits or range(1, LAYERS)), LAYERS], dtype=np.int64)
    size = (len(DOCUMENT), len(traced))
    facts: dict[str, Any] = {}
    for name, fact in FACT_BY_NAME.items():
        sure = np.clip(generator.random(size) * 0.7 + 0.3 * traced / LAYERS, 0, 1)
        facts[name] = (np.round(sure * LEVELS) / LEVELS).astype(np.float32)
        if fact.dtype == "int32":
            facts[name] = np.where(generator.random(size) < sure, 7, generator.integers(0, 3, size))
            facts[name] = facts[name].astype(np.int32)
    return Trace.from_facts(
        facts,
        document=DOCUMENT,
        exits=traced,
        shape=make_shape(LAYERS),
        provenance={"request": {"heads": {"candidate_exit": candidate_exit}}},
        document_facts={"prompt_entropy": np.array(PROMPT_ENTROPY)[DOCUMENT]},
    )


def by_document(trace: Trace, reference: Callable[..., Any], **parameters: Any) -> NDArray[np.int64]:
    """The exits that a scalar reference gives, document after document."""
    chosen: list[int] = []
    for number, length in enumerate(LENGTHS):
        start = int(np.flatnonzero(trace.document == number)[0])

        def read(fact: str, token: int, exit: int, start: int = start) -> float:
            return float(trace.fact(fact)[start + token, int(np.searchsorted(trace.exits, exit))])

        chosen += reference(Document(read, length, LAYERS, PROMPT_ENTROPY[number]), **parameters)
    return np.array(chosen)


def text(value: Any) -> str:
    """A parameter's value as the grammar writes it; a list of exits joined."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def must_equal(policy: str | ExitPolicy, trace: Trace, expected: NDArray[np.int64]) -> None:
    """Replay, and one stream at a time, give the expected exits and check at the same places."""
    if isinstance(policy, str):
        assert str(parse_policy(str(parse_policy(policy)))) == str(parse_policy(policy))
        policy = parse_policy(policy)
    decisions, alone = replay_decisions(policy, trace), choose_one_by_one(policy, trace)
    np.testing.assert_array_equal(decisions.exits, expected)
    np.testing.assert_array_equal(alone.exits, expected)
    for place in range(len(decisions.needs)):
        np.testing.assert_array_equal(decisions.probed_at(place), alone.probed[:, place])
