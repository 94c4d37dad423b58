"""What a policy reads at its checks, and the same on other texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offramp.errors import InputError, PolicyError
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from offramp.tracing.trace import Trace
from offramp.tuning.tuned import QUANTILES, shift_of, shift_rows
from policy_traces import make_shape, make_trace


def trace_by_hand(max_prob: list[float], agrees: list[bool]) -> Trace:
    count = len(agrees)
    facts: dict[str, Any] = {
        "top1": np.array([[7 if same else 1, 7] for same in agrees], dtype=np.int32),
        "max_prob": np.array([[value, 1.0] for value in max_prob], dtype=np.float32),
    }
    return Trace.from_facts(
        facts, document=np.arange(count, dtype=np.int32), shape=make_shape(2), exits=np.array([1, 2])
    )


def test_a_shift_worked_by_hand() -> None:
    trace = trace_by_hand([0.25, 0.5, 0.75, 1.0], [False, False, True, True])
    (shift,) = shift_of(trace, Threshold("max_prob", 0.9, (1,)))
    # The smallest recorded value with at least so large a share of the four at or below it.
    assert shift.quantiles == (0.25, 0.25, 0.5, 0.75, 1.0)
    assert (shift.exit, shift.fact, shift.agreement) == (1, "max_prob", 0.5)
    assert shift.calibration == pytest.approx(0.625 - 0.5)


def test_every_checked_exit_has_a_shift_and_no_other() -> None:
    trace = make_trace(tokens=200)
    shifts = shift_of(trace, Threshold("entropy", 0.5, (2, 5)))
    assert [shift.exit for shift in shifts] == [2, 5]
    entropy = np.sort(trace.fact("entropy")[:, 4])
    assert shifts[1].quantiles == tuple(entropy[int(np.ceil(q * 200)) - 1] for q in QUANTILES)
    assert shifts[1].agreement == trace.agreement[:, 4].mean()


@pytest.mark.parametrize("policy", [Never(), StaticExit(3)])
def test_a_policy_without_probes_has_no_shift(policy: Never | StaticExit) -> None:
    assert shift_of(make_trace(), policy) == ()


def test_token_numbers_have_no_quantiles() -> None:
    policy = parse_policy("patience:times=2,exits=2+3+4")
    shifts = shift_of(make_trace(), policy)
    assert [(shift.fact, shift.quantiles) for shift in shifts] == [(None, ())] * len(shifts)
    assert shifts


def test_without_max_prob_there_is_no_calibration() -> None:
    trace = trace_by_hand([0.5, 0.5], [True, False])
    entropy = np.array([[0.5, 0.0], [1.5, 0.0]], dtype=np.float32)
    bare = Trace.from_facts(
        {"top1": trace.fact("top1"), "entropy": entropy},
        document=trace.document,
        shape=trace.shape,
        exits=trace.exits,
    )
    (shift,) = shift_of(bare, Threshold("entropy", 0.5, (1,)))
    assert shift.calibration is None
    assert shift.quantiles[2] == 0.5


def test_rows_put_both_texts_side_by_side() -> None:
    policy = Threshold("margin", 0.5, (3, 4))
    one, other = make_trace(seed=1, tokens=90), make_trace(seed=2, tokens=70)
    tuned, theirs = shift_of(one, policy), shift_of(other, policy)
    rows = shift_rows(tuned, other, policy)
    assert [row.other.exit for row in rows] == [3, 4]
    assert [(row.tuned, row.other) for row in rows] == list(zip(tuned, theirs, strict=True))


def test_a_check_that_only_one_of_both_has_gives_no_row() -> None:
    trace = make_trace()
    tuned = shift_of(trace, Threshold("margin", 0.5, (3,)))
    assert [row.tuned.exit for row in shift_rows(tuned, trace, Threshold("margin", 0.5, (3, 4)))] == [3]
    assert shift_rows(tuned, trace, Threshold("entropy", 0.5, (3,))) == ()


def test_what_cannot_be_compared_is_refused() -> None:
    broken = trace_by_hand([float("nan"), 0.5], [True, True])
    with pytest.raises(InputError, match="max_prob is not a number for 1 tokens at exit 1"):
        shift_of(broken, Threshold("max_prob", 0.9, (1,)))
    with pytest.raises(PolicyError, match="exit 2 was not traced"):
        shift_of(make_trace(exits=[1, 3, 6]), Threshold("max_prob", 0.9, (2,)))
