"""A rerun in one parallel forward against forced decoding, one token at a time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from map_cases import maps_for
from reading_cases import random_heads
from strategy_cases import agreeable, build_windowed, llama, tiny_model
from tracing_models import NumberTokenizer, workload_of

import offramp
from offramp.decoding.rerun.parallel import greedy_tokens, require_finite
from offramp.decoding.rerun.rerunner import Rerunner
from offramp.decoding.rerun.trace_sequences import require_model, traced_sequences
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.policies.decisions import replay_decisions
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload
from tiny_models import write_llama

LAYERS = 5
LENGTHS = (30, 12, 21, 30, 2)
SHORT_HEAD = "shortlist:policy=[threshold:signal=restricted_margin,value=0.05,exits=1+3],at=all"
THRESHOLD = "threshold:signal=max_prob,value=0.5,exits=1+2+3+4"
COSINE = "threshold:signal=hidden_cosine,value=0.9,exits=2+3"
LOOKING_BACK = "threshold:signal=kl_to_previous,value=0.5,exits=1+2+4"
SHORT = "shortlist:policy=[threshold:signal=restricted_margin,value=0.05,exits=1+3]"
PASSES = "[threshold:signal=max_prob,value=0.3,exits=3+4]"
FILTERED = f"filtered:signal=hidden_cosine,value=0.9,exit=2,policy={PASSES}"
DECAYING = "decaying:signal=max_prob,value=0.3,length=8,exits=1+2+4"
PATIENCE = "patience:times=1,exits=1+2+3+4"
ADAPTIVE = "adaptive:signal=max_prob,target=0.2,warmup=2,exits=1+2+3"


@functools.cache
def model(bos: int | None = None) -> Model:
    hf = llama(num_hidden_layers=LAYERS)
    return tiny_model(hf, tokenizer=NumberTokenizer(bos=bos), head_scale=3.0, change=agreeable)


@functools.cache
def texts(bos: int | None = None, context: int = 64) -> Trace:
    work = workload_of(lengths=LENGTHS)
    return offramp.trace(
        model(bos), work, tokens=sum(LENGTHS), signals="all", context=context, progress=False
    )


def forced(
    model: Model,
    trace: Trace,
    policy: str,
    kv: str,
    prompt: int = 1,
    workload: Any = None,
    heads: Any = None,
) -> Any:
    """Exits and outputs of every row by forced decoding; rows before the first new token keep L."""
    exits = np.full(trace.token_count, model.layers)
    top1 = trace.top1[:, -1].astype(np.int64).copy()
    for sequence in traced_sequences(model, trace, workload):
        first = max(1, sequence.first_row, prompt)
        if first >= sequence.length:
            continue
        found = offramp.generate(
            model,
            torch.tensor([sequence.ids[:first]]),
            policy=policy,
            kv=kv,
            heads=heads,
            force_tokens=[[*sequence.ids[first:], sequence.next_token]],
        )
        # The first new token comes out of the prompt, whose last position may be a row too.
        rows = sequence.rows[max(first - 1 - sequence.first_row, 0) :]
        exits[rows], top1[rows] = found.exits[-len(rows) :], found.chosen[-len(rows) :]
    return exits, top1


@pytest.mark.parametrize(("bos", "prompt"), [(None, 1), (0, 6)])
@pytest.mark.parametrize(
    ("policy", "kv"),
    [
        *(
            (policy, "propagate")
            for policy in (
                THRESHOLD,
                COSINE,
                LOOKING_BACK,
                SHORT,
                FILTERED,
                DECAYING,
                PATIENCE,
                ADAPTIVE,
                SHORT_HEAD,
            )
        ),
        *((policy, "recompute") for policy in ("static:exit=2", THRESHOLD, ADAPTIVE, SHORT_HEAD)),
    ],
)
def test_a_rerun_is_forced_decoding(policy: str, kv: str, bos: int | None, prompt: int) -> None:
    found = offramp.rerun(model(bos), texts(bos), policy, kv, prompt_tokens=prompt)
    exits, top1 = forced(model(bos), texts(bos), policy, kv, prompt)
    assert found.exits.tolist() == exits.tolist()
    assert found.top1.tolist() == top1.tolist()
    if policy != "static:exit=2":
        assert len(set(exits[found.decided].tolist())) > 1


@pytest.mark.parametrize("policy", ["static:exit=2", SHORT, SHORT_HEAD])
def test_what_leaves_through_a_short_head_is_priced_with_it(policy: str) -> None:
    decisions = offramp.rerun(model(), texts(), policy, "propagate").decisions
    expected = replay_decisions(offramp.parse_policy(policy), texts())
    some = decisions.at_rows(np.arange(3))
    for final in (False, True):
        assert decisions.head(final=final) == some.head(final=final) == expected.head(final=final)


@pytest.mark.parametrize(
    ("policy", "bos"),
    [(THRESHOLD, None), (THRESHOLD, 0), (SHORT_HEAD, None), (PATIENCE, 0), (ADAPTIVE, None)],
)
def test_mapped_states_are_carried_as_decoding_carries_them(policy: str, bos: int | None) -> None:
    heads = maps_for(model(bos), scale=0.5)
    found = offramp.rerun(model(bos), texts(bos), policy, "mapped", heads=heads)
    exits, top1 = forced(model(bos), texts(bos), policy, "mapped", heads=heads)
    assert found.exits.tolist() == exits.tolist()
    assert found.top1.tolist() == top1.tolist()
    if policy == THRESHOLD:  # others may leave too seldom for it to show
        propagated = offramp.rerun(model(bos), texts(bos), policy)
        assert found.top1.tolist() != propagated.top1.tolist()


def test_how_each_was_had() -> None:
    def how(policy: str, kv: str) -> str:
        return offramp.rerun(model(), texts(), policy, kv).how

    assert how(THRESHOLD, "propagate") == "one parallel forward"
    assert how(ADAPTIVE, "propagate") == "forced decoding"
    assert how(THRESHOLD, "recompute") == "replay, exact K and V"
    assert how("static:exit=2", "monotone") == "replay, exact K and V"


def test_the_figures_are_those_of_the_rows() -> None:
    trace = texts()
    found = offramp.rerun(model(), trace, THRESHOLD, prompt_tokens=4)
    agrees = found.top1 == trace.top1[:, -1]
    # The last document has one row: it runs whole, and what it predicts is new all the same.
    answered = (trace.position >= 3) | (trace.document == len(LENGTHS) - 1)
    assert found.answered.tolist() == answered.tolist()
    assert found.decided.tolist() == (trace.position >= 4).tolist()
    assert found.agreement == agrees[answered].mean()
    assert found.skip_ratio == pytest.approx(1 - found.exits[trace.position >= 4].mean() / LAYERS)
    assert (found.exits[trace.position < 4] == LAYERS).all()
    assert found.drift is not None
    replayed = offramp.replay(trace, THRESHOLD)
    decided = trace.position >= 4
    assert found.drift.exits_moved == np.mean(replayed.exits[decided] != found.exits[decided])
    assert found.drift.tokens_changed > 0  # else nothing here would tell propagate from exact K and V


def test_speculation_is_lossless_and_leaves_where_drafts_do() -> None:
    found = offramp.rerun(model(), texts(), THRESHOLD, "speculate")
    assert found.agreement == 1.0
    assert (found.exits < LAYERS).any()


def test_a_document_longer_than_its_context_begins_anew() -> None:
    trace = texts(None, 8)
    found = offramp.rerun(model(), trace, "static:exit=2")
    assert found.exits.tolist() == np.where(trace.position == 0, LAYERS, 2).tolist()
    exits, top1 = forced(model(), trace, "static:exit=2", "propagate")
    assert found.top1.tolist() == top1.tolist()
    assert found.exits.tolist() == exits.tolist()


def test_prompts_are_read_again_from_their_workload() -> None:
    work = workload_of("1 2 3 4 5 6", "9 8 7", "4 4 4 4 4 4 4 4 4", mode="generation")
    trace = offramp.trace(model(), work, tokens=24, document_tokens=8, progress=False)
    found = offramp.rerun(model(), trace, THRESHOLD, workload=work)
    exits, top1 = forced(model(), trace, THRESHOLD, "propagate", workload=work)
    assert found.exits.tolist() == exits.tolist()
    assert found.top1.tolist() == top1.tolist()
    assert found.decided.all()
    other = Workload("numbers", "generation", work.documents[:2], licence="none", source="a test")
    with pytest.raises(offramp.InputError, match="not those that were traced"):
        offramp.rerun(model(), trace, THRESHOLD, workload=other)


def test_policies_share_what_none_of_them_touches() -> None:
    """With states of the first layers shared, and in any order, each policy comes out as alone."""
    together = Rerunner(model(), texts())
    for policy in ("static:exit=4", THRESHOLD, COSINE, "static:exit=2", "static:exit=4"):
        alone = offramp.rerun(model(), texts(), policy)
        shared = together.run(policy)
        assert shared.exits.tolist() == alone.exits.tolist()
        assert shared.top1.tolist() == alone.top1.tolist()


@pytest.mark.parametrize("signal", ["candidate_score", "kl_to_previous"])
def test_what_compares_with_an_earlier_check_is_read_anew(signal: str) -> None:
    heads = random_heads(model(), (1, 2, 3, 4), candidate_exit=1)
    work = workload_of(lengths=LENGTHS)
    trace = offramp.trace(
        model(), work, tokens=sum(LENGTHS), signals="all", heads=heads, context=64, progress=False
    )
    together, exits = Rerunner(model(), trace, heads=heads), set()
    for value in (0.5, 0.2, 0.8):
        policy = f"threshold:signal={signal},value={value},exits=1+2+4"
        alone = offramp.rerun(model(), trace, policy, heads=heads)
        shared = together.run(policy)
        assert shared.how == "one parallel forward"
        assert shared.exits.tolist() == alone.exits.tolist()
        exits |= set(shared.exits.tolist())
    assert len(exits) > 1


def test_shared_states_save_layers() -> None:
    runs = Rerunner(model(), texts())
    counted: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: counted.append(index))
        for index, layer in enumerate(model().stack.layers)
    ]
    try:
        runs.run("threshold:signal=margin,value=0.99,exits=4")
        first = len(counted)
        runs.run("threshold:signal=margin,value=0.98,exits=4")
    finally:
        for handle in handles:
            handle.remove()
    batches = len(runs.batches)
    assert first == LAYERS * batches
    assert len(counted) - first == batches  # only the layer behind the exit


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "deepseek_v3", "mamba", "jamba"])
def test_families(name: str) -> None:
    policy = "threshold:signal=margin,value=0.05,exits=1+2"
    family = tiny_model(build_windowed(name), name=name, head_scale=3.0)
    work = workload_of(lengths=(17, 11, 17), vocabulary=50)
    trace = offramp.trace(family, work, tokens=45, context=48, progress=False)
    found = offramp.rerun(family, trace, policy)
    exits, top1 = forced(family, trace, policy, "propagate")
    assert found.how == "one parallel forward"
    assert found.exits.tolist() == exits.tolist()
    assert found.top1.tolist() == top1.tolist()


def test_a_trace_of_another_model_is_refused() -> None:
    with pytest.raises(offramp.InputError, match="another model"):
        offramp.rerun(tiny_model(llama(), name="other"), texts(), "never")


@pytest.mark.parametrize(
    ("policy", "options", "what"),
    [
        ("never", {"prompt_tokens": 0}, "prompt tokens must be at least 1, not 0"),
        ("oracle:kind=saturation", {}, "oracle"),
        ("static:exit=9", {}, "exit 9"),
        ("static:exit=2", {"kv": "mapped"}, "--kv-maps 2"),
    ],
)
def test_what_cannot_be_rerun_is_refused(policy: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(offramp.InputError, match=what):
        offramp.rerun(model(), texts(), policy, **options)


def test_a_logit_that_is_not_finite_is_an_error() -> None:
    chosen = greedy_tokens(
        torch.tensor([[-torch.inf, 1.0, 2.0], [0.0, 1.0, torch.nan], [0.0, torch.inf, 1.0]])
    )
    assert chosen.tolist() == [2, -1, -1]
    assert require_finite(chosen[:1]).tolist() == [2]
    with pytest.raises(offramp.OfframpError, match="not finite"):
        require_finite(chosen)


def test_a_model_that_changed_since_its_trace_is_told_from_another(tmp_path: Path) -> None:
    """The advice names the text that was traced."""
    model = offramp.load_model(write_llama(tmp_path / "m"))
    found = offramp.trace(model, workload_of(lengths=(9, 9)), tokens=10, progress=False)
    write_llama(tmp_path / "m", rms_norm_eps=1e-3)
    other = offramp.load_model(write_llama(tmp_path / "other", num_hidden_layers=3))
    for now, what in (
        (offramp.load_model(tmp_path / "m"), "changed since it was traced"),
        (other, "the trace is of another model, m"),
    ):
        with pytest.raises(InputError, match=what) as refused:
            require_model(now, found)
        assert f"--workload {found.request['workload']['name']}" in refused.value.fix
