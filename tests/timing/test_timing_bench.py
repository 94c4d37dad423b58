"""The bench on tiny models: honest counts, equal outputs, peers that are left out, a model left as it was."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bench_cases import family_model, measure, settled
from generation_cases import state_of, tiny_llama

from offramp.decoding.judging import judge
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.errors import InputError, ModelError, OfframpError, PolicyError
from offramp.scoring.estimate import Estimate
from offramp.timing import contenders, decoder
from offramp.timing.bench import Measurement, bench, judged_answers, run, with_agreement
from offramp.timing.contenders import (
    CUT_HEAD,
    GENERATE,
    NEVER,
    ONE_CALL,
    SHORT,
    STATIC_CACHE,
    WITHOUT_PEERS,
    Extent,
    candidates_of,
)
from offramp.timing.decoder import Decoder, parted
from offramp.timing.forecast import counted_plain, pricing
from offramp.timing.results import BenchResult, Cluster, Contender
from offramp.timing.stopping import TimeLimits

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]
POLICY = "threshold:signal=margin,value=0.04,exits=1+2+3"
LOOKUP = "generate(prompt_lookup_num_tokens)"


def assistant(exit: int) -> str:
    return f"generate(assistant_early_exit={exit})"


pytestmark = pytest.mark.usefixtures("uncollected")


@pytest.fixture(scope="module")
def measured(uncollected: None) -> Measurement:
    """The tiny Llama with every strategy, one prompt at a time."""
    others = [(POLICY, kv) for kv in ("recompute", "speculate")]
    cells = [*others, ("static:exit=2", "monotone"), ("static:exit=2", "speculate")]
    return measure(tiny_llama(), POLICY, prompts=PROMPTS, cells=cells, new_tokens=9, rounds=3)


def timed(result: BenchResult, *roles: str) -> list[Contender]:
    """Contenders that took turns, all of them or those of some roles."""
    return [one for one in result.contenders if one.clusters and (not roles or one.role in roles)]


def assert_counted(measured: Measurement) -> None:
    for contender in measured.result.contenders:
        if contender.role in ("policy", "plain", "a/a"):
            assert contender.left_out is None, contender
            assert contender.claimed_layers_per_token == contender.layers_per_token, contender.name
    assert not any("layers" in sentence for sentence in measured.result.defects)


def test_claims_equal_what_hooks_count(measured: Measurement) -> None:
    assert_counted(measured)
    result = measured.result
    half = result.contender("static:exit=2 (monotone)")
    assert half.layers_per_token == 2.0
    assert half.counted is not None
    assert half.counted.layers == 2.0
    assert result.contender(assistant(2)).counted is None
    (again,) = timed(result, "a/a")
    for name in (NEVER, GENERATE, STATIC_CACHE, ONE_CALL, again.name):
        assert result.contender(name).layers_per_token == 4.0
    assert 1.0 < float(result.contender(f"{POLICY} (propagate)").layers_per_token or 0) < 4.0


def test_claims_equal_what_hooks_count_in_padded_batches() -> None:
    for batching in ("lockstep", "rebatch"):
        found = measure(
            tiny_llama(),
            POLICY,
            prompts=PROMPTS,
            cells=[(POLICY, "recompute")] if batching == "lockstep" else [],
            new_tokens=6,
            rounds=1,
            batch=2,
            batching=batching,
        )
        assert_counted(found)
        result = found.result
        assert (result.batch, result.batching, result.prompts) == (2, batching, 2)
        assert result.contender(NEVER).same_output == 1.0
        for name in (assistant(3), LOOKUP):
            assert "batch_size = 1" in str(result.contender(name).left_out)


def test_outputs_that_must_match_do(measured: Measurement) -> None:
    result = measured.result
    must = {one.name for one in result.contenders if one.output_must_match}
    lossless = {f"{POLICY} (speculate)", "static:exit=2 (speculate)"}
    assert {name for name in must if not name.endswith(" again")} == {NEVER, GENERATE, ONE_CALL, *lossless}
    assert all(result.contender(name).same_output == 1.0 for name in must)
    assert result.contender("static:exit=2 (monotone)").same_output == 0.0
    assert not any("must give" in sentence for sentence in result.defects)


def test_everybody_decodes_as_many_tokens_as_generate_does(measured: Measurement) -> None:
    for decoded in measured.decoded.values():
        assert [len(row) for batch in decoded.values() for row in batch.tokens] == [9] * len(decoded)
    hf = tiny_llama().hf
    ids = torch.tensor([PROMPTS[0]])
    own = hf.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, eos_token_id=-1
    )
    assert measured.decoded[measured.result.plain][0].tokens == (tuple(own[0, 4:].tolist()),)


def speed_of(clusters: Sequence[Cluster]) -> float:
    """The ratio written out: seconds over seconds; of what has a price, prices over prices, corrected."""
    if any(one.priced is None for one in clusters):
        return float(1.0 / np.mean([np.exp(-one.log_ratio) for one in clusters]))
    priced = [one.priced or 0.0 for one in clusters]
    missing = [one.log_ratio - price for one, price in zip(clusters, priced, strict=True)]
    correction = np.average(missing, weights=[one.weight for one in clusters])
    return float(np.exp(correction) / np.mean(np.exp(-np.array(priced))))


def test_what_ran_has_one_price_whoever_ran_it(measured: Measurement) -> None:
    """A token of the full model in bytes, by the loop's own record and of plain decoders that keep none."""
    setting, price = measured.setting, pricing(measured.setting, "bytes")
    decoders = {one.name: one for one in parted(candidates_of(setting, Extent()))[0]}
    prices = {
        name: price(decoders[name], batches[0])
        for name, batches in measured.decoded.items()
        if name in decoders
    }
    assert prices[NEVER] == pytest.approx(counted_plain(setting).bytes, rel=0.01)  # at another position
    for name in (GENERATE, STATIC_CACHE):
        assert prices[name] == pytest.approx(prices[NEVER], rel=1e-9), name
    policy = next(one for one in measured.result.contenders if one.role == "policy")
    assert policy.counted is not None
    assert prices[policy.name] == pytest.approx(policy.counted.bytes, rel=0.2)


