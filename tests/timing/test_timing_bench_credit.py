"""Credit: what exits add to the best decoder without them, of the same turns, that keeps a floor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_cases import family_model, made_up_result, settled
from scipy.stats import t as student

from offramp.defaults import FEWEST_PROMPTS
from offramp.errors import ModelError
from offramp.scoring.estimate import Estimate
from offramp.timing import contenders
from offramp.timing.bench import judge_measurement, merged, run
from offramp.timing.contenders import CUT_HEAD, NEVER, SHORT, WITHOUT_PEERS, Extent, searched_of
from offramp.timing.decoder import Candidates, DecodedBatch, Decoder, Setting, generate
from offramp.timing.results import (
    LOOKUP,
    NO_TIME,
    RESULTS,
    BenchResult,
    Cluster,
    Contender,
    contenders_json,
)
from offramp.timing.stopping import TimeLimits

POLICY = "static:exit=3 (propagate)"
LOGS = {
    POLICY: [0.24, 0.26, 0.28, 0.22, 0.24, 0.26],
    "never exit": [-0.10, -0.12, -0.08, -0.10, -0.12, -0.08],
    "cut head": [0.10, 0.14, 0.10, 0.14, 0.10, 0.14],
    "lookup": [0.36, -0.24, 0.26, -0.14, 0.31, -0.19],
    "assistant": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
}
"""Log-ratios over generate(), by prompt."""


def timed(name: str, **changes: Any) -> Contender:
    clusters = tuple(Cluster(0, prompt, log, 8) for prompt, log in enumerate(LOGS[name]))
    values = {"role": "peer", "answer": "faster", "ratio": Estimate(1.0, 0.9, 1.1)}
    return Contender(name, clusters=clusters, **{**values, **changes})


def result(**changes: Contender) -> BenchResult:
    """A policy beside everything that there may be."""
    found = {
        "policy": timed(POLICY, role="policy"),
        "never": timed("never exit", role="plain"),
        "cut": timed("cut head", full_depth=True, executed_agreement=Estimate(0.97, 0.94, 0.99)),
        "lookup": timed("lookup", full_depth=True, executed_agreement=Estimate(1.0)),
        "assistant": timed("assistant"),
        "missing": Contender("not timed", "peer", left_out="it cannot", full_depth=True),
    }
    made = made_up_result()
    plain = [one for one in made.contenders if one.role in ("plain", "a/a")]
    return replace(made, contenders=(*{**found, **changes}.values(), *plain))


def limits(name: str, level: float, rival: str) -> tuple[float, float, float]:
    """Seconds of the rival over its own on all prompts together, with Student's interval, written out."""
    own, other = np.exp(-np.array(LOGS[name])), np.exp(-np.array(LOGS[rival]))
    value, spread = other.mean() / own.mean(), np.std(own / own.mean() - other / other.mean(), ddof=1)
    factor = math.exp(student.ppf((1 + level) / 2, len(own) - 1) * spread / math.sqrt(len(own)))
    return value, value / factor, value * factor


def test_it_is_over_the_best_without_exits_that_keeps_the_floor_by_hand() -> None:
    found = result().credit(POLICY, 0.95)
    assert found is not None
    # Over the cut head the least; over prompt lookup, which varies most, the lowest limit. Four rivals.
    assert found.over == "cut head"
    assert found.value == pytest.approx(limits(POLICY, 0.95, "cut head")[0])
    assert found.low == pytest.approx(limits(POLICY, 0.95, "lookup")[1])
    assert found.high == pytest.approx(limits(POLICY, 1 - 0.05 / 4, "cut head")[2])
    stricter = result().credit(POLICY, 0.98)
    assert stricter is not None
    assert (stricter.over, stricter.value) == ("lookup", pytest.approx(limits(POLICY, 0.95, "lookup")[0]))
    assert result(lookup=timed("lookup")).credit(POLICY, 0.98) != stricter  # one with exits is no rival


@pytest.mark.parametrize("floor", [None, 0.5, 0.9, 0.97, 0.98, 1.0])
def test_a_stricter_floor_leaves_fewer_rivals_and_never_less_credit(floor: float | None) -> None:
    loosest, found = result().credit(POLICY), result().credit(POLICY, floor)
    assert loosest is not None
    assert found is not None
    assert loosest.value <= found.value
    assert loosest.low <= found.low
    unjudged = result(cut=timed("cut head", full_depth=True)).credit(POLICY, floor)
    assert unjudged == loosest  # the burden of proof is with the exits


