"""Facts read while decoding against the columns of a trace of the same text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_cases import tiny_llama as llama_on_disk
from random_heads import FORMS, output_logits, random_form, random_output_heads
from reading_cases import (
    ALL_FACTS,
    EVERYWHERE,
    LOOKING_BACK,
    OF_LOGITS,
    OF_SHORTLIST,
    build_family,
    engine_of,
    llama,
    logits_of,
    needs_of,
    random_heads,
    states_of,
    tiny_llama,
    tiny_model,
    traced,
)

import offramp
from offramp.decoding.exit_readout.exit_facts import Tools
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.errors import InputError
from offramp.heads.at_work import HeadsAtWork
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import write_heads
from offramp.heads.parts import ExitReading
from offramp.models.calls import first_tensor
from offramp.models.model import Model
from offramp.tracing.facts import FACT_BY_NAME
from tiny_models import write_documents


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
        if heads is None or heads.output is None:
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


@pytest.mark.parametrize(("lens", "units"), [(True, 0), (False, 0), (True, 5)])
@pytest.mark.parametrize("shortlist", [None, (3, 50, 7, 12, 60)])
def test_facts_of_heads_equal_the_trace(lens: bool, units: int, shortlist: Any) -> None:
    model = tiny_llama()
    heads = random_heads(model, (1, 2), lens=lens, shortlist=shortlist, mlp_units=units)
    assert_equal_to_trace(model, heads, tolerance=2e-5)


def test_facts_at_some_exits_equal_the_trace_of_these() -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0)
    assert_equal_to_trace(
        model, random_heads(model, (1, 2, 3), candidate_exit=2), exits="2,3,4", vocabulary=503
    )


@pytest.mark.parametrize(("family", "head_scale"), [("gemma2", 200.0), ("granite", 60.0), ("mamba", 2.0)])
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


def threshold_needs(fact: str, exits: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """What a threshold on one fact reads; comparisons open with the top token."""
    opens = fact in (*LOOKING_BACK, "candidate_score")
    return {exit: ("top1",) if opens and exit == exits[0] else (fact,) for exit in exits}


@pytest.mark.parametrize("fact", [*EVERYWHERE, *LOOKING_BACK, *ALL_FACTS])
def test_a_fact_asked_alone_is_the_same(fact: str) -> None:
    """What is computed only if asked for: each fact's own path, token by token."""
    model = tiny_llama()
    heads = random_heads(model, (1, 2)) if fact in ALL_FACTS else None
    expected, ids = traced(model, heads, "all", 61)
    states = states_of(model, ids)
    needs = threshold_needs(fact, (1, 2))
    reader = ExitReader(engine_of(model), heads, needs)
    for row in range(3):
        reader.begin()
        for exit in (1, 2):
            hidden, before = (state[row : row + 1] for state in states[exit])
            asked = before if reader.wants_before(exit) else None
            values = reader.read(exit, needs[exit], hidden, asked)
            column = expected.fact(needs[exit][0])[row : row + 1, exit - 1]
            np.testing.assert_allclose(values[needs[exit][0]], column, rtol=2e-5, atol=2e-5)


def test_rows_that_leave_take_their_memory_along() -> None:
    model = tiny_llama()
    heads = random_heads(model, (1, 2))
    expected, ids = traced(model, heads, "all", 61)
    states = states_of(model, ids)
    facts = (*LOOKING_BACK, "candidate_score", "max_prob")
    reader = ExitReader(engine_of(model), heads, {1: ("top1",), 2: facts})
    reader.read(1, ("top1",), *states[1])
    first, second = np.array([1, 4, 5, 9]), np.array([0, 3])
    reader.keep_rows(first)
    reader.keep_rows(second)
    left = first[second]
    hidden, before = (state[torch.from_numpy(left)] for state in states[2])
    found = reader.read(2, facts, hidden, before)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected.fact(name)[left, 1], rtol=2e-5, atol=2e-5, err_msg=name)
    assert torch.equal(reader.logits(2, hidden), logits_of(model, hidden, heads, 2))