def test_prompts_are_the_clusters_and_the_plain_decoder_is_the_fastest(measured: Measurement) -> None:
    result = measured.result
    assert result.plain in (NEVER, GENERATE, STATIC_CACHE, ONE_CALL)
    plain = result.contender(result.plain)
    assert (plain.ratio, plain.answer, plain.clusters) == (Estimate(1.0, 1.0, 1.0), "equivalent", ())
    for one in timed(result):
        assert [cluster.prompt for cluster in one.clusters] == [0, 1], one.name
        assert one.ratio is not None
        assert one.ratio.value == pytest.approx(speed_of(one.clusters)), one.name
        steps = one.role in ("policy", "plain", "a/a")
        assert all((cluster.priced is not None) == steps for cluster in one.clusters), one.name
        assert one.ratio.low is not None
        assert one.first_token_seconds is not None
        assert 0 < one.first_token_seconds < 60
    assert {len(one.samples) for one in timed(result, "policy", "a/a")} == {6}
    rarely = {one.name: len(one.samples) for one in timed(result, "peer")}
    assert rarely == {LOOKUP: 6, assistant(2): 3, assistant(3): 3}  # of one prompt in each round
    plains = [one for one in result.contenders if one.role == "plain" and one.samples]
    assert {NEVER, GENERATE, STATIC_CACHE} <= {one.name for one in plains}
    assert max(one.ratio.value for one in plains if one.ratio) == 1.0
    if not timed(result, "a/a")[0].name.startswith(ONE_CALL):  # of the pilot only: a figure, and no answer
        one = result.contender(ONE_CALL)
        assert (one.answer, one.samples, one.ratio and one.ratio.low) == ("unresolved", (), None)
        assert one.seconds_per_token is not None
    assert (result.rounds, result.prompts, result.stopped) == (3, 2, "rounds")


def test_seconds_are_the_plain_decoders_over_the_ratio(measured: Measurement) -> None:
    result = measured.result
    plain = result.contender(result.plain).seconds_per_token
    assert plain is not None
    assert plain.low is not None
    for one in result.contenders:
        if one.ratio is None or one.role == "a/a" or one.name == result.plain:
            continue
        seconds = one.seconds_per_token
        assert seconds is not None
        assert seconds.value == pytest.approx(plain.value / one.ratio.value)
        if one.ratio.low is not None:
            assert seconds.high == pytest.approx(plain.value / one.ratio.low)
            assert seconds.low < seconds.value < seconds.high  # type: ignore[operator]