def test_who_is_without_exits_has_none() -> None:
    cut, never = result().credit("cut head", 0.95), result().credit("never exit")
    assert cut is not None
    assert never is not None
    assert (cut.over, cut.value, cut.high) == ("cut head", 1.0, 1.0)
    assert (never.over, never.value) == ("cut head", pytest.approx(limits("never exit", 0.95, "cut head")[0]))
    assert result().credit("generate()", 0.98).high == 1.0  # type: ignore[union-attr]


def test_nothing_is_said_where_the_times_say_nothing() -> None:
    single = timed(POLICY, role="policy")
    assert result(policy=replace(single, clusters=single.clusters[:1])).credit(POLICY) is None
    assert result(policy=replace(single, answer="defect")).credit(POLICY) is None
    assert result().credit("generate() again") is None
    assert result().credit("not timed") is None
    wrong = replace(timed("cut head", full_depth=True), answer="defect")
    assert result(cut=wrong).credit(POLICY).over == "lookup"  # type: ignore[union-attr]


def test_what_needs_no_exits_and_took_no_turns_is_known() -> None:
    cut, lookup = "the output head cut to the short list", "prompt lookup"

    def missing(**changes: Contender) -> tuple[str, ...]:
        return result(**changes).untimed_rivals

    able = timed("lookup", full_depth=True)
    listed = timed("cut head", full_depth=True, role="short list")
    both = {"lookup": replace(able, name=LOOKUP), "cut": listed}
    assert missing(**both) == ()
    assert missing(cut=listed) == (lookup,)
    assert missing(lookup=both["lookup"]) == (cut,)
    late = Contender(LOOKUP, "peer", left_out=NO_TIME, full_depth=True)
    assert missing(cut=listed, lookup=late) == (lookup,)
    # What this model cannot do is no rival.
    assert missing(cut=listed, lookup=replace(late, left_out="stateful models")) == ()
    # Another baseline for which there was no time is one by its name.
    bits = Contender("int4", "peer", left_out=NO_TIME, full_depth=True)
    assert missing(**both, bits=bits) == ("int4",)
    assert missing(**both, bits=replace(bits, left_out="it fits no matrix")) == ()


def test_it_is_read_back_and_stands_in_the_json(tmp_path: Path) -> None:
    RESULTS.write(tmp_path / "bench.json", (result(),))
    (read,) = RESULTS.read(tmp_path / "bench.json")
    assert read.credit(POLICY, 0.95) == result().credit(POLICY, 0.95)
    by_name = {one["name"]: one["credit"] for one in contenders_json(result())}
    assert by_name[POLICY]["over"] == "cut head"
    assert by_name["generate() again"] is None


def test_of_several_processes_the_plain_decoder_is_the_fastest_of_all() -> None:
    """In the first one generate() is, in the others never exit, by far."""
    first = result()
    never, generate_ = first.contender("never exit"), first.contender("generate()")
    other = replace(
        first,
        plain="never exit",
        contenders=tuple(
            replace(never, clusters=()) if one is never
            else replace(generate_, clusters=tuple(replace(c, log_ratio=-0.5) for c in never.clusters))
            if one is generate_
            else one
            for one in first.contenders
        ),
    )  # fmt: skip
    found = merged([first, other, other])
    assert found.plain == "never exit"
    ratio, logs = found.contender(POLICY).ratio, np.array(LOGS[POLICY])
    assert ratio is not None
    never, cut = np.array(LOGS["never exit"]), np.array(LOGS["cut head"])
    times, rival = (np.exp([never - one, -one, -one]).mean() for one in (logs, cut))
    assert ratio.value == pytest.approx(1.0 / times)
    assert found.contender("never exit").ratio == Estimate(1.0, 1.0, 1.0)
    credit = found.credit(POLICY, 0.95)
    assert credit is not None
    assert credit.value == pytest.approx(rival / times)


# --- on a model

PROMPTS = [[5 + place, 6, 7, 8] for place in range(FEWEST_PROMPTS)]


def test_the_cut_head_takes_turns_and_is_judged_wherever_a_policy_reads_the_list() -> None:
    policy = "shortlist:policy=[static:exit=2]"
    setting = settled(family_model("llama"), policy, prompts=PROMPTS, new_tokens=5)
    measured = run(setting, limits=TimeLimits(rounds=1), extent=WITHOUT_PEERS)
    cut = measured.result.contender(str(CUT_HEAD))
    assert (cut.role, cut.left_out, len(cut.samples)) == ("short list", None, len(PROMPTS))
    assert cut.layers_per_token == cut.claimed_layers_per_token == float(setting.model.layers)
    # As if its list had missed a token: then it is no longer the full model's output, and is judged.
    lost = tuple(
        replace(one, same_output=0.5) if one.name == cut.name else one for one in measured.result.contenders
    )
    judged = judge_measurement(
        replace(measured, result=replace(measured.result, contenders=lost)), None, predicted={}
    )
    assert judged.result.contender(cut.name).executed_agreement == Estimate(1.0)
    assert judged.free_running[cut.name].prompts == len(PROMPTS)
    assert judged.result.credit(f"{policy} (propagate)") is not None


