"""Traces with fitted heads: lens, classifiers and output heads by hand, exit L untouched, heads refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_facts import (
    Readings,
    assert_facts,
    assert_signals,
    following_of,
    log_softmax,
    logits_of,
    readings_of,
    states_of,
)
from random_heads import (
    ALL_FACTS,
    FORMS,
    output_logits,
    random_form,
    random_heads,
    random_output_heads,
    seen_by_hand,
)
from rounding import DEVIATIONS, UNIT, assert_within, spread
from tracing_models import build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.defaults import CANDIDATES, SHORTLIST
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import write_heads
from offramp.heads.parts import Classifier
from offramp.models.model import Model
from offramp.policies.prices import costs_of, fitted_sizes, sizes_of_heads
from offramp.policies.replay import replay
from offramp.tracing.facts import FACTS, HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)
LENS_FREE = ("hidden_cosine_to_final", "hidden_cosine_to_previous", "update_norm")


def run(model: Model, heads: Any, vocabulary: int = 61, **options: Any) -> Trace:
    settings = {"tokens": 1000, "context": 40, "progress": False} | options
    work = workload_of(lengths=LENGTHS, vocabulary=vocabulary)
    return trace(model, work, heads=heads, **settings)


def sequences_of(vocabulary: int) -> list[list[int]]:
    work = workload_of(lengths=LENGTHS, vocabulary=vocabulary)
    return [[int(word) for word in document.text.split()] for document in work.documents]


def states(model: Model, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs of every layer, float64 [exits, rows, features]."""
    pairs = [states_of(model, ids[:-1]) for ids in sequences_of(vocabulary)]
    before, after = (np.concatenate([pair[i] for pair in pairs], axis=1) for i in (0, 1))
    return before, after


def lens_states(heads: ExitHeads, after: np.ndarray) -> np.ndarray:
    """What the model's own norm takes: A h + b below L, and the network behind it, by hand."""
    seen = after.copy()
    for place, layer in enumerate(heads.exits):
        seen[layer - 1] = seen_by_hand(heads, place, after[layer - 1])
    return seen


def lens_logits(model: Model, heads: ExitHeads, after: np.ndarray) -> np.ndarray:
    """Logits by hand: through the lens, then the model's own norm, head and what follows it."""
    dtype = getattr(torch, model.dtype)
    with torch.no_grad():
        normed = model.hf.model.norm(torch.tensor(lens_states(heads, after)).to(dtype)).double()
        z: np.ndarray = (normed @ model.hf.lm_head.weight.double().t()).numpy()
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    return z if cap is None else cap * np.tanh(z / cap)


def classified(classifier: Classifier, place: int, x: np.ndarray) -> np.ndarray:
    """A classifier by hand in float64."""
    values = (x - classifier.mean[place]) / classifier.scale[place]
    for number, (weight, bias) in enumerate(zip(classifier.weights, classifier.biases, strict=True)):
        values = values @ weight[place].astype(float) + bias[place]
        if number + 1 < len(classifier.weights):
            values = np.maximum(values, 0)
    return 1 / (1 + np.exp(-values[:, 0]))


