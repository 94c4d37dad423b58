"""Who serves: certified or said not to be, the cut head beside a short list, ladders in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slow_server import documents

import offramp
from offramp.serving.contenders import contenders_of
from offramp.serving.simulator import Demand, answers_of
from offramp.tuning.tuned import Tuned, write_tuned
from policy_traces import make_shape, make_trace

STATIC = "static:exit=4"


@pytest.fixture(scope="module")
def trace() -> offramp.Trace:
    return make_trace(tokens=6000, documents=300, exits=[2, 4, 6], shape=make_shape(6, head=60_000))


@pytest.fixture(scope="module")
def tuned(trace: offramp.Trace) -> Tuned:
    return offramp.tune(trace, {"agreement": 0.5}, hardware="h100")


def test_a_certificate_is_named_and_what_has_none_too(
    trace: offramp.Trace, tuned: Tuned, tmp_path: Path
) -> None:
    file = tmp_path / "policy.json"
    write_tuned(file, tuned)
    plain, certified, other, ladder = contenders_of(
        trace, [str(file), STATIC], offramp.Ladder([(0, "never"), (5, str(file))])
    )
    assert (plain.certificate, other.certificate) == ("full depth", "not certified")
    assert certified.certificate == "certified for 50 %"
    assert certified.rungs[0].promise == pytest.approx(0.5)
    assert other.rungs[0].promise == pytest.approx(other.rungs[0].loss)
    assert ladder.certificate.startswith("from 0: full depth, from 5: certified for 50 %; rung by rung")
    assert ladder.text == f"0:never,5:{tuned.policy}"


def test_a_policy_given_twice_is_refused(trace: offramp.Trace) -> None:
    with pytest.raises(offramp.InputError, match=f"the policy {STATIC} is given twice"):
        contenders_of(trace, [STATIC, "never", offramp.parse_policy(STATIC)])


def test_kv_that_rows_cannot_do_is_refused(tuned: Tuned, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    certificate = replace(tuned.certificate, kv="recompute")
    write_tuned(file, replace(tuned, kv="recompute", certificate=certificate))
    with pytest.raises(offramp.OfframpError, match="tuned with K and V by recompute"):
        offramp.load("nowhere", policy=str(file))


def test_losses_are_those_of_a_replay(trace: offramp.Trace) -> None:
    rung = contenders_of(trace, [STATIC])[1].rungs[0]
    assert rung.loss == pytest.approx(1.0 - offramp.replay(trace, STATIC).agreement)
    assert rung.stops == (4,)
    assert (rung.exits == 4).all()


def test_a_policy_that_reads_a_short_list_stands_beside_the_cut_head() -> None:
    draw = np.random.default_rng(0)
    names = ("restricted_max_prob", "restricted_margin")
    facts = {name: draw.random((60, 6)).astype(np.float32) for name in names}
    facts["restricted_top1"] = draw.integers(0, 9, (60, 6)).astype(np.int32)
    short = make_trace(**facts)
    found = contenders_of(short, [f"shortlist:policy=[{STATIC}]", "shortlist:policy=[never],at=all", STATIC])
    assert [one.role for one in found] == ["plain", "short list", "policy", "policy"]
    assert [one.without_exits for one in found] == [True, True, False, False]
    ladder = offramp.Ladder([(0, "static:exit=5"), (3, f"shortlist:policy=[{STATIC}]")])
    with pytest.raises(offramp.InputError, match="different heads"):
        contenders_of(short, [], ladder)


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ("oracle:which=first_match", "looks at what no decoder knows"),
        ("monotone:policy=[threshold:signal=max_prob,value=0.5,exits=2+4]", "remembers earlier tokens"),
    ],
)
def test_policies_that_no_server_can_have(policy: str, what: str) -> None:
    with pytest.raises(offramp.OfframpError, match=what):
        offramp.load("nowhere", policy=policy)


def test_answers_are_stretches_of_whole_documents() -> None:
    text = np.array([[0.0, 0.0], [0.6, 0.5], [0.99, 0.99]])
    demand = Demand(np.arange(3.0), np.ones(3, dtype=np.int64), np.array([2, 4, 3]), text)
    first, second, third = answers_of(documents([3, 4]), demand)
    assert (first.tolist(), second.tolist(), third.tolist()) == ([0, 1], [5, 6, 3, 4], [6, 3, 4])


def test_a_ladder_reads_back() -> None:
    text = "0:never,8:threshold:signal=max_prob,value=0.5,exits=2+4"
    ladder = offramp.Ladder.read(text)
    assert str(ladder) == text
    assert repr(ladder) == f"Ladder({text})"
    assert [queue for queue, _ in ladder.rungs] == [0, 8]
