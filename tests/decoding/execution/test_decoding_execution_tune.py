"""`offramp.tune` with tiny models: what is certified is what decodes, alone and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execution_cases import (
    POLICY,
    NumberTokenizer,
    agreeable,
    agreeable_llama,
    best_tokens,
    decoded_alone,
    llama,
    options_of,
    texts,
    tiny_model,
    traced,
    workload_of,
)
from generation_cases import generate_batch
from map_cases import maps_for

import offramp
from offramp.decoding.execution.executor import opened_executor
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.openings import Opening
from offramp.errors import InputError
from offramp.policies.charge import prices_for, prices_of_answers
from offramp.policies.cost_breakdown import lines_of
from offramp.policies.grammar import parse_policy
from offramp.tracing.tracer import trace
from offramp.tuning.bounds import METHODS, settle
from offramp.tuning.splits import split_roles
from offramp.tuning.tuned import Tuned

FLOOR = {"agreement": 0.8}
SIZES: dict[str, Any] = {"prompt_tokens": 6, "new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the executions of `tuned` are."""
    return tmp_path_factory.mktemp("tuned") / "executions"


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Tuned:
    model, found, work = traced(40, 100)
    return offramp.tune(found, FLOOR, None, model, workload=work, folder=folder, **SIZES)


def test_the_certificate_is_that_of_the_naive_loop(tuned: Tuned) -> None:
    model, found, work = traced(40, 100)
    certificate = tuned.certificate
    assert certificate.holds
    assert certificate.executed
    assert (certificate.prompt_tokens, certificate.new_tokens) == (6, 6)
    assert certificate.stopped_after is not None
    # The certify documents of the trace in their order, then untraced ones: one prompt at a time.
    by_id = {document.id: document.text for document in work.documents}
    first = [found.documents[int(place)].id for place in split_roles(found, 0).certify]
    losses = []
    options = options_of(tuned.policy, tuned.kv)
    for name in first[: certificate.stopped_after]:
        opening = Opening(name, tuple(model.encode(by_id[name])[:6]), True)
        answer = decoded_alone(model, opening, options, 6).tokens
        losses.append(1 - np.equal(best_tokens(model, opening.ids, answer), answer)[1:].mean())
    assert certificate.stopped_after <= len(first)
    ended = settle(np.array(losses), 0.2, 0.1, certificate.documents)
    assert ended == ("certified", certificate.stopped_after)
    assert certificate.empirical_risk == pytest.approx(np.mean(losses))
    assert f"certified after {certificate.stopped_after} documents" in tuned.answer


def test_candidates_of_several_strategies_are_told_apart(tuned: Tuned) -> None:
    strategies = {one.kv for one in tuned.candidates}
    assert "speculate" in strategies
    assert strategies & {"propagate", "recompute", "monotone"}
    assert all(one.predicted_speed > 1.0 for one in tuned.candidates[:-1])
    assert tuned.executed_agreement is not None
    assert tuned.executed_agreement.low is not None
    assert tuned.net_speedup.value is not None


def test_the_fresh_documents_are_others_than_the_certificates(tuned: Tuned) -> None:
    model, found, work = traced(40, 100)
    seen = max(one.documents for one in tuned.candidates)
    with opened_executor(
        model, found, kv="auto", heads=None, workload=work, folder=None, seed=0, **SIZES
    ) as executor:
        fresh = executor.fresh_losses(tuned.policy, tuned.kv, seen, 32)
        report = [opening.document for opening in executor.openings.report]
        certify = [opening.document for opening in executor.openings.certify]
        assert len(fresh) == 32
        assert tuple(executor.certified_on(seen)) == tuple(certify[:seen])
        assert not set(report) & set(certify)
        alone = executor.losses(tuned.policy, tuned.kv, seen, seen + 32 - len(report))
        assert np.array_equal(fresh[len(report) :], alone)
        # Groups do not depend on which documents are asked for: they are not decoded again.
        some, made = executor.losses(tuned.policy, tuned.kv, 0, 24), executor.store.made
        assert np.array_equal(executor.losses(tuned.policy, tuned.kv, 3, 13), some[3:13])
        assert executor.store.made == made
    assert tuned.executed_agreement is not None
    assert tuned.executed_agreement.value == pytest.approx(1 - fresh.mean())


