"""Intervals of a replay: the replay's own figures, and the draws that the tuner's measuring makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import offramp
from offramp.costs.machine_registry import find_machine
from offramp.costs.probes import PROBES
from offramp.costs.token import TokenCosts
from offramp.errors import InputError
from offramp.kit.typed import InvalidRecordError, from_json, to_json
from offramp.models.shape import ModelShape
from offramp.policies.grammar import parse_policy
from offramp.policies.prices import costs_of, exit_costs
from offramp.policies.replay import ReplayFigures, ReplayIntervals, replay, replay_intervals
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from offramp.tracing.manifest import DocumentRecord
from offramp.tracing.trace import Trace
from offramp.tuning.floor import make_floor
from offramp.tuning.held_out import TUNED_DRAWS, measure
from offramp.tuning.pricing import pricing_of
from policy_traces import UNTIMED, make_trace, timed

# Four layers of 100, 110, 120, 130; repair 10 each; head 1000; a probe is the head and 7 for the reductions.
PRICED = dict.fromkeys(PROBES, 1.0) | {"full head": 1007.0}
LAYERS = np.array([100.0, 110.0, 120.0, 130.0])
COSTS = TokenCosts("seconds", LAYERS, 1000.0, 1000.0, PRICED, np.full(4, 10.0))


class ByHand:
    """A machine with these prices of a step of one row."""

    name, source, kind = "by hand", "here", "timings"

    def token_costs(self, shape: ModelShape, position: float, **asked: Any) -> TokenCosts:
        return COSTS

    def to_json(self) -> dict[str, Any]:
        return {}


CHECKED = st.sets(st.integers(1, 5)).map(sorted).map(tuple)


def test_a_hand_worked_breakdown_line_by_line() -> None:
    # Three tokens of a 4-layer model, checked at exits 1 and 3 with max_prob >= 0.5.
    sure = np.array([[0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.6, 0.9], [0.1, 0.9, 0.2, 0.9]], dtype=np.float32)
    top1 = np.array([[1, 1, 1, 1], [3, 1, 2, 1], [1, 1, 1, 2]], dtype=np.int32)
    nll = np.array([[3, 2, 1, 1], [3, 2, 2.5, 2], [5, 4, 3, 1]], dtype=np.float32)
    kl = np.array([[0.2, 0.1, 0.1, 0], [2, 1, 0.7, 0], [2, 1, 1, 0]], dtype=np.float32)
    trace = make_trace(tokens=3, layers=4, documents=3, max_prob=sure, top1=top1, nll=nll, kl_to_final=kl)
    result = replay(trace, parse_policy("threshold:signal=max_prob,value=0.5,exits=1+3"), machine=ByHand())
    np.testing.assert_array_equal(result.exits, [1, 3, 4])
    np.testing.assert_array_equal(result.probes, [1, 2, 2])
    # First token: layer 1, repair of 2, 3, 4, and the probe that fired, which is its head product.
    first = 100 + 3 * 10 + 1007
    # Second: layers 1 to 3, repair of 4, a probe that did not fire and the one that did.
    second = 100 + 110 + 120 + 10 + 2 * 1007
    # Third: all layers, two probes in vain, then the final head.
    third = 100 + 110 + 120 + 130 + 2 * 1007 + 1000
    plain = 100 + 110 + 120 + 130 + 1000
    unprobed = (130 + 1000) + (340 + 1000) + plain
    assert result.predicted_speedup == pytest.approx(3 * plain / (first + second + third))
    assert result.speedup_without_probes == pytest.approx(3 * plain / unprobed)
    assert result.probe_share == pytest.approx(1 - unprobed / (first + second + third))
    assert result.agreement == pytest.approx(2 / 3)
    assert result.skip_ratio == pytest.approx((3 + 1 + 0) / 12)
    assert result.nll_increase == pytest.approx(((3 - 1) + (2.5 - 2) + 0) / 3)
    assert result.kl == pytest.approx((0.2 + 0.7) / 3)
    assert str(result.policy) == "threshold:signal=max_prob,value=0.5,exits=1+3"


def test_the_default_prices_are_those_at_the_mean_position() -> None:
    trace = make_trace()
    result = replay(trace, StaticExit(3))
    attended = float(trace.position.mean()) + 1
    layer, head, repair = 2 * (1000 + 10 * (attended + 1)), 2 * 310, 2 * (100 + 10)
    assert result.predicted_speedup == pytest.approx((6 * layer + head) / (3 * layer + 3 * repair + head))
    layer, head, repair = 2 * 1000 + 4 * 20 * attended, 2 * 310, 2 * 100
    expected = (6 * layer + head) / (3 * layer + 3 * repair + head)
    assert result.predicted_speedup_flops == pytest.approx(expected)


def test_a_trace_without_a_needed_fact_or_without_tokens_is_refused() -> None:
    trace = make_trace()
    with pytest.raises(InputError, match="no tokens"):
        replay(trace.subset(np.array([99])), Never())
    bare = Trace.from_facts({"top1": trace.fact("top1")}, document=trace.document, shape=trace.shape)
    with pytest.raises(InputError, match="nll"):
        replay(bare, Never())
    with pytest.raises(InputError, match="margin"):
        replay(bare, Threshold("margin", 0.5, (2,)))


CHECKS = "threshold:signal=margin,value=0.5,exits=1+3+5"
FREE = "threshold:signal=hidden_cosine,value=0.5,exits=1+3+5"


def test_on_a_machine_the_speed_is_one_of_seconds() -> None:
    trace = make_trace(seed=2)
    result = replay(trace, CHECKS, machine="h100")
    in_bytes = replay(trace, CHECKS)
    costs = costs_of(trace, find_machine("h100"))
    policy = exit_costs(costs, dict.fromkeys((1, 3, 5), ("margin",)))[result.exits - 1].mean()
    assert result.seconds_per_token == pytest.approx(policy)
    assert result.plain_seconds_per_token == pytest.approx(costs.plain)
    assert result.predicted_speedup == pytest.approx(costs.plain / policy)
    assert (result.basis, in_bytes.basis) == ("h100", "bytes moved")
    assert (in_bytes.seconds_per_token, in_bytes.plain_seconds_per_token) == (None, None)
    assert result.predicted_speedup_flops == in_bytes.predicted_speedup_flops
    assert result.predicted_speedup != in_bytes.predicted_speedup
    assert replay(trace, CHECKS, machine=find_machine("h100")).predicted_speedup == result.predicted_speedup


def test_the_local_machine_is_looked_up_by_the_traces_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def find(name: str, **others: Any) -> Any:
        asked.update(name=name, **others)
        return find_machine("l4")

    monkeypatch.setattr("offramp.policies.prices.find_machine", find)
    trace = make_trace()
    model = {"fingerprint": "f" * 64, "attention": "eager"}
    trace.provenance["request"] = {"model": model, "dtype": "float32"}
    assert replay(trace, CHECKS, machine="local").basis == "l4"
    assert asked == {
        "name": "local",
        "model_fingerprint": "f" * 64,
        "dtype": "float32",
        "device": "cpu",
        "attention": "eager",
        "model": model,
    }


@pytest.mark.parametrize("policy", [CHECKS, FREE, "static:exit=2", "never"])
def test_one_row_in_a_step_is_the_plain_replay(policy: str) -> None:
    trace = make_trace(seed=4)
    plain = replay(trace, policy, machine="a100")
    for batching in ("lockstep", "rebatch"):
        result = replay(trace, policy, machine="a100", batch=1, batching=batching)
        np.testing.assert_array_equal(result.exits, plain.exits)
        np.testing.assert_array_equal(result.probes, plain.probes)
        assert result.breakdown == plain.breakdown
        assert result.predicted_speedup_flops == plain.predicted_speedup_flops


@pytest.mark.parametrize("policy", ["never", "static:exit=6"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv": "recompute", "machine": "cpu-2core"},
        {"kv": "speculate"},
        {"kv": "monotone", "machine": "cpu-2core"},
        {"machine": "l4", "batch": 4},
        {"machine": "l4", "batch": 4, "batching": "rebatch"},
    ],
)
def test_never_leaving_early_is_exactly_the_full_model(policy: str, options: dict[str, Any]) -> None:
    result = replay(make_trace(tokens=57), policy, **options)
    assert result.predicted_speedup == result.predicted_speedup_flops == result.speedup_without_probes == 1.0
    assert (result.agreement, result.skip_ratio, result.nll_increase, result.probe_share) == (1.0, 0, 0, 0)
    assert result.batch == options.get("batch", 1)


def test_speculation_gives_the_full_models_output() -> None:
    kl = np.abs(make_trace().fact("kl_to_final"))
    kl[:, -1] = 0.0
    trace = make_trace(kl_to_final=kl)
    result = replay(trace, CHECKS, kv="speculate")
    assert (result.agreement, result.nll_increase, result.kl) == (1.0, 0.0, 0.0)
    drafts = replay(trace, CHECKS)
    assert drafts.agreement < 1.0
    np.testing.assert_array_equal(result.exits, drafts.exits)
    assert result.predicted_speedup_flops < 1.0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"kv": "propagat"}, r"unknown strategy for K and V 'propagat'(.|\n)*did you mean 'propagate'"),
        ({"batching": "lock"}, r"unknown batching 'lock'"),
        ({"batch": 2, "kv": "recompute"}, "charged for one sequence at a time, not 2"),
        ({"batch": 2, "kv": "speculate"}, "charged for one sequence at a time, not 2"),
        ({"batch": 7}, "a batch of 7 needs as many documents, the trace has 6"),
        ({"machine": "h1000"}, r"unknown hardware 'h1000'(.|\n)*did you mean 'h100'"),
        ({"kv": "monotone"}, "lets tokens go deeper"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        offramp.replay(make_trace(), CHECKS, **options)


def test_both_agreements_by_hand() -> None:
    top1 = np.array([[1, 1, 2], [3, 2, 2], [4, 5, 4], [6, 6, 6]], dtype=np.int32)
    trace = make_trace(tokens=4, layers=3, documents=2, top1=top1)
    trace.reference_top1 = np.array([1, 2, 5, 9], dtype=np.int32)
    second = replay(trace, "static:exit=2")
    assert second.agreement == 2 / 4
    assert second.reference_agreement == 3 / 4  # an exit may agree where the transformed full model does not
    never = replay(trace, "never")
    assert never.agreement == 1.0
    assert never.reference_agreement == 1 / 4
    # Speculation gives the transformed full model's tokens, not the untransformed one's.
    exact = replay(trace, "static:exit=2", kv="speculate")
    assert (exact.agreement, exact.reference_agreement) == (1.0, 1 / 4)


def test_a_model_without_transforms_has_none() -> None:
    trace = make_trace()
    assert trace.reference_top1 is None
    assert trace.reference_agreement is None
    assert replay(trace, "static:exit=2").reference_agreement is None


@pytest.mark.parametrize(("dtype", "named"), [("float32", ""), ("bfloat16", " --dtype bfloat16")])
def test_the_error_for_missing_timings_names_the_transforms(
    dtype: str, named: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    trace = make_trace()
    model = {"name": "tiny + int8", "fingerprint": "f" * 64, "transforms": ["int8"]}
    trace.provenance["request"] = {"model": model, "dtype": dtype}
    with pytest.raises(InputError) as caught:
        replay(trace, "static:exit=2", machine="local")
    assert f"offramp hardware measure tiny --transform int8{named}, or choose" in caught.value.fix


def test_an_oracle_is_marked() -> None:
    assert not replay(make_trace(), "oracle:which=saturation").reachable
    assert replay(make_trace(), CHECKS).reachable


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
def test_probes_per_token_are_those_of_the_breakdown(kv: str) -> None:
    result = replay(make_trace(), CHECKS, kv=kv)
    charged = sum(line.count * line.rows for line in result.breakdown.lines if line.part == "probe")
    assert result.breakdown.probes_per_token == charged / len(result.exits)
    # Drafts that are thrown away were checked too.
    assert (result.breakdown.probes_per_token == result.probes.mean()) == (kv != "speculate")


def test_a_price_that_was_not_timed_is_said() -> None:
    engine = timed((1,), (1e-3,), **UNTIMED)
    notes = replay(make_trace(), CHECKS, machine=engine).notes
    assert [note.split(";")[0].split(" is not")[0] for note in notes] == [
        "not timed: full head",
        "K,V repair",
    ]
    assert replay(make_trace(), "never", machine=engine).notes == ()


THRESHOLD = "threshold:signal=max_prob,value=0.6,exits=2+4"
LEARNING = "bandit:signal=max_prob,value=0.6,exits=2+4,cost=0.5,exploration=1.0"
MONOTONE = "monotone:policy=[static:exit=3]"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(tokens=400, documents=44)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (THRESHOLD, {}),
        (THRESHOLD, {"machine": "h100"}),
        (THRESHOLD, {"kv": "recompute"}),
        (THRESHOLD, {"kv": "speculate", "draft_length": 3}),
        (LEARNING, {}),  # it goes on learning from document to document, and is walked once
        (MONOTONE, {"kv": "monotone"}),
        (THRESHOLD, {"machine": "h100", "batch": 2}),
        (THRESHOLD, {"machine": "h100", "batch": 3, "batching": "rebatch"}),
        ("static:exit=3", {"machine": "l4", "kv": "speculate"}),
        ("oracle:which=saturation", {}),
        ("never", {}),
    ],
)
def test_the_figures_are_the_replays_own(trace: Trace, policy: str, options: dict[str, Any]) -> None:
    found, whole = replay_intervals(trace, policy, **options), replay(trace, policy, **options)
    assert found.agreement.value == pytest.approx(whole.agreement, rel=1e-12)
    assert found.skip_ratio.value == pytest.approx(whole.skip_ratio, rel=1e-12, abs=1e-12)
    assert found.net_speedup.value == pytest.approx(whole.predicted_speedup, rel=1e-12)
    if options.get("batch", 1) < 3:  # 44 documents are 22 pairs, but only 15 groups of three
        assert found.net_speedup.low is not None
        assert found.net_speedup.low <= found.net_speedup.value <= found.net_speedup.high
    else:
        assert found.net_speedup.low is None
        assert found.net_speedup.no_interval == "15 groups of 3 documents; an interval needs 20, 60 documents"


@pytest.mark.parametrize("machine", [None, "h100"])
def test_the_intervals_are_those_of_the_tuners_measuring(trace: Trace, machine: str | None) -> None:
    """Two ways to the same draws: documents' whole costs here, costs of single tokens there."""
    profile = None if machine is None else find_machine(machine)
    found = replay_intervals(trace, THRESHOLD, machine=profile, seed=5, draws=TUNED_DRAWS)
    held = measure(
        trace, parse_policy(THRESHOLD), pricing_of(trace, profile), make_floor({"agreement": 0.9}), seed=5
    )
    for name in ("agreement", "skip_ratio", "net_speedup"):
        one, other = getattr(found, name), getattr(held, name)
        np.testing.assert_allclose(
            (one.value, one.low, one.high), (other.value, other.low, other.high), rtol=1e-9
        )