def test_a_new_token_forgets_the_one_before() -> None:
    model = tiny_llama()
    states = states_of(model, [3, 1, 4, 1, 5])
    reader = ExitReader(engine_of(model), None, {1: ("top1",), 2: LOOKING_BACK})
    reader.read(1, ("top1",), *states[1])
    reader.begin()
    found = reader.read(2, LOOKING_BACK, *states[2])
    # As at a trace's first exit: nothing has settled, so nothing leaves.
    assert np.all(np.isposinf(found["kl_to_previous"]))
    assert np.all(found["js_to_previous"] == np.float32(np.log(2)))
    assert np.all(found["top_k_overlap"] == 0)


class Calls:
    """Counts the calls of a module and of the lens."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        self.handle = module.register_forward_hook(self.note)

    def note(self, *arguments: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("fact", "in_read", "in_all"),
    [("margin", 1, 1), ("correctness", 0, 1), ("restricted_margin", 0, 1), ("candidate_score", 0, 1)],
)
def test_nothing_is_computed_twice_or_unasked(
    fact: str, in_read: int, in_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    lens_calls: list[int] = []
    apply = ExitReading.__call__
    monkeypatch.setattr(ExitReading, "__call__", lambda self, rows: lens_calls.append(1) or apply(self, rows))
    states = states_of(model, [3, 1, 4, 1, 5])
    reader = ExitReader(engine_of(model), random_heads(model, (1, 2)), threshold_needs(fact, (1, 2)))
    reader.read(1, threshold_needs(fact, (1, 2))[1], *states[1])
    head, norm = Calls(model.stack.head), Calls(model.stack.tail[0])
    lens_calls.clear()
    try:
        reader.read(2, (fact,), *states[2])
        assert head.count == in_read
        assert len(lens_calls) == norm.count == (0 if fact == "correctness" else 1)
        reader.logits(2, states[2][0])
        reader.logits(2, states[2][0].clone()[:1])  # other states: computed anew
        assert (head.count, norm.count, len(lens_calls)) == (in_all + 1, 2, 2)
    finally:
        head.handle.remove()
        norm.handle.remove()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_off_the_short_list(dtype: str) -> None:
    model = tiny_model(llama(), head_scale=3.0, dtype=dtype)
    heads = random_heads(model, (1, 2), shortlist=(5, 60, 7, 33))
    states = states_of(model, [3, 1, 4, 1, 5])
    reader = ExitReader(engine_of(model), heads, {1: ("correctness",), 2: ()}, short_list=True)
    head = Calls(model.stack.head)
    reader.read(1, ("correctness",), *states[1])
    found = reader.logits(1, states[1][0])
    head.handle.remove()
    assert head.count == 0
    listed = [5, 7, 33, 60]
    whole = logits_of(model, states[1][0], heads, 1)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    torch.testing.assert_close(found[:, listed], whole[:, listed], rtol=tolerance, atol=tolerance)
    assert (found.argmax(-1)[:, None] == torch.tensor(listed)).any(-1).all()
    assert torch.isfinite(found).all()
    others = [token for token in range(61) if token not in listed]
    assert not found.softmax(-1)[:, others].any()


def broken(model: Model) -> dict[str, tuple[ExitHeads | None, dict[int, tuple[str, ...]], str, str]]:
    """Heads, needs, message, and what the error says to do."""
    few = random_heads(model, (2,), facts=("correctness",))
    return {
        "an exit they lack": (few, {1: ("margin",)}, "not fitted at exit 1; they have: 2", "choose a policy"),
        "an exit without an output head of its own": (
            random_output_heads(model, (2,)),
            {1: ("margin",)},
            "not fitted at exit 1; they have: 2",
            "choose a policy",
        ),
        "an exit they lack, read by nothing": (few, {1: ()}, "not fitted at exit 1", "choose a policy"),
        "a fact at an exit they lack": (
            random_heads(model, (2,), lens=False, facts=("correctness",)),
            {1: ("correctness",)},
            "not fitted at exit 1",
            "choose a policy",
        ),
        "another size": (random_heads(model, (1, 2), features=40), {1: ("margin",)}, "takes 40", "heads fit"),
        "a short list beyond": (
            random_heads(model, (1, 2), shortlist=(3, 4000)),
            {1: ("restricted_margin",)},
            "beyond the 61",
            "heads fit",
        ),
        "other candidates": (
            random_heads(model, (1, 2), candidate_exit=2),
            {1: ("top1",), 2: ("candidate_score",)},
            "candidates of exit 2, but the policy's first check with a full head is at exit 1",
            "start its exits with 2",
        ),
        "no check before": (None, {2: ("kl_to_previous",)}, "there is none", "an earlier exit"),
        "an unknown fact": (None, {1: ("margins",)}, "no decoder reads the fact 'margins'", "'margin'"),
        "a fact of the tracer": (None, {1: ("kl_to_final",)}, "no decoder reads", "choose one of"),
    }


@pytest.mark.parametrize("case", list(broken(tiny_llama())))
def test_what_cannot_be_read_is_refused_at_once(case: str) -> None:
    model = tiny_llama()
    heads, needs, message, fix = broken(model)[case]
    with pytest.raises(InputError, match=message) as caught:
        ExitReader(engine_of(model), heads, needs)
    assert fix in caught.value.fix


def test_heads_without_a_lens_need_no_exits_where_only_logits_are_read() -> None:
    model = tiny_llama()
    heads = random_heads(model, (2,), lens=False, facts=("correctness",))
    reader = ExitReader(engine_of(model), heads, {1: ("margin",), 2: ("correctness",)})
    hidden, before = states_of(model, [3, 1, 4])[1]
    assert set(reader.read(1, ("margin",), hidden, before)) == {"margin"}


def test_a_short_list_needs_a_linear_head() -> None:
    model = tiny_model(build_family("gemma3n_text"), head_scale=5.0)
    for options in ({"needs": {1: ("restricted_margin",)}}, {"needs": {1: ()}, "short_list": True}):
        with pytest.raises(InputError, match="output head cannot give") as caught:
            ExitReader(engine_of(model), None, **options)
        assert "margin" in caught.value.fix


def test_a_masked_vocabulary() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[[0, 7, 100, 301]] = -np.inf
    states = states_of(model, [3, 1, 4, 1, 5])
    facts = (*OF_LOGITS, *OF_SHORTLIST)
    needs = {1: facts, 2: (*facts, *LOOKING_BACK)}
    reader = ExitReader(engine_of(model), None, needs)
    for exit in needs:
        found = reader.read(exit, needs[exit], *states[exit])
        assert all(np.isfinite(values).all() for values in found.values())


def test_a_broken_logit_never_looks_sure() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[7] = np.nan
    states = states_of(model, [3, 1, 4, 1, 5])
    reader = ExitReader(engine_of(model), None, {1: OF_LOGITS})
    found = reader.read(1, OF_LOGITS, *states[1])
    for name in ("max_prob", "margin", "logit_gap"):
        assert not (found[name] >= 0).any(), name


def test_one_check_of_a_classifier_is_far_quicker_than_a_layer() -> None:
    """On a state of the default model's size, whose layer takes 1.7 ms."""
    heads = random_heads(tiny_llama(), (1,), features=576)
    classifier = heads.classifiers["correctness"].at(0, torch.device("cpu"))
    reader = ExitReader(engine_of(tiny_llama()), None, {})
    reader._tools = Tools(
        reader._tools.head,
        HeadsAtWork(heads, {}, {("correctness", 1): classifier}, {}),
    )
    hidden = torch.randn(1, 1, 576)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        reader.read(1, ("correctness",), hidden, None)
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-4