@pytest.mark.parametrize(
    ("policy", "kv"),
    [
        (POLICY, "propagate"),
        ("static:exit=2", "recompute"),
        ("shortlist:policy=[threshold:signal=restricted_margin,value=0.05,exits=1+2]", "propagate"),
        (f"monotone:policy=[{POLICY}]", "monotone"),
    ],
)
def test_the_price_of_a_decoded_answer_is_that_of_what_ran(policy: str, kv: str) -> None:
    """By where its tokens left, and by the items that its decoding counted."""
    model, found, work = traced(40, 60)
    rule, at = parse_policy(policy), prices_for(found, None, kv)
    with opened_executor(
        model, found, kv=kv, heads=None, workload=work, folder=None, seed=0, **SIZES
    ) as executor:
        exits = executor.exits(rule, kv, 8)
        openings = executor.openings.certify[:8]
    assert any(exit < model.layers for left in exits for exit in left)
    by_exits = prices_of_answers(found, rule, kv, exits, at)
    for price, opening, left in zip(by_exits, openings, exits, strict=True):
        prompt = prompt_batch(model, [list(opening.ids)], chat=False)
        ran = generate_batch(model, prompt.ids, policy=rule, kv=kv, max_new_tokens=6)
        assert ran.rows[0].exits.tolist() == list(left)
        paid = sum(line.total for line in lines_of(ran.usage, at)) / (len(left) - 1)
        assert price == pytest.approx(paid / at(1).plain)


@pytest.mark.parametrize("mapped", [False, True])
def test_maps_are_tried_before_other_strategies(*, mapped: bool) -> None:
    """Reruns end when their time is used up."""
    model, found, work = traced(40, 100)
    heads = maps_for(model) if mapped else None
    with opened_executor(
        model, found, kv="auto", heads=heads, workload=work, folder=None, seed=0, **SIZES
    ) as executor:
        able = [kv for kv in executor.strategies if executor.can(parse_policy("static:exit=1"), kv)]
    assert able[0] == ("mapped" if mapped else "propagate")
    assert set(able) > {"propagate", "recompute"}


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_one_strategy_alone_can_be_asked_for(kv: str) -> None:
    model, found, work = traced(40, 100)
    tuned = offramp.tune(found, {"agreement": 0.5}, None, model, kv=kv, workload=work, **SIZES)
    assert {one.kv for one in tuned.candidates} <= {kv, "speculate"}
    if not tuned.plain:
        assert tuned.kv == tuned.certificate.kv == kv


def test_executions_are_kept_and_not_made_again(folder: Path, tuned: Tuned) -> None:
    model, found, work = traced(40, 100)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(written) > 3
    assert offramp.tune(found, FLOOR, None, model, workload=work, folder=folder, **SIZES) == tuned
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == written


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2].split(":")
from execution_cases import traced
import offramp
model, found, work = traced(40, 100)
print("ready", flush=True)
offramp.tune(found, {"agreement": 0.8}, None, model, workload=work, folder=Path(sys.argv[1]),
             prompt_tokens=6, new_tokens=6)