def test_the_order_of_documents_changes_nothing(trace: Trace) -> None:
    turned = np.argsort(-trace.document, kind="stable")
    records = tuple(DocumentRecord(one.id, one.tokens) for one in trace.documents)
    reordered = Trace(
        exits=trace.exits,
        tokens={name: column[turned] for name, column in trace.token_columns.items()},
        facts=lambda name: trace.fact(name)[turned],
        documents=records,
        marginal=lambda: trace.marginal,
        shape=trace.shape,
        provenance=trace.provenance,
    )
    one, other = replay_intervals(trace, THRESHOLD), replay_intervals(reordered, THRESHOLD)
    for name in ("agreement", "skip_ratio", "net_speedup"):
        left, right = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(
            (left.value, left.low, left.high), (right.value, right.low, right.high), rtol=1e-12
        )


IMPOSSIBLE = [
    ("agreement", 17.0, "a share from 0 to 1"),
    ("agreement", -0.1, "a share from 0 to 1"),
    ("skip_ratio", 1.1, "a share of 1 at most"),
    ("net_speedup", -9.0, "above 0"),
    ("net_speedup", 0.0, "above 0"),
]


@pytest.mark.parametrize(("name", "value", "words"), IMPOSSIBLE)
def test_impossible_figures_are_not_read(name: str, value: float, words: str) -> None:
    """As the mean alone, as an estimate, and as the end of its interval."""
    trace = make_trace()
    alone = to_json(replay(trace, "static:exit=2"))
    several = to_json(replay_intervals(trace, "static:exit=2", draws=40))
    assert from_json(ReplayFigures, alone).agreement == from_json(ReplayIntervals, several).agreement.value
    read: list[tuple[Any, Any]] = [
        (ReplayFigures, {**alone, name: value}),
        (ReplayIntervals, {**several, name: {"value": value}}),
        (ReplayIntervals, {**several, name: {"value": 0.5, "low": min(0.5, value), "high": value}}),
    ]
    for kind, figures in read:
        with pytest.raises(InvalidRecordError, match=f"{name}: it must be {words}"):
            from_json(kind, figures)