# --- an output head of its own for each exit

POLICY = "threshold:signal=margin,value=0.2,exits=1+2+3"


@pytest.mark.parametrize("norm", ["model", "rms", "layer", "none"])
def test_facts_and_logits_of_own_heads_are_the_traces_and_the_ones_by_hand(norm: str) -> None:
    model = tiny_llama()
    assert_read_as_traced(model, random_output_heads(model, (1, 2), norm=norm), 61, 2e-5)


@pytest.mark.parametrize(
    ("family", "head_scale", "dtype", "tolerance"),
    [
        ("gemma2", 60.0, "float32", 1e-4),
        ("granite", 60.0, "float32", 1e-4),
        ("llama", 20.0, "bfloat16", 2e-3),
    ],
)
def test_families_with_own_heads(family: str, head_scale: float, dtype: str, tolerance: float) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=head_scale, dtype=dtype)
    heads = random_output_heads(model, tuple(range(1, model.layers)), norm="rms")
    assert_read_as_traced(model, heads, 503, tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_facts_and_logits_of_each_form_are_the_traces_and_the_ones_by_hand(form: str) -> None:
    model = tiny_llama()
    assert_read_as_traced(model, random_form(model, (1, 2), form), 61, 2e-5)


def assert_read_as_traced(model: Model, heads: ExitHeads, vocabulary: int, tolerance: float) -> None:
    below = tuple(range(1, model.layers))
    assert_equal_to_trace(model, heads, vocabulary=vocabulary, tolerance=tolerance)
    if model.dtype == "float32":
        reader = ExitReader(engine_of(model), heads, dict.fromkeys(below, ()))
        for exit, (hidden, _) in list(states_of(model, [3, 1, 4, 1, 5]).items())[:-1]:
            z = torch.tensor(output_logits(model, heads, exit - 1, hidden[:, -1].double().numpy()))
            assert model.stack.logit_scaling is not None
            by_hand = model.stack.logit_scaling.apply(z).float()
            torch.testing.assert_close(reader.logits(exit, hidden), by_hand, rtol=tolerance, atol=tolerance)


def test_a_short_list_is_read_off_the_exits_own_columns() -> None:
    model = tiny_llama()
    heads = random_output_heads(model, (1, 2))
    reader = ExitReader(engine_of(model), heads, {1: (), 2: ()}, short_list=True)
    hidden, _ = states_of(model, [3, 1, 4, 1, 5])[2]
    z = output_logits(model, heads, 1, hidden[:, -1].double().numpy())
    np.testing.assert_allclose(reader.logits(2, hidden).numpy(), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv", ["recompute", "speculate"])
def test_forced_exits_are_those_of_replay_and_tokens_those_of_the_own_heads(kv: str, tmp_path: Path) -> None:
    model = llama_on_disk()
    heads = random_output_heads(model, (1, 2, 3))
    write_heads(heads, tmp_path / "heads")
    path = write_documents(tmp_path / "documents.jsonl", documents=3, words=12)
    trace = offramp.trace(model, f"jsonl:{path}#text", tokens=60, heads=tmp_path / "heads")
    expected = offramp.replay(trace, POLICY).exits
    assert len(set(expected.tolist())) > 2
    for document in np.unique(trace.document):
        rows = np.flatnonzero(trace.document == document)
        text = [*trace.token[rows].tolist(), int(trace.next_token[rows[-1]])]
        found = offramp.generate(
            model, [[0]], policy=POLICY, kv=kv, force_tokens=[text], heads=tmp_path / "heads"
        )[0]
        assert found.exits[1:].tolist() == expected[rows].tolist()
        if kv == "recompute":
            assert found.chosen[1:] == trace.top1[rows, found.exits[1:] - 1].tolist()
            plain = offramp.generate(model, [[0]], policy=POLICY, kv=kv, force_tokens=[text])[0]
            assert plain.chosen != found.chosen


def test_output_heads_need_a_model_whose_logits_are_a_head_and_a_scale() -> None:
    model = tiny_llama()
    odd: Any = dataclasses.replace(model, stack=dataclasses.replace(model.stack, readout_kind="stub"))
    with pytest.raises(InputError, match="cannot have output heads of their own"):
        ExitReader(engine_of(odd), random_output_heads(model, (1, 2)), {1: ("margin",)})
