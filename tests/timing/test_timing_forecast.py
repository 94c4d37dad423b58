"""Predicted beside measured: a forecast worked by hand, and parts that add up to the whole."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from generation_cases import generate_batch, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.costs.counting import head_bytes, head_flops
from offramp.costs.timings import TimingsProfile
from offramp.costs.token import token_costs
from offramp.decoding.engine.engine import PART_OF_ITEM, PARTS_OF_TIME
from offramp.decoding.generation.result import BatchGeneration, Generation
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.typed import to_json
from offramp.policies.cost_breakdown import PARTS, Item
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay
from offramp.scoring.estimate import Estimate
from offramp.timing.decoder import Setting, batches_of, own_config, plain_config
from offramp.timing.forecast import (
    counted_plain,
    counted_policy,
    expected_position,
    fitted_of,
    forecast,
    mean_position,
    measured_skip,
    predict,
    price_parts,
    ratio_of,
)
from offramp.timing.prediction import PredictionVerdict, when_it_counts, worst_part
from offramp.timing.results import Forecast, PartError
from policy_traces import make_shape, make_trace

LAYERS = 4
SHAPE = make_shape(LAYERS)


def by_hand() -> TimingsProfile:
    """Layers of 1 s and 0.01 s a position, head 3, K,V 0.1, margin 5, overhead 0.5; two rows: twice that."""
    rows = np.array([1.0, 2.0])
    return TimingsProfile(
        name="hand",
        source="by hand",
        dtype="bfloat16",
        layers_count=LAYERS,
        batches=(1, 2),
        layer_seconds=rows[:, None] * np.ones(LAYERS),
        layer_seconds_per_position=0.01 * rows[:, None] * np.ones(LAYERS),
        head_seconds=3.0 * rows,
        probe_seconds={"full head": 5.0 * rows, "cosine": 0.25 * rows},
        lens_seconds=0.125 * rows,
        key_value_seconds=0.1 * rows[:, None] * np.ones(LAYERS),
        overhead_seconds=0.5 * rows,
    )


def one_row(tokens: int, prompt: int, executed: int) -> Generation:
    """A sequence whose new tokens ran so many layers in all."""
    return Generation(
        text="",
        tokens=[1] * tokens,
        chosen=[1] * tokens,
        exits=np.full(tokens, LAYERS),
        layers=LAYERS,
        layers_executed=prompt * LAYERS + executed,
        prompt_layers=prompt * LAYERS,
        prompt_tokens=prompt,
        stopped="length",
    )


def generation(
    rows: Sequence[Generation], usage: dict[Item, int], seconds: float = 1.0, **further: object
) -> BatchGeneration:
    made = BatchGeneration(tuple(rows), Counter(usage), 1, seconds, 0.1)
    return dataclasses.replace(made, **further)  # type: ignore[arg-type]


def static_at(exit: int, steps: int, **further: object) -> BatchGeneration:
    """What a static exit with propagated K and V runs for one sequence, after a prompt of 10 tokens."""
    usage = {Item("overhead"): steps, Item("exit head" if exit < LAYERS else "final head", exit): steps}
    usage |= {Item("layers", layer): steps for layer in range(1, exit + 1)}
    usage |= {Item("K,V projection", layer): steps for layer in range(exit + 1, LAYERS + 1)}
    return generation([one_row(steps + 1, 10, steps * exit)], usage, **further)


def setting_of(policy: str, *, lens: bool = False, own_heads: bool = False, units: int = 0) -> Setting:
    """Decoding with a policy, exits read through heads as it says: five tokens after a prompt of ten."""
    mlp = SimpleNamespace(units=units) if units else None
    heads: Any = Mock(
        spec=ExitHeads,
        lens=SimpleNamespace(rank=None) if lens else None,
        output=SimpleNamespace(weight=()) if own_heads else None,
        kv_maps=None,
        mlp=mlp,
        shortlist=None,
    )
    cell = DecodingOptions(parse_policy(policy), heads=heads, new_tokens=6)
    model: Any = SimpleNamespace(shape=SHAPE, dtype="float32")
    return Setting(model, batches_of([[1] * 10], 1), (cell,))


def foretold(
    policy: str, ran: Sequence[BatchGeneration], *, steps: int = 5, lens: bool = False, **further: Any
) -> Forecast:
    """By the profile that is made by hand, beside as many steps of the full model."""
    setting, plain = setting_of(policy, lens=lens), [static_at(LAYERS, steps)]
    seconds = {"measured": Estimate(4.0, 3.9, 4.1), "plain_measured": 8.0, "fastest_plain": 7.5}
    return forecast(setting, setting.main, by_hand(), ran, plain, **{**seconds, **further})


def test_a_forecast_by_hand() -> None:
    # 5 steps at positions 10..14, so layers take 1.12 s each.
    ran, plain = static_at(2, 5), static_at(LAYERS, 5)
    timed = static_at(
        2, 5, part_seconds={"layers": 11.0, "probes": 0.0, "K,V repair": 2.5, "heads": 15.0, "overhead": 2.5}
    )
    trace = make_trace(layers=LAYERS, shape=SHAPE)
    setting = setting_of("static:exit=2")
    predicted = predict(trace, setting, setting.main, by_hand())
    found = forecast(
        setting, setting.main, by_hand(), [ran], [plain], predicted=predicted, timed=[timed],
        measured=Estimate(6.0), plain_measured=8.2, fastest_plain=8.2,
    )  # fmt: skip
    # By the profile a plain token takes 7.98 s; at the moment of timing it took 8.2 s.
    by_profile, pace = 2 * 1.12 + 2 * 0.1 + 3 + 0.5, 8.2 / 7.98
    assert found.priced_by_profile == pytest.approx(by_profile)
    assert found.priced == pytest.approx(by_profile * pace)
    assert found.predicted == pytest.approx(found.priced)  # a static exit is the same on any trace
    assert found.predicted_by_profile == pytest.approx(by_profile)
    assert found.trace_error == pytest.approx(0.0)
    assert found.measured == Estimate(6.0)
    assert found.plain_predicted == pytest.approx(4 * 1.12 + 3 + 0.5)
    assert found.plain_measured == found.fastest_plain == pytest.approx(8.2)
    assert found.predicted_skip == found.measured_skip == pytest.approx(0.5)
    assert {part.part: (part.priced, part.measured) for part in found.parts} == {
        "layers": (pytest.approx(2.24 * pace), pytest.approx(2.2)),
        "probes": (0.0, 0.0),
        "K,V repair": (pytest.approx(0.2 * pace), 0.5),
        "heads": (pytest.approx(3.0 * pace), 3.0),
        "overhead": (pytest.approx(0.5 * pace), 0.5),
    }
    plain_price = 4 * 1.12 + 3 + 0.5
    assert vars(found.gain) == pytest.approx(
        {"layers": 2 * (1.12 - 0.1) / plain_price, "head": 0.0, "probes": 0.0}
    )
    assert found.gain.total == pytest.approx(1.0 - found.priced_by_profile / found.plain_predicted)
    worst = found.worst_part
    assert worst is not None
    assert worst.part == "K,V repair"


def test_without_a_trace_only_what_ran_is_priced() -> None:
    found = foretold("static:exit=1", [static_at(1, 3)], steps=3, measured_agreement=0.25)
    assert found.predicted is found.trace_error is found.predicted_skip is None
    assert (found.measured.low, found.plain_measured, found.fastest_plain) == (3.9, 8.0, 7.5)
    assert found.parts == ()
    assert found.measured_agreement == 0.25
    plain = 4 * 1.11 + 3 + 0.5
    assert found.priced == pytest.approx(8.0 - 3 * (1.11 - 0.1) * 8.0 / plain)
    assert found.predicted_by_profile is None


def test_a_replay_in_bytes_is_no_prediction_of_seconds() -> None:
    predicted = replay(make_trace(layers=LAYERS, shape=SHAPE), parse_policy("static:exit=2"))
    with pytest.raises(InputError, match="priced in bytes"):
        ratio_of(predicted)


def test_a_lens_is_charged_where_an_exit_is_read_through_it() -> None:
    runs = [static_at(2, 5)]
    plain, lens = (
        price_parts(runs, by_hand(), SHAPE, fitted_of(setting_of("static:exit=2", lens=lens).main))
        for lens in (False, True)
    )
    assert lens["exit head"] - plain["exit head"] == pytest.approx(0.125)
    assert {**lens, "exit head": 0} == {**plain, "exit head": 0}


def test_a_network_behind_a_lens_is_charged_by_its_products_at_the_pace_of_the_head() -> None:
    runs, hidden, units = [static_at(2, 5)], SHAPE.hidden_size, 7
    lens, network = (
        price_parts(
            runs, by_hand(), SHAPE, fitted_of(setting_of("static:exit=2", lens=True, units=units).main)
        )
        for units in (0, units)
    )
    weights = SHAPE.element_bytes * hidden * (3 * units + 1)  # the networks' and their norm's
    more = max(weights / head_bytes(SHAPE), 6.0 * hidden * units / head_flops(SHAPE))
    head = float(by_hand().token_costs(SHAPE, 0).head)
    assert network["exit head"] - lens["exit head"] == pytest.approx(head * more)
    assert {**network, "exit head": 0} == {**lens, "exit head": 0}


def test_rows_of_a_batch_count_one_by_one() -> None:
    rows = [one_row(4, 10, 12), one_row(2, 6, 4)]
    usage = {Item("overhead", 0, 2): 1, Item("overhead", 0, 1): 2}
    run = generation(rows, usage)
    # The first row feeds positions 10, 11, 12, the second, padded to 10 as well, position 10.
    assert mean_position([run]) == pytest.approx((10 + 11 + 12 + 10) / 4)
    assert price_parts([run], by_hand(), SHAPE)["overhead"] == pytest.approx((1.0 + 2 * 0.5) / 4)
    assert measured_skip([run]) == pytest.approx(1 - 16 / (4 * LAYERS))


def test_a_prediction_is_one_for_the_decoded_positions() -> None:
    trace = make_trace(layers=LAYERS, shape=SHAPE)
    setting = setting_of("threshold:signal=margin,value=0.5,exits=1+2")
    far_off = replace(setting, prompts=batches_of([[1] * 1010], 1))
    near, far = (predict(trace, where, setting.main, by_hand()) for where in (setting, far_off))
    assert np.array_equal(near.exits, far.exits)
    own = replay(trace, setting.main.policy, machine=by_hand(), position=expected_position(setting))
    assert near.seconds_per_token == own.seconds_per_token
    ran = float(near.exits.mean())
    assert near.seconds_per_token is not None
    assert far.seconds_per_token is not None
    assert far.seconds_per_token - near.seconds_per_token == pytest.approx(10.0 * ran)


def test_heads_that_the_trace_was_not_read_with_are_refused() -> None:
    trace = make_trace(layers=LAYERS, shape=SHAPE)
    setting = setting_of("static:exit=2", lens=True)
    with pytest.raises(
        InputError, match="through the model's own norm and head, decoding reads them through a linear"
    ):
        predict(trace, setting, setting.main, by_hand())
    setting = setting_of("static:exit=2", lens=True, units=7)
    with pytest.raises(InputError, match="them through a linear lens and a network of 7 units"):
        predict(trace, setting, setting.main, by_hand())
    setting = setting_of("static:exit=2", own_heads=True)
    with pytest.raises(InputError, match="decoding reads them through an output head of its own"):
        predict(trace, setting, setting.main, by_hand())


def test_a_single_new_token_is_nothing_to_judge() -> None:
    alone = generation([one_row(1, 10, 0)], {})
    with pytest.raises(InputError, match="no token was decoded after the first"):
        foretold("static:exit=2", [alone])


def test_every_item_of_a_breakdown_belongs_to_a_part_of_time() -> None:
    assert set(PART_OF_ITEM) == set(PARTS)
    assert set(PART_OF_ITEM.values()) == set(PARTS_OF_TIME)


items = st.one_of(
    st.builds(Item, st.just("overhead"), st.just(0), st.integers(1, 2)),
    st.builds(
        Item,
        st.sampled_from(["layers", "K,V projection", "exit head"]),
        st.integers(1, LAYERS),
        st.integers(1, 2),
    ),
    st.builds(
        Item,
        st.just("probe"),
        st.integers(1, LAYERS),
        st.integers(1, 2),
        st.sampled_from(["full head", "cosine"]),
    ),
)


@settings(max_examples=40, deadline=None)
@given(usage=st.dictionaries(items, st.integers(1, 9), max_size=12), lens=st.booleans())
def test_parts_add_up_to_the_whole(usage: dict[Item, int], lens: bool) -> None:
    run = generation([one_row(7, 5, 3)], usage)
    found = foretold("static:exit=2", [run], steps=6, lens=lens, plain_measured=20.0, timed=[run])
    assert [part.part for part in found.parts] == list(PARTS_OF_TIME)
    assert sum(part.priced for part in found.parts) == pytest.approx(found.priced)


NEW_TOKENS, PROMPT = 9, [5, 6, 7, 8]
POSITION = len(PROMPT) + (NEW_TOKENS - 2) / 2
"""Mean of those of the eight fed new tokens."""


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_a_static_exit_by_hand(kv: str, batch: int) -> None:
    model = tiny_llama()
    policy = parse_policy("static:exit=3")
    prompts = batches_of([PROMPT] * batch, batch)[0]
    with own_config(model.hf, plain_config(NEW_TOKENS)):
        run = generate_batch(
            model, prompts.ids, policy=policy, kv=kv, max_new_tokens=NEW_TOKENS, eos_token_id=None
        )
    found = counted_policy([run], model.shape)
    assert (found.layers, found.heads, found.probes) == (3.0, 1.0, 0.0)
    for unit, value in (("flops", found.flops), ("bytes", found.bytes)):
        costs = token_costs(model.shape, POSITION, unit, batch=batch)
        expected = costs.layers[:3].sum() + costs.exit_head
        if kv == "propagate":
            expected += costs.key_value[3]
        assert value == pytest.approx(float(expected) / batch)


@pytest.mark.parametrize("batch", [1, 2])
def test_plain_decoding_is_every_layer_and_one_head(batch: int) -> None:
    model = tiny_llama()
    cell = DecodingOptions(parse_policy("never"), new_tokens=NEW_TOKENS)
    found = counted_plain(Setting(model, batches_of([PROMPT] * batch, batch), (cell,)))
    assert (found.layers, found.heads, found.probes) == (4.0, 1.0, 0.0)
    assert found.bytes == token_costs(model.shape, POSITION, "bytes", batch=batch).plain / batch
    assert found.flops == token_costs(model.shape, POSITION, "flops").plain


PLAIN = 60.0
CHANGES = np.array([-30.0, -20.0, -10.0, -5.0, 5.0, 12.0])


def made_up(predicted: float | None, change: float, **further: Any) -> Forecast:
    """A policy that changes 60 s per token by `change`, predicted to change it by `predicted`."""
    values: dict[str, Any] = {
        "policy": "static:exit=1",
        "kv": "propagate",
        "dtype": "float32",
        "workload": "",
        "predicted": None if predicted is None else PLAIN + predicted,
        "priced": PLAIN + change,
        "measured": Estimate(PLAIN + change),
        "plain_predicted": PLAIN,
        "plain_measured": PLAIN,
        "fastest_plain": PLAIN,
        "predicted_skip": None,
        "measured_skip": 0.0,
    }
    return Forecast(**{**values, **further})


def judged(errors: Any) -> PredictionVerdict:
    return when_it_counts([made_up(c + e, c) for c, e in zip(CHANGES, errors, strict=True)])


def failed(verdict: PredictionVerdict) -> list[str]:
    return [check.rule for check in (*verdict.rule, *verdict.figures) if not check.holds]


def test_good_predictions_count() -> None:
    verdict = judged([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert verdict.counts
    assert not failed(verdict)
    assert (verdict.policies, verdict.median_error, verdict.median_change) == (6, 1.0, 11.0)
    assert verdict.rule[0].value == pytest.approx(1 / 11)
    assert verdict.rule[1].value == pytest.approx(6 / 82)
    predicted = CHANGES + np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert verdict.figures[0].value == pytest.approx(np.polyfit(predicted, CHANGES, 1)[0])
    assert verdict.figures[2].value == pytest.approx(1 / 30)
    assert json.loads(json.dumps(to_json(verdict)))["rule"][0]["holds"] is True
    assert len(verdict.figures) == 3  # what the profile's own seconds were is not kept in these


def test_the_profile_s_own_seconds_stand_beside_and_decide_nothing() -> None:
    """A profile of a machine that was twice as fast: every ratio is right."""
    forecasts = [
        made_up(change, change, predicted_by_profile=(PLAIN + change) / 2, plain_predicted=PLAIN / 2)
        for change in CHANGES
    ]
    verdict = when_it_counts(forecasts)
    assert verdict.counts
    assert failed(verdict) == ["median error of the profile's own seconds"]
    assert verdict.figures[-1].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("errors", "broken"),
    [
        # 3 of 11 in the median.
        ([3.0] * 6, ["median error of the change", "median error of seconds", "worst error of seconds"]),
        # A third of every change: the slope, too.
        (-CHANGES / 3, ["median error of the change", "slope", "median error of seconds",
                        "worst error of seconds"]),
        # One prediction that is far off makes "nothing changes" the better one.
        ([0, 0, 0, 0, 0, 83.0], ["sum of errors over", "slope", "worst error of seconds per token"]),
        # "Nothing changes" itself is not better than itself.
        (-CHANGES, ["median error of the change", "sum of errors over", "slope",
                    "median error of seconds", "worst error of seconds"]),
    ],
)  # fmt: skip
def test_each_way_to_fail(errors: Any, broken: list[str]) -> None:
    names = failed(judged(errors))
    assert len(names) == len(broken)
    assert all(name.startswith(start) for name, start in zip(names, broken, strict=True))


def test_nothing_counts_beside_a_defect() -> None:
    forecasts = [made_up(change, change) for change in CHANGES]
    assert when_it_counts(forecasts).counts
    verdict = when_it_counts(forecasts, defect=True)
    assert not verdict.counts
    assert failed(verdict) == ["the measurement has no defect"]


def test_the_cost_model_is_judged_apart_from_the_trace() -> None:
    forecasts = [made_up(change / 2, change) for change in CHANGES]
    assert not when_it_counts(forecasts).counts
    assert when_it_counts(forecasts, given_exits=True).counts


def test_a_single_policy_has_no_slope() -> None:
    verdict = when_it_counts([made_up(-9.0, -10.0)])
    assert verdict.counts
    assert verdict.figures[0].value is None
    assert not verdict.figures[0].holds


def test_nothing_predicted_is_nothing_to_judge() -> None:
    with pytest.raises(InputError, match="no prediction to judge"):
        when_it_counts([made_up(None, -10.0)])


def test_the_part_that_was_most_wrong_is_named() -> None:
    assert worst_part([made_up(0.0, 0.0)]) is None
    parts = (PartError("layers", 0.050, 0.051), PartError("heads", 0.014, 0.010))
    twice = [made_up(0.0, 0.0, parts=parts), made_up(0.0, 0.0, parts=parts)]
    assert worst_part(twice) == (
        "most wrong: heads, priced 4.000 ms a token above the stopwatch on average "
        "(80 % of all parts' errors)"
    )
    below = (PartError("layers", 0.045, 0.051), PartError("heads", 0.014, 0.010))
    named = worst_part([made_up(0.0, 0.0, parts=below)])
    assert named is not None
    assert "layers, priced 6.000 ms a token below" in named