def test_the_same_decoder_twice_is_compared_at_99_percent(measured: Measurement) -> None:
    (again,) = timed(measured.result, "a/a")
    assert again.ratio is not None
    assert measured.result.a_a.value == again.ratio.value
    assert measured.result.a_a.high > again.ratio.high  # type: ignore[operator]


def test_the_circumstances_are_recorded(measured: Measurement) -> None:
    found = measured.result.circumstances
    assert found["threads"] == torch.get_num_threads()
    assert found["dtype"] == "float32"
    assert len(found["load_average"]) == 2
    assert found["other_load"] >= 0
    assert found["model_fingerprint"] == tiny_llama().identity.fingerprint
    assert {"processor", "governor", "omp_wait_policy", "versions", "date", "seed", "cores"} <= set(found)
    assert len(found["policy_fingerprints"]) == 5


def test_drafts_are_tried_and_the_best_length_is_said(measured: Measurement) -> None:
    notes = [note for note in measured.result.notes if "drafts of" in note]
    assert len(notes) == 3  # exits 2 and 3, and the prompt's own tokens
    assert any(note.startswith(assistant(2)) and "of 1, 2, 4 in a trial" in note for note in notes)
    assert measured.result.contender(assistant(2)).same_output == 1.0


def test_the_executed_agreement_is_judged_on_each_answers_own_prefix(measured: Measurement) -> None:
    quality = judged_answers(measured)
    result = with_agreement(measured.result, measured.setting, quality)
    model = tiny_llama()
    for name in (f"{POLICY} (propagate)", "static:exit=2 (monotone)"):
        right = []
        for place, decoded in measured.decoded[name].items():
            judged = judge(model, PROMPTS[place], list(decoded.tokens[0]))
            right += (judged.chosen == np.array(decoded.tokens[0])).tolist()[1:]
        found = result.contender(name).executed_agreement
        assert found is not None
        assert found.value == pytest.approx(np.mean(right))
        assert found.low is None  # two prompts have no interval
    for name in (result.plain, NEVER, f"{POLICY} (speculate)", LOOKUP):
        assert result.contender(name).executed_agreement == Estimate(1.0)
    assert result.floor is None  # the policy was not tuned