"""


@pytest.mark.slow
def test_a_certificate_that_was_killed_goes_on_to_the_same_answer(
    tmp_path: Path, folder: Path, tuned: Tuned
) -> None:
    """What the killed process had kept is what this one makes, byte for byte, and is not made again."""
    killed = tmp_path / "executions"
    command = [sys.executable, "-c", SCRIPT, str(killed), ":".join(sys.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while process.poll() is None and len(list(killed.glob("[!.]*.json"))) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in killed.glob("[!.]*.json")}
    assert len(kept) >= 2
    model, found, work = traced(40, 100)
    resumed = offramp.tune(found, FLOOR, None, model, workload=work, folder=killed, **SIZES)
    assert resumed == tuned
    made = {path.name: path.read_bytes() for path in killed.glob("[!.]*.json")}
    assert kept.keys() < made.keys()
    assert made == {path.name: path.read_bytes() for path in folder.glob("[!.]*.json")}
    assert all((killed / name).stat().st_mtime_ns == written for name, written in kept.items())
    assert not list(killed.glob(".writing-*"))


def test_answers_of_a_generation_workload_are_certified_from_whole_prompts() -> None:
    tokenizer = NumberTokenizer(chat=True)
    hf = llama(num_hidden_layers=4)
    model = tiny_model(hf, name="answers", head_scale=3.0, change=agreeable, tokenizer=tokenizer)
    work = workload_of(mode="generation", chat=True, lengths=(6, 8, 7, 9) * 20, vocabulary=58)
    found = trace(model, work, tokens=8 * 40, document_tokens=8, progress=False)
    tuned = offramp.tune(found, {"agreement": 0.6}, None, model, workload=work, new_tokens=6)
    assert tuned.certificate.executed
    assert tuned.certificate.prompt_tokens is None
    assert "from whole prompts drawn like those of numbers" in tuned.certificate.assumption
    assert tuned.certificate.stopped_after is not None


def test_too_few_prompts_and_no_time_are_said() -> None:
    model, found, work = traced(40, 100)
    few = offramp.tune(found, {"agreement": 0.99}, None, model, workload=work, **SIZES)
    available = 24 + 60  # certify documents of the trace, and what was not traced
    assert few.answer.startswith(
        f"not certifiable: {available} documents, 230 needed (at hand to certify on)"
    )
    late = offramp.tune(found, FLOOR, None, model, workload=work, seconds=1e-6, **SIZES)
    assert late.answer.startswith("inconclusive: the time was used up before anything with exits was decoded")
    limited = offramp.tune(found, FLOOR, None, model, workload=work, documents=5, **SIZES)
    assert limited.answer.startswith("not certifiable: 5 documents, 11 needed (as many as were allowed)")


def test_other_floors_are_replay_bounds_though_a_model_is_at_hand(tmp_path: Path) -> None:
    model, found, work = traced(40, 100)
    tuned = offramp.tune(found, {"kl": 0.9}, None, model, clip=2.0, workload=work, folder=tmp_path / "x")
    assert not tuned.certificate.executed
    assert tuned.executed_agreement is None
    assert not (tmp_path / "x").exists()


def test_without_a_model_it_is_a_replay_bound() -> None:
    _, found, _ = traced(40, 100)
    tuned = offramp.tune(found, FLOOR, None)
    assert not tuned.certificate.executed
    assert (tuned.kv, tuned.executed_agreement, tuned.candidates) == ("propagate", None, ())
    if not tuned.plain:
        assert "This is a replay bound" in tuned.answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": 0}, "must be at least 1"),
        ({"kv": "speculate"}, "speculate is lossless"),
        ({"batch": 2}, "not a batch of 2"),
        ({"prompt_tokens": 95}, "do not leave room"),
        ({"workload": texts(99)}, "not those that were traced"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    model, found, work = traced(40, 100)
    with pytest.raises(InputError, match=message):
        offramp.tune(found, FLOOR, None, model, **{"workload": work, **SIZES, **options})


def test_another_model_dtype_or_heads_are_refused() -> None:
    model, found, work = traced(40, 100)
    with pytest.raises(InputError, match="the trace is of another model"):
        offramp.tune(found, FLOOR, None, agreeable_llama(eos=2), workload=work, **SIZES)
    with pytest.raises(InputError, match="of this model in float32, not in bfloat16"):
        offramp.tune(found, FLOOR, None, replace(model, dtype="bfloat16"), workload=work, **SIZES)
    heads = {"fingerprint": "h", "lens": False, "documents": {}}
    with_heads = found.subset(np.arange(40))
    with_heads.provenance = {**found.provenance, "request": {**found.request, "heads": heads}}
    with pytest.raises(InputError, match="comes with its exit heads"):
        offramp.tune(with_heads, FLOOR, None, model, workload=work, **SIZES)
    with pytest.raises(InputError, match="nope does not exist"):  # nothing is decoded with them
        offramp.tune(found, FLOOR, None, heads="nope")


NO_TORCH = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from tuning_traces import easy_and_hard
import offramp
tuned = offramp.tune(easy_and_hard(60), {"agreement": 0.9}, "h100")
assert not tuned.plain, tuned.answer
assert "torch" not in sys.modules
"""


def test_without_a_model_torch_is_not_imported() -> None:
    rooms = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "tuning"), *sys.path]
    subprocess.run([sys.executable, "-c", NO_TORCH, ":".join(rooms)], check=True, timeout=120)


def test_methods_without_bets_decode_all_that_is_planned() -> None:
    model, found, work = traced(40, 100)
    tuned = offramp.tune(found, FLOOR, None, model, method="hb", documents=20, workload=work, **SIZES)
    tested = [one for one in tuned.candidates if one.documents]
    assert tested
    assert {one.documents for one in tested} == {20}
    assert METHODS["hb"].needed(0.2, 0.1) <= 20