def head_facts(heads: ExitHeads, z: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """The facts of heads that were fitted at every exit, [rows, exits]."""
    exits, rows, _ = z.shape
    p = np.exp(log_softmax(z))
    ordered = np.sort(p, axis=-1)
    result = {name: np.ones((rows, exits)) for name in ALL_FACTS}
    assert heads.candidate_exit is not None
    chosen = np.argsort(-z[heads.candidate_exit - 1], axis=-1, kind="stable")[:, :CANDIDATES]
    then = np.exp(log_softmax(np.take_along_axis(z[heads.candidate_exit - 1], chosen, -1)))
    for place in range(exits - 1):
        for name in ("correctness", "correctness_network", "short_correctness", "convergence", "gate"):
            result[name][:, place] = classified(heads.classifiers[name], place, after[place])
        confidence = np.stack([ordered[place, :, -1], ordered[place, :, -1] - ordered[place, :, -2]], -1)
        result["adainfer"][:, place] = classified(heads.classifiers["adainfer"], place, confidence)
        now = np.take_along_axis(z[place], chosen, -1)
        share = np.exp(log_softmax(now))
        features = np.concatenate([now - now.max(-1, keepdims=True), share, share - then], -1)
        score = classified(heads.classifiers["candidate_score"], place, features)
        result["candidate_score"][:, place] = score if place + 1 > heads.candidate_exit else 0
    return result


def assert_lens_trace(found: Trace, model: Model, heads: ExitHeads, vocabulary: int) -> None:
    sequences = sequences_of(vocabulary)
    shortlist = range(min(SHORTLIST, vocabulary)) if heads.shortlist is None else np.sort(heads.shortlist)
    readings = readings_of(
        model,
        sequences,
        logits=lambda after: lens_logits(model, heads, after),
        seen=lambda after: lens_states(heads, after),
    )
    assert_facts(found, readings, following_of(sequences))
    assert_signals(found, readings.logits, readings.error, list(shortlist))
    (deviation,) = spread(model, lambda: (stacked_head_facts(model, heads, vocabulary),))
    exact = stacked_head_facts(model, heads, vocabulary)
    # A probability of a few units' slope is rounded in its own sums too.
    bound = DEVIATIONS * (deviation.max((1, 2), keepdims=True) + UNIT * np.sqrt(model.shape.hidden_size))
    for place, name in enumerate(ALL_FACTS):
        assert_within(found.fact(name), exact[place], bound[place], name)


def stacked_head_facts(model: Model, heads: ExitHeads, vocabulary: int) -> np.ndarray:
    """What fitted heads say, [facts, rows, exits]."""
    _, after = states(model, vocabulary)
    facts = head_facts(heads, lens_logits(model, heads, after), after)
    return np.stack([facts[name] for name in ALL_FACTS])


@pytest.mark.parametrize(
    ("family", "head_scale", "units"), [("llama", 20.0, 0), ("gemma2", 60.0, 0), ("llama", 20.0, 5)]
)
def test_a_lens_trace_equals_the_one_by_hand(family: str, head_scale: float, units: int) -> None:
    model = tiny_model(build_family(family), head_scale=head_scale)
    exits = range(1, model.layers)
    heads = random_heads(model, exits, candidate_exit=2, shortlist=[400, 5, 77, 3, 18, 211], mlp_units=units)
    found = run(model, heads, 503, signals="all")
    assert_lens_trace(found, model, heads, 503)
    request = found.provenance["request"]["heads"]
    assert request == {
        "fingerprint": heads.fingerprint,
        "lens": True,
        "output": False,
        "imported": False,
        "candidate_exit": 2,
        "documents": {"a workload": ["document 0", "document 1"]},
        "texts": False,
        "facts": sorted(ALL_FACTS),
        **({"mlp_units": units} if units else {}),
        "short_list": 6,
    }


def test_exit_l_and_the_hidden_states_are_those_without_heads() -> None:
    model = tiny_llama()
    heads = random_heads(model, [1, 2])
    found, plain = run(model, heads), run(model, None)
    for fact in FACTS:
        assert np.array_equal(found.fact(fact.name)[:, -1], plain.fact(fact.name)[:, -1]), fact.name
    for name in LENS_FREE:
        assert np.array_equal(found.fact(name), plain.fact(name)), name
    assert not np.allclose(found.max_prob[:, :-1], plain.max_prob[:, :-1])
    for fact in HEAD_FACTS:
        assert np.all(found.fact(fact.name)[:, -1] == 1), fact.name
    assert np.all(found.candidate_score[:, 0] == 0), "exit 1 is the candidate exit"


def test_heads_without_a_lens_leave_the_logit_facts_alone() -> None:
    model = tiny_llama()
    heads = random_heads(model, [1, 2], lens=False, facts=["correctness", "adainfer"])
    found, plain = run(model, heads), run(model, None)
    for fact in FACTS:
        assert np.array_equal(found.fact(fact.name), plain.fact(fact.name)), fact.name
    assert set(found.fact_names) == {fact.name for fact in FACTS} | {"correctness", "adainfer"}
    assert found.provenance["request"]["heads"]["candidate_exit"] is None


def test_a_model_of_several_streams_goes_through_a_lens_too() -> None:
    model = tiny_model(build_family("gemma3n_text"), head_scale=5.0)
    _, after = states_of(model, [1, 2, 3])
    exits = range(1, model.layers)
    heads = random_heads(model, exits, features=after.shape[-1], candidate_exit=1)
    heads = dataclasses.replace(heads, lens=dataclasses.replace(heads.lens, bias=0 * heads.lens.bias))
    identity = np.broadcast_to(np.eye(after.shape[-1], dtype=np.float32), heads.lens.weight.shape).copy()
    same = dataclasses.replace(heads, lens=dataclasses.replace(heads.lens, weight=identity))
    plain = run(model, None, 503)
    assert np.allclose(run(model, same, 503).max_prob, plain.max_prob, atol=1e-5)
    assert not np.allclose(run(model, heads, 503).max_prob[:, 0], plain.max_prob[:, 0], atol=1e-3)


@pytest.mark.parametrize("kind", [random_heads, random_output_heads])
def test_some_exits_of_the_file_and_rows_in_several_chunks(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0)
    heads = kind(model, range(1, model.layers))
    whole = run(model, heads, 503, signals="restricted")
    some = run(model, heads, 503, signals="restricted", exits="1,3")
    for name in whole.fact_names:
        assert np.array_equal(some.fact(name), whole.fact(name)[:, some.exits - 1]), name
    monkeypatch.setattr("offramp.tracing.group_measurer.BLOCK_ROWS", 40)
    monkeypatch.setattr("offramp.heads.output_head.BLOCK_ROWS", 16)
    parts = run(model, heads, 503, signals="restricted")
    for name in whole.fact_names:
        if name != "shuffled_logit_cosine":  # partners are of the same block
            np.testing.assert_allclose(parts.fact(name), whole.fact(name), atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", [random_heads, random_output_heads])
def test_a_path_and_its_content_give_the_same_trace(kind: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    heads = kind(model, [1, 2])
    write_heads(heads, tmp_path / "heads.safetensors")
    stored, held = run(model, tmp_path / "heads.safetensors"), run(model, heads)
    for name in held.fact_names:
        assert np.array_equal(stored.fact(name), held.fact(name)), name
    assert stored.provenance == held.provenance
    assert held.provenance["request"]["heads"]["output"] is (kind is random_output_heads)
    other = run(model, kind(model, [1, 2], seed=1))
    assert other.provenance["request_fingerprint"] != held.provenance["request_fingerprint"]


@pytest.mark.parametrize("own", [False, True])
def test_a_bfloat16_model_is_read_through_heads_in_float32_accuracy(own: bool) -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0, dtype="bfloat16")
    exits = range(1, model.layers)
    heads = random_output_heads(model, exits, bias=False) if own else random_heads(model, exits)
    found = run(model, heads, 503, signals=tuple(SIGNAL_FACTS))
    _, after = states(model, 503)
    for place in range(model.layers - 1):
        z = (own_logits if own else bfloat16_lens_logits)(model, heads, place, after[place])
        # A sum that falls on the other side of a rounding step moves a state by 2^-8 of it.
        assert np.mean(found.top1[:, place] == z.argmax(-1)) > 0.9
        off = np.abs(found.max_prob[:, place] - np.exp(log_softmax(z)).max(-1))
        assert np.median(off) < (1e-3 if own else 1e-4)
    plain = run(model, None, 503, signals=tuple(SIGNAL_FACTS))
    for fact in FACTS:
        if not (own and fact.name == "shuffled_logit_cosine"):  # by another sum than the Gram matrix's
            assert np.array_equal(found.fact(fact.name)[:, -1], plain.fact(fact.name)[:, -1]), fact.name


def bfloat16_lens_logits(model: Model, heads: ExitHeads, place: int, after: np.ndarray) -> np.ndarray:
    """Of one exit: the lens gives float32 numbers that the model's own norm takes in its dtype."""
    assert heads.lens is not None
    wide = torch.tensor(after).float() @ torch.tensor(heads.lens.weight[place]).t()
    rounded = (wide + torch.tensor(heads.lens.bias[place])).to(torch.bfloat16)
    normed = model.hf.model.norm(rounded).double()
    z: np.ndarray = (normed @ model.hf.lm_head.weight.double().t()).detach().numpy()
    return z


def own_logits(model: Model, heads: ExitHeads, place: int, after: np.ndarray) -> np.ndarray:
    """Of one exit with a head of its own: its norm is computed in float32, and both are given in bfloat16."""
    assert heads.output is not None
    wide = torch.tensor(after).float()
    root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-2)
    normed = (wide * root * torch.tensor(heads.output.norm_weight[place])).to(torch.bfloat16).double()
    weight = torch.tensor(heads.output.weight[place]).to(torch.bfloat16).double()
    z: np.ndarray = (normed @ weight.t()).numpy()
    return z


# -- an output head of its own for every exit


def by_hand(model: Model, heads: ExitHeads, vocabulary: int) -> tuple[Readings, np.ndarray]:
    """Readings from h -> norm -> W h + b at each exit and the model's own logits at L; the next tokens."""
    sequences = sequences_of(vocabulary)
    transform = model.stack.logit_scaling
    assert transform is not None

    def logits(after: np.ndarray) -> np.ndarray:
        below = [
            transform.apply(torch.tensor(output_logits(model, heads, place, after[exit - 1]))).numpy()
            for place, exit in enumerate(heads.exits)
        ]
        last = np.concatenate([logits_of(model, ids[:-1], [model.layers])[0] for ids in sequences])
        return np.stack([*below, last])

    return readings_of(model, sequences, (*heads.exits, model.layers), logits), following_of(sequences)


def assert_by_hand(found: Trace, model: Model, heads: ExitHeads, vocabulary: int) -> None:
    readings, following = by_hand(model, heads, vocabulary)
    assert_facts(found, readings, following)
    if "logit_gap" in found.fact_names:
        shortlist = list(range(min(SHORTLIST, vocabulary)))
        assert_signals(found, readings.logits, readings.error, shortlist)


@pytest.mark.parametrize("norm", ["model", "rms", "layer", "none"])
def test_a_trace_through_own_heads_equals_the_one_by_hand(norm: str) -> None:
    model = tiny_llama()
    heads = random_output_heads(model, [1, 2], norm=norm, bias=norm != "none")
    assert_by_hand(run(model, heads, signals="all"), model, heads, 61)


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_through_each_form_equals_the_one_by_hand(form: str) -> None:
    model = tiny_llama()
    heads = random_form(model, [1, 2], form)
    found = run(model, heads, signals="restricted")
    assert_by_hand(found, model, heads, 61)
    assert fitted_sizes(found) == sizes_of_heads(heads, mapped=False)
    # Parts of one exit alone, out of arrays of both or of one that they share.
    some = dataclasses.replace(
        heads, lens=heads.lens and heads.lens.chosen([1]), mlp=heads.mlp and heads.mlp.chosen([1])
    )
    rows = np.random.default_rng(0).normal(size=(3, model.shape.hidden_size))
    assert np.array_equal(seen_by_hand(some, 0, rows), seen_by_hand(heads, 1, rows))


@pytest.mark.parametrize(("family", "head_scale"), [("gemma2", 60.0), ("granite", 60.0), ("phi", 20.0)])
def test_what_the_model_does_to_its_logits_is_done_to_an_exits_too(family: str, head_scale: float) -> None:
    """A soft-cap, a divisor, and a head with a bias."""
    model = tiny_model(build_family(family), head_scale=head_scale)
    heads = random_output_heads(model, range(1, model.layers), norm="layer")
    assert_by_hand(run(model, heads, 503, signals="all"), model, heads, 503)


@pytest.mark.parametrize("kind", ["own", "the model's"])
def test_a_masked_vocabulary_is_masked_where_the_head_is_the_models(kind: Any) -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[[0, 7, 100, 301]] = -torch.inf
    heads = random_output_heads(model, range(1, model.layers), heads=kind)
    assert_by_hand(run(model, heads, 503), model, heads, 503)


def test_one_buffer_of_logits_serves_every_exit() -> None:
    from offramp.heads.at_work import HeadsAtWork
    from offramp.heads.output_head import LinearHead, StateShape, make_head
    from offramp.tracing.group_measurer import heads_below

    model = tiny_model(build_family("llama"))
    heads = random_output_heads(model, range(1, model.layers))
    shape = StateShape(-2, None, model.shape.hidden_size)
    head = make_head(model.stack, model.shape.vocabulary_size, shape, "eager")
    work = HeadsAtWork.of(heads, heads.exits, model.stack, head.device)
    below = heads_below(work, heads.exits, head, shape)
    assert len(below) == len(heads.exits)
    assert len({head.buffer.whole.data_ptr() for head in below if isinstance(head, LinearHead)}) == 1


def test_a_check_of_the_short_list_costs_as_many_columns_as_it_has() -> None:
    model = tiny_llama()
    usual, listed = (
        run(model, random_heads(model, [1, 2], facts=(), shortlist=tokens)) for tokens in (None, range(9))
    )
    hidden, vocabulary = model.shape.hidden_size, model.shape.vocabulary_size
    for unit, product, reduction in (("flops", 2 * hidden, 6), ("bytes", 4 * hidden, 8)):
        prices = costs_of(usual, unit), costs_of(listed, unit)
        saved = prices[0].probes["restricted head"] - prices[1].probes["restricted head"]
        assert saved == (product + reduction) * (vocabulary - 9)
        assert prices[0].probes["full head"] == prices[1].probes["full head"]


def test_a_check_costs_one_head_product_and_no_lens() -> None:
    """The bill of an exit with its own head is that of the model's head, since both are of one size."""
    model = tiny_llama()
    policy = "threshold:signal=margin,value=0.4,exits=1+2"
    plain, own = run(model, None), run(model, random_output_heads(model, [1, 2]))
    lens = run(model, random_heads(model, [1, 2], facts=()))
    assert costs_of(own, "bytes").probes == costs_of(plain, "bytes").probes
    assert costs_of(own, "bytes").exit_head == costs_of(plain, "bytes").exit_head
    assert costs_of(lens, "bytes").probes["full head"] > costs_of(own, "bytes").probes["full head"]
    result = replay(own, policy)
    costs, exits = costs_of(own, "bytes"), result.exits
    checks = np.minimum(exits, 2) * costs.probes["full head"]
    total = costs.overhead + costs.until_exit[exits - 1] + checks + np.where(exits == 3, costs.head, 0.0)
    assert result.breakdown.total == pytest.approx(total.sum())
    assert 0 < np.mean(exits < 3) < 1


# -- refused


def changed(heads: ExitHeads, **changes: Any) -> ExitHeads:
    return dataclasses.replace(heads, **changes)


def with_nan(heads: ExitHeads) -> ExitHeads:
    assert heads.lens is not None
    weight = heads.lens.weight.copy()
    weight[0, 0, 0] = np.nan
    return changed(heads, lens=dataclasses.replace(heads.lens, weight=weight))


def of_fewer_exits(heads: ExitHeads) -> ExitHeads:
    assert heads.lens is not None
    return changed(heads, lens=dataclasses.replace(heads.lens, bias=heads.lens.bias[:1]))


def of_another_model(heads: ExitHeads) -> ExitHeads:
    return changed(heads, model={**heads.model, "name": "another", "fingerprint": "f" * 64})


def of_more_layers(heads: ExitHeads) -> ExitHeads:
    return changed(heads, model={**heads.model, "layers": 1_000})


def of_an_unknown_fact(heads: ExitHeads) -> ExitHeads:
    return changed(heads, classifiers={"magic": heads.classifiers["correctness"]}, candidate_exit=None)


def of_confidences(heads: ExitHeads) -> ExitHeads:
    return changed(heads, classifiers={"adainfer": heads.classifiers["correctness"]}, candidate_exit=None)


def with_a_token_too_many(heads: ExitHeads) -> ExitHeads:
    return changed(heads, shortlist=np.array([3, 61], dtype=np.int32))


def of_another_size(heads: ExitHeads) -> ExitHeads:
    return random_heads(tiny_llama(), heads.exits, features=16)


def of_a_smaller_vocabulary(heads: ExitHeads) -> ExitHeads:
    own = random_output_heads(tiny_llama(), heads.exits)
    assert own.output is not None
    output = dataclasses.replace(own.output, weight=own.output.weight[:, :60], bias=own.output.bias[:, :60])
    return changed(own, output=output)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (with_nan, "lens.weight holds a number that is not finite"),
        (of_fewer_exits, "lens.bias is of 1 exits, not of 2"),
        (of_another_model, "fitted on another"),
        (of_more_layers, "their model has 1,000 layers, and this one has"),
        (of_an_unknown_fact, "a fact that is not known: magic"),
        (of_confidences, "adainfer takes 32 numbers per token, and this model gives 2"),
        (with_a_token_too_many, "names tokens beyond the 61"),
        (of_another_size, "takes 16 numbers per token, and this model gives 32"),
        (of_a_smaller_vocabulary, "their output heads are of 60 tokens, and this model of 61"),
    ],
)
def test_heads_that_do_not_fit_are_refused(spoil: Any, what: str, tmp_path: Path) -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match=what) as caught:
        run(model, spoil(random_heads(model, [1, 2])), output=tmp_path / "trace")
    assert "offramp heads fit" in caught.value.fix
    assert not (tmp_path / "trace").exists()


def test_a_model_whose_logits_are_more_than_a_head_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    odd = dataclasses.replace(model, stack=dataclasses.replace(model.stack, readout_kind="stub"))
    with pytest.raises(InputError, match="cannot have output heads of their own"):
        run(odd, random_output_heads(model, [1, 2]), output=tmp_path / "trace")
    assert not (tmp_path / "trace").exists()


def test_an_exit_that_the_heads_were_not_fitted_at_is_refused() -> None:
    model = tiny_model(llama(num_hidden_layers=5), head_scale=3.0)
    heads = random_heads(model, [2, 4], candidate_exit=2)
    with pytest.raises(InputError, match="not fitted at exit 1; they have: 2, 4") as caught:
        run(model, heads)
    assert caught.value.fix == 'trace their exits only: exits="2,4" (--exits 2,4)'
    assert run(model, heads, exits="2,4").exits.tolist() == [2, 4, 5]
    with pytest.raises(InputError, match="candidate tokens from exit 2, which is not traced"):
        run(model, heads, exits="4")