def lying(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> BenchResult:
    """The result of a decoder whose records are changed."""
    honest = decoder.LoopRunning.finish

    def finish(loop: decoder.LoopRunning, *seconds: float) -> Any:
        decoded = honest(loop, *seconds)
        if not loop._loop.plan.policy.needs(4):
            return decoded
        row = list(decoded.tokens[0])
        row[-1] = (row[-1] + changes.get("last", 0)) % 320
        claimed = (decoded.claimed_layers or 0) - changes.get("layers", 0)
        return dataclasses.replace(decoded, tokens=(tuple(row),), claimed_layers=claimed)

    monkeypatch.setattr(decoder.LoopRunning, "finish", finish)
    return bench(
        tiny_llama(),
        "static:exit=2",
        kv="speculate",
        prompts=PROMPTS,
        new_tokens=6,
        rounds=1,
        peers=False,
    )


@pytest.mark.parametrize(
    ("lie", "said"),
    [({"layers": 5}, "(speculate) says that it ran"), ({"last": 1}, "but new token 6 of prompt 1 is")],
)
def test_a_claim_of_less_than_ran_and_a_lossless_decoder_that_loses_are_defects(
    monkeypatch: pytest.MonkeyPatch, lie: dict[str, int], said: str
) -> None:
    result = lying(monkeypatch, **lie)
    assert result.answer == "defect"
    assert any(said in sentence for sentence in result.defects)
    assert result.contender(result.plain).answer == "equivalent"  # nothing is wrong with that


def test_a_slowed_repeat_is_a_defect_of_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decoders that are said to be the same, of which one takes many times as long."""
    honest = contenders.again

    def slowed(decoder: Decoder) -> Decoder:
        again = honest(decoder)
        start = again.start
        assert start is not None

        def slowly(prompts: Any, new_tokens: int) -> Any:
            running = start(prompts, new_tokens)
            step = running.step

            def slow() -> None:
                time.sleep(0.05)
                step()

            running.step = slow  # type: ignore[method-assign]
            return running

        return dataclasses.replace(again, start=slowly)

    monkeypatch.setattr("offramp.timing.session.again", slowed)
    prompts = [[1 + place, 2, 3] for place in range(6)]
    setting = settled(tiny_llama(), "static:exit=2", prompts=prompts, new_tokens=9)
    extent = dataclasses.replace(WITHOUT_PEERS, plain=GENERATE)
    result = run(setting, limits=TimeLimits(rounds=1), extent=extent).result
    assert result.a_a.high is not None
    assert result.a_a.high < 1.0
    assert "the same decoder twice comes out unequal" in result.defects[-1]
    assert {one.answer for one in timed(result)} == {"defect"}


def test_in_bfloat16_no_output_must_match() -> None:
    model = dataclasses.replace(tiny_llama(), dtype="bfloat16")
    decoders = candidates_of(
        settled(model, "static:exit=2", kv="speculate", prompts=PROMPTS, new_tokens=4), WITHOUT_PEERS
    )
    assert not any(one.output_must_match for one in decoders if isinstance(one, Decoder))


# transformers takes a recurrent state back after rejected drafts since 5.25.
TAKES_BACK = hasattr(transformers.Cache, "get_recurrent_states_to_keep")


@pytest.mark.parametrize(
    ("family", "lookup"), [("gpt2", None), ("mamba", None if TAKES_BACK else "stateful models")]
)
def test_a_family_is_timed_without_the_peers_that_cannot(family: str, lookup: str | None) -> None:
    result = bench(family_model(family), "static:exit=2", prompts=PROMPTS, new_tokens=4, rounds=1)
    peer = result.contender(assistant(2))
    assert "this family ignores num_hidden_layers: it runs " in str(peer.left_out)
    assert (peer.samples, peer.ratio) == ((), None)
    left_out = result.contender(LOOKUP).left_out
    assert left_out is None if lookup is None else lookup in str(left_out)
    assert result.contender(NEVER).same_output == 1.0


def test_a_check_of_the_short_list_that_is_the_output_counts_as_a_head_too() -> None:
    """Every token leaves by it, and the price of a token has no other head (`gain.head`)."""
    policy = "shortlist:policy=[threshold:signal=restricted_margin,value=0,exits=2]"
    setting = settled(tiny_llama(), policy, prompts=PROMPTS, new_tokens=4)
    extent = dataclasses.replace(WITHOUT_PEERS, plain=GENERATE)
    counted = run(setting, limits=TimeLimits(rounds=1), extent=extent).result.contenders[0].counted
    assert counted is not None
    assert (counted.layers, counted.heads, counted.probes) == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("failing", [[STATIC_CACHE], [GENERATE, STATIC_CACHE]])
def test_what_fails_beside_the_policy_is_left_out(
    monkeypatch: pytest.MonkeyPatch, failing: list[str]
) -> None:
    """The cache of fixed size, or every step of the library, which is still timed in one call."""
    works = decoder.PlainRunning.__init__

    def start(running: Any, *arguments: Any, **keywords: Any) -> None:
        if GENERATE in failing or keywords.get("cache_implementation") == "static":
            raise ValueError("other arguments")
        works(running, *arguments, **keywords)

    monkeypatch.setattr(decoder.PlainRunning, "__init__", start)
    result = bench(tiny_llama(), "static:exit=2", prompts=PROMPTS, new_tokens=4, rounds=1, peers=False)
    left_out = {one.name: one.left_out for one in result.contenders if one.left_out}
    assert left_out == dict.fromkeys(failing, "ValueError: other arguments")
    assert result.plain in {NEVER, GENERATE, ONE_CALL} - set(failing)
    assert result.contender(ONE_CALL).seconds_per_token is not None


def test_without_generate_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **keywords: Any) -> Any:
        raise ValueError("no generation today")

    monkeypatch.setattr(contenders, "generate", fails)
    with pytest.raises(
        ModelError, match=r"generate\(\) in one call fails on this model: ValueError: no generation today"
    ):
        bench(tiny_llama(), "static:exit=2", prompts=PROMPTS, new_tokens=4, rounds=1, peers=False)


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
    model = tiny_llama()
    before = state_of(model.hf)
    setting = settled(model, "static:exit=2", prompts=PROMPTS, new_tokens=6)
    if failing:
        # Drafting fails while `generate` has told the model that it has two layers.
        def fails(*arguments: Any, **keywords: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr("transformers.generation.candidate_generator.DynamicCache", fails, raising=False)
        monkeypatch.setattr(
            "transformers.generation.candidate_generator.AssistedCandidateGenerator.get_candidates", fails
        )
        with pytest.raises(KeyboardInterrupt):
            run(setting, limits=TimeLimits(rounds=1), extent=Extent())
    else:
        run(setting, limits=TimeLimits(rounds=1), extent=Extent())
    assert state_of(model.hf) == before


def test_a_config_of_the_models_own_changes_nothing() -> None:
    model = tiny_llama()
    before = model.hf.generation_config
    expected = measure(model, "static:exit=2", prompts=PROMPTS, new_tokens=6, rounds=1, peers=False)
    model.hf.generation_config = copy.deepcopy(before)
    model.hf.generation_config.update(repetition_penalty=5.0, do_sample=True, eos_token_id=list(range(300)))
    try:
        found = measure(model, "static:exit=2", prompts=PROMPTS, new_tokens=6, rounds=1, peers=False)
    finally:
        model.hf.generation_config = before
    for name in ("static:exit=2 (propagate)", expected.result.plain):
        own, other = (one.decoded[name] for one in (expected, found)) if name in found.decoded else ({}, {})
        assert {place: one.tokens for place, one in own.items()} == {
            place: one.tokens for place, one in other.items()
        }


BAD: list[tuple[dict[str, Any], type[OfframpError], str]] = [
    ({"cells": [("static:exit=7", "propagate")]}, PolicyError, "beyond the model"),
    ({"prompts": []}, InputError, "no prompts"),
    ({"prompts": [[1, 320]]}, InputError, "320"),
    ({"prompts": [[1] * 125]}, InputError, "exceed the context of 128"),
    ({"new_tokens": 3}, InputError, "new tokens must be at least 4"),
    ({"rounds": None, "budget_seconds": None}, InputError, "seconds must be given where rounds are not"),
]


@pytest.mark.parametrize(("options", "kind", "what"), BAD, ids=[next(iter(bad[0])) + bad[2] for bad in BAD])
def test_bad_input(options: dict[str, Any], kind: type[OfframpError], what: str) -> None:
    with pytest.raises(kind, match=what):
        bench(tiny_llama(), "static:exit=2", **{"prompts": PROMPTS, "new_tokens": 4, "rounds": 1, **options})


@pytest.mark.parametrize("asked_first", [False, True])
def test_a_strategy_that_the_family_cannot_have_is_left_out_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked_first: bool
) -> None:
    def refuse(kind: object, request: object) -> None:
        raise InputError("not on this family")

    kvs = ["recompute", "propagate"] if asked_first else ["propagate", "recompute"]
    cells = [("static:exit=2", kvs[1])]
    setting = settled(tiny_llama(), "static:exit=2", prompts=PROMPTS, kv=kvs[0], cells=cells, new_tokens=4)
    monkeypatch.setattr(STRATEGIES["recompute"], "check", classmethod(refuse))
    if asked_first:
        with pytest.raises(InputError, match="not on this family"):
            run(setting, limits=TimeLimits(rounds=1), extent=WITHOUT_PEERS)
    else:
        result = run(setting, limits=TimeLimits(rounds=1), extent=WITHOUT_PEERS).result
        assert result.contender("static:exit=2 (recompute)").left_out == "not on this family"


def test_a_short_measurement_has_what_a_verdict_and_forecasts_need() -> None:
    cells = [("static:exit=2", "speculate")]
    setting = settled(tiny_llama(), POLICY, prompts=PROMPTS, cells=cells, new_tokens=6)
    found = run(setting, limits=TimeLimits(rounds=2), extent=SHORT)
    assert_counted(found)
    names = {one.name for one in found.result.contenders}
    assert {NEVER, GENERATE, ONE_CALL} < names
    assert STATIC_CACHE not in names
    assert {len(one.samples) for one in timed(found.result) if one.role != "a/a"} == {4}
    assert [one.name for one in timed(found.result, "peer")] == [LOOKUP]
    cut = found.result.contender(str(CUT_HEAD))
    assert (cut.role, cut.left_out) == ("short list", "the short list holds the whole vocabulary")
    assert found.result.contender(NEVER).seconds_per_token is not None  # forecasts need it
    assert found.result.contender(NEVER).same_output == 1.0
    assert all(sorted(decoded) == [0, 1] for decoded in found.decoded.values())
    assert len(timed(found.result, "policy")) == 2
    (again,) = timed(found.result, "a/a")
    assert found.result.a_a.value == pytest.approx(speed_of(again.clusters))