def test_a_policy_that_is_the_cut_head_is_not_timed_twice() -> None:
    setting = settled(family_model("llama"), str(CUT_HEAD), prompts=PROMPTS, new_tokens=5)
    result = run(setting, limits=TimeLimits(rounds=1), extent=SHORT).result
    assert result.main.full_depth
    assert [one.role for one in result.contenders if "shortlist" in one.name] == ["policy"]
    credit = result.credit(result.main.name)
    assert credit is None or credit.high <= 1.0


def test_a_further_contender_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def twins(setting: Setting) -> Candidates:
        (never,) = contenders.CONTENDERS[NEVER].make(setting)
        assert isinstance(never, Decoder)
        yield replace(never, name="a twin", role="acceleration", full_depth=True, required=False)

    for entry in (contenders.Entry("twin", twins), contenders.Entry("late", twins, lambda setting: 10)):
        monkeypatch.setitem(contenders.CONTENDERS, entry.name, entry)
    setting = settled(family_model("llama"), "static:exit=2", prompts=PROMPTS, new_tokens=5)
    extent = Extent((*contenders.PLAIN_DECODERS, "twin"))
    result = run(setting, limits=TimeLimits(rounds=1), extent=extent).result
    twin = result.contender("a twin")
    assert (twin.left_out, len(twin.samples), twin.same_output, twin.without_exits) == (
        None,
        len(PROMPTS),
        1.0,
        True,
    )
    # One that is searched for takes part where ten short decodings are worth their time.
    (found,) = searched_of(setting, Extent(("late",)), 0.1, 1.0)
    assert isinstance(found, Decoder)
    (left_out,) = searched_of(setting, Extent(("late",)), 0.11, 1.0)
    assert isinstance(left_out, Contender)
    assert (left_out.name, left_out.left_out) == ("late", NO_TIME)


def test_all_tokens_at_once_are_no_reason_to_leave_a_decoder_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt lookup whose drafts are all right: in its warm-up both tokens come in one step."""
    model = family_model("llama")
    setting = settled(model, "static:exit=2", prompts=PROMPTS, new_tokens=12)
    whole = type(model.hf).generate

    def at_once(hf: Any, ids: Any, streamer: Any = None, **keywords: Any) -> Any:
        found = whole(hf, ids, **{key: one for key, one in keywords.items() if "lookup" not in key})
        if streamer is not None:
            most = 1 + (keywords.get("prompt_lookup_num_tokens") or 0)
            streamer.put(ids)
            streamer.put(found[:, ids.shape[1] :][:, :most])
        return found

    monkeypatch.setattr(type(model.hf), "generate", at_once)
    (lookup,) = searched_of(setting, Extent((LOOKUP,)), 0.0, 1.0)
    assert isinstance(lookup, Decoder)
    decoded = lookup.decode(setting.prompts[0], 2)
    assert (len(decoded.tokens[0]), decoded.first_tokens) == (2, 2)
    with pytest.raises(ModelError, match="all 2 new tokens came at once"):
        _ = decoded.seconds_per_token
    assert generate(model, setting.prompts[0], 6).seconds_per_token > 0.0
    assert DecodedBatch(((1, 2, 3),), 0.1, 0.4).seconds_per_token == pytest.approx(0.2)


def test_what_was_timed_before_and_is_slower_takes_no_turns_and_is_no_rival() -> None:
    setting = settled(family_model("llama"), "static:exit=2", prompts=PROMPTS, new_tokens=4)
    slower = {str(CUT_HEAD): "int4", LOOKUP: "int8"}
    result = run(setting, limits=TimeLimits(rounds=1), extent=replace(SHORT, slower=slower)).result
    found = {one.name: one for one in result.contenders if one.name in slower}
    assert {name: one.left_out for name, one in found.items()} == {
        name: f"slower than {faster}, beside which it was timed before" for name, faster in slower.items()
    }
    assert all(one.full_depth for one in found.values())
    assert result.untimed_rivals == ()
