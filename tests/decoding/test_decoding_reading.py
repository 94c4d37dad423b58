"""Facts read while decoding against the columns of a trace of the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from reading_cases import (
    EVERYWHERE,
    LOOKING_BACK,
    OF_LOGITS,
    build_family,
    engine_of,
    logits_of,
    needs_of,
    random_heads,
    states_of,
    tiny_llama,
    tiny_model,
    traced,
)

from offramp.decoding.exit_readout.reader import ExitReader
from offramp.models.calls import first_tensor
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.facts import FACT_BY_NAME


def read_everything(
    model: Model, ids: Sequence[int], heads: ExitHeads | None, exits: Sequence[int], facts: Sequence[str]
) -> dict[int, dict[str, np.ndarray]]:
    """Every fact of every exit, all positions side by side, exit L with its final facts."""
    needs = needs_of(exits, heads, facts)
    last = (*needs[exits[-2]],)
    reader = ExitReader(engine_of(model), heads, needs, last)
    states = states_of(model, ids)
    found: dict[int, Any] = {}
    for exit in exits[:-1]:
        assert reader.wants_before(exit)
        hidden, before = states[exit]
        found[exit] = reader.read(exit, needs[exit], hidden, before)
        assert torch.equal(reader.logits(exit, hidden), logits_of(model, hidden, heads, exit))
    hidden, before = states[exits[-1]]
    found[exits[-1]] = reader.final(last, logits_of(model, hidden, None, exits[-1]), hidden, before)
    return found


def assert_equal_to_trace(
    model: Model,
    heads: ExitHeads | None,
    *,
    exits: str = "all",
    vocabulary: int = 61,
    tolerance: float = 1e-5,
    facts: Sequence[str] = EVERYWHERE,
) -> None:
    expected, ids = traced(model, heads, exits, vocabulary)
    found = read_everything(model, ids, heads, expected.exits.tolist(), facts)
    for place, (_, facts_found) in enumerate(found.items()):
        for name, values in facts_found.items():
            column = expected.fact(name)[:, place]
            assert values.dtype == FACT_BY_NAME[name].dtype == column.dtype
            if values.dtype == np.int32:
                assert np.array_equal(values, column), (name, place)
            else:
                np.testing.assert_allclose(
                    values, column, rtol=tolerance, atol=tolerance, err_msg=f"{name} {place}"
                )
    below = [values for place, values in enumerate(found.values()) if place < len(found) - 1]
    assert all(np.ptp(values["entropy"]) > 1e-3 for values in below), "rows hardly differ: this tests little"


def test_facts_equal_the_trace() -> None:
    assert_equal_to_trace(tiny_llama(), None)


@pytest.mark.parametrize("lens", [True, False])
@pytest.mark.parametrize("shortlist", [None, (3, 50, 7, 12, 60)])
def test_facts_of_heads_equal_the_trace(lens: bool, shortlist: Any) -> None:
    model = tiny_llama()
    heads = random_heads(model, (1, 2), lens=lens, shortlist=shortlist)
    assert_equal_to_trace(model, heads, tolerance=2e-5)


def test_facts_at_some_exits_equal_the_trace_of_these() -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0)
    assert_equal_to_trace(
        model, random_heads(model, (1, 2, 3), candidate_exit=2), exits="2,3,4", vocabulary=503
    )


@pytest.mark.parametrize(
    ("family", "head_scale"), [("phi", 20.0), ("gemma2", 200.0), ("granite", 60.0), ("mamba", 2.0)]
)
def test_families(family: str, head_scale: float) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=head_scale)
    heads = random_heads(model, tuple(range(1, model.layers)))
    assert_equal_to_trace(model, heads, vocabulary=503, tolerance=1e-4)


@pytest.mark.parametrize("family", ["hy_v4", "gemma3n_text"])
def test_unusual_states_give_facts_of_the_full_head(family: str) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=20.0)
    assert first_tensor(model.stack.layer_outputs[0]).dim() == 4
    expected, ids = traced(model, None, "all", 503)
    axis = model.stack.position_axis
    facts = (*OF_LOGITS, "hidden_cosine_to_previous")
    needs = {exit: facts if exit == 1 else (*facts, *LOOKING_BACK) for exit in range(1, model.layers)}
    reader = ExitReader(engine_of(model), None, needs)
    captured: dict[int, Any] = {}
    model.stack.capture(
        torch.tensor([ids]), lambda index, before, after: captured.update({index + 1: (after, before)})
    )
    for row in (0, 5, len(ids) - 1):
        reader.begin()
        for place, exit in enumerate(needs):
            after, before = (state.narrow(axis, row, 1) for state in captured[exit])
            values = reader.read(exit, needs[exit], after, before)
            for name, value in values.items():
                np.testing.assert_allclose(
                    value, expected.fact(name)[row, place], rtol=1e-4, atol=1e-4, err_msg=f"{name} {exit}"
                )
            assert torch.equal(reader.logits(exit, after), model.stack.readout(after).float()[:, -1])


def test_facts_are_float32_accurate_in_bfloat16() -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0, dtype="bfloat16")
    heads = random_heads(model, (1, 2, 3))
    assert_equal_to_trace(model, heads, vocabulary=503, tolerance=2e-3)
