"""The bench on tiny models: honest counts, equal outputs, peers that are left out, a model left as it was."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from bench_cases import family_model, hook_count
from generation_cases import tiny_llama

from offramp.decoding.bench import contenders, generating
from offramp.decoding.bench.bench import bench, measure, run, settle
from offramp.decoding.bench.contenders import (
    GENERATE,
    NEVER,
    NEVER_AGAIN,
    SHORT,
    STATIC_CACHE,
    Extent,
    candidates_of,
)
from offramp.decoding.bench.entrant import Entrant
from offramp.decoding.bench.ratios import median, paired_ratios
from offramp.decoding.bench.results import (
    BenchResult,
    Interval,
)
from offramp.decoding.bench.together import Measurement, run_together
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.errors import InputError, ModelError, OfframpError, PolicyError

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
    return measure(tiny_llama(), POLICY, prompts=PROMPTS, cells=cells, new_tokens=8, rounds=3)


def assert_counted(measured: Measurement) -> None:
    for contender in measured.result.contenders:
        if contender.role != "peer":
            assert contender.left_out is None, contender
            assert contender.claimed_layers_per_token == contender.layers_per_token, contender.name
    assert not any("layers a token" in reason for reason in measured.result.reasons)


def test_claims_equal_what_hooks_count(measured: Measurement) -> None:
    assert_counted(measured)
    result = measured.result
    assert result.contender("static:exit=2 (monotone)").layers_per_token == 2.0
    for name in (NEVER, NEVER_AGAIN, GENERATE, STATIC_CACHE):
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
    must = {one.name for one in measured.result.contenders if one.output_must_match}
    lossless = {f"{POLICY} (speculate)", "static:exit=2 (speculate)"}
    assert must == {NEVER, NEVER_AGAIN, GENERATE, *lossless}
    assert all(measured.result.contender(name).same_output == 1.0 for name in must)
    assert measured.result.contender("static:exit=2 (monotone)").same_output == 0.0


def test_everybody_decodes_as_many_tokens_as_generate_does(measured: Measurement) -> None:
    for decoded in measured.decoded.values():
        assert [len(row) for batch in decoded for row in batch.tokens] == [8, 8]
    hf = tiny_llama().hf
    ids = torch.tensor([PROMPTS[0]])
    own = hf.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=-1
    )
    assert measured.decoded[NEVER][0].tokens == (tuple(own[0, 4:].tolist()),)


def test_all_take_as_many_turns_and_the_plain_one_is_the_fastest(measured: Measurement) -> None:
    result = measured.result
    timed = [one for one in result.contenders if one.left_out is None]
    assert {len(one.samples) for one in timed} == {3 * len(PROMPTS)}
    plain = {one.name: one.seconds_per_token for one in timed if one.role == "plain"}
    assert result.plain == min(plain, key=lambda name: plain[name].value if plain[name] else 0.0)  # type: ignore[union-attr]
    assert result.contender(result.plain).speedup == Interval(1.0, 1.0, 1.0)
    for one in timed:
        assert one.first_token_seconds is not None
        assert 0 < one.first_token_seconds < 60


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


def lying(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> BenchResult:
    """The result of a decoder whose records are changed."""
    honest = contenders.generate_batch

    def generate(*arguments: Any, **keywords: Any) -> Any:
        ran = honest(*arguments, **keywords)
        if keywords["policy"] is None:
            return ran
        row = ran.rows[0]
        tokens = [*row.tokens[:-1], (row.tokens[-1] + changes.get("last", 0)) % 320]
        rows = (dataclasses.replace(row, tokens=tokens),)
        return dataclasses.replace(
            ran, rows=rows, layers_executed=ran.layers_executed - changes.get("layers", 0)
        )

    monkeypatch.setattr(contenders, "generate_batch", generate)
    return bench(
        tiny_llama(),
        "static:exit=2",
        kv="speculate",
        prompts=PROMPTS[:1],
        new_tokens=6,
        rounds=1,
        peers=False,
    )


def test_a_decoder_that_claims_less_than_ran_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    result = lying(monkeypatch, layers=5)
    assert result.validity == "INVALID"
    assert any("(speculate) says that it ran" in reason for reason in result.reasons)


def test_a_lossless_decoder_that_loses_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    result = lying(monkeypatch, last=1)
    assert result.validity == "INVALID"
    assert "but new token 6 of prompt 1 is" in result.reasons[0]


def test_in_bfloat16_no_output_must_match() -> None:
    model = dataclasses.replace(tiny_llama(), dtype="bfloat16")
    entrants = candidates_of(
        settle(model, "static:exit=2", kv="speculate", prompts=PROMPTS, new_tokens=4), Extent(peers=False)
    )
    assert not any(one.output_must_match for one in entrants if isinstance(one, Entrant))


def test_a_family_that_ignores_the_number_of_layers_has_no_assistant() -> None:
    model = family_model("gpt2")
    result = bench(model, "static:exit=2", prompts=PROMPTS, new_tokens=6, rounds=1)
    peer = result.contender(assistant(2))
    assert peer.left_out == "this family ignores num_hidden_layers: it runs 4 layers where 2 are asked for"
    assert (peer.samples, peer.speedup) == ((), None)
    assert result.contender(LOOKUP).left_out is None


def test_a_recurrent_family_is_timed_without_the_peers_that_cannot() -> None:
    result = bench(family_model("mamba"), "static:exit=2", prompts=PROMPTS, new_tokens=4, rounds=1)
    assert "ignores num_hidden_layers" in str(result.contender(assistant(2)).left_out)
    assert "stateful models" in str(result.contender(LOOKUP).left_out)
    assert result.contender(NEVER).same_output == 1.0


def test_what_fails_beside_the_policy_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = generating.generate

    def generate(*arguments: Any, **keywords: Any) -> Any:
        if keywords.get("cache_implementation") == "static":
            raise ValueError("no cache of fixed size")
        return fails(*arguments, **keywords)

    monkeypatch.setattr(contenders, "generate", generate)
    result = bench(tiny_llama(), "static:exit=2", prompts=PROMPTS, new_tokens=4, rounds=1, peers=False)
    assert result.contender(STATIC_CACHE).left_out == "ValueError: no cache of fixed size"
    assert result.plain in (NEVER, GENERATE)
    assert [one.name for one in result.contenders if one.left_out] == [STATIC_CACHE]


def test_without_generate_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **keywords: Any) -> Any:
        raise ValueError("no generation today")

    monkeypatch.setattr(contenders, "generate", fails)
    with pytest.raises(
        ModelError, match=r"generate\(\) fails on this model: ValueError: no generation today"
    ):
        bench(tiny_llama(), "static:exit=2", prompts=PROMPTS, new_tokens=4, rounds=1, peers=False)


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
    model = tiny_llama()
    hf = model.hf
    config, entries = hf.generation_config, copy.deepcopy(hf.generation_config.to_dict())
    hooks, names = hook_count(hf), set(hf.__dict__)
    state = {name: value.clone() for name, value in hf.state_dict().items()}
    setting = settle(model, "static:exit=2", prompts=PROMPTS, new_tokens=6)
    if failing:
        # Drafting fails while `generate` has told the model that it has two layers.
        def fails(*arguments: Any, **keywords: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr("transformers.generation.candidate_generator.DynamicCache", fails, raising=False)
        monkeypatch.setattr(
            "transformers.generation.candidate_generator.AssistedCandidateGenerator.get_candidates", fails
        )
        with pytest.raises(KeyboardInterrupt):
            run(setting, rounds=1)
    else:
        run(setting, rounds=1)
    assert hf.generation_config is config
    assert hf.generation_config.to_dict() == entries
    assert hf.config.num_hidden_layers == 4
    assert (hook_count(hf), set(hf.__dict__)) == (hooks, names)
    assert all(torch.equal(value, state[name]) for name, value in hf.state_dict().items())


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
    for name, decoded in expected.decoded.items():
        assert [one.tokens for one in found.decoded[name]] == [one.tokens for one in decoded]


BAD: list[tuple[dict[str, Any], type[OfframpError], str]] = [
    ({"kv": "propagat"}, PolicyError, "unknown strategy 'propagat'"),
    ({"policy": "static:exit=9"}, PolicyError, "beyond the model"),
    ({"policy": "oracle"}, PolicyError, "oracle"),
    ({"policy": "statik:exit=2"}, PolicyError, "unknown policy"),
    ({"cells": [("static:exit=7", "propagate")]}, PolicyError, "beyond the model"),
    ({"prompts": []}, InputError, "no prompts"),
    ({"prompts": [[1], []]}, InputError, "has no tokens"),
    ({"prompts": [[1, 320]]}, InputError, "320"),
    ({"prompts": [[1] * 125]}, InputError, "exceed the context of 128"),
    ({"new_tokens": 3}, InputError, "new tokens: 3 is too few"),
    ({"rounds": 0}, InputError, "rounds: 0 is too few"),
    ({"batch": 0}, InputError, "batch: 0 is too few"),
    ({"draft_length": 0, "kv": "speculate"}, InputError, "draft length"),
    ({"batching": "lokstep"}, PolicyError, "batching"),
]


@pytest.mark.parametrize(("options", "kind", "what"), BAD, ids=[next(iter(bad[0])) + bad[2] for bad in BAD])
def test_bad_input(options: dict[str, Any], kind: type[OfframpError], what: str) -> None:
    policy = options.get("policy", "static:exit=2")
    rest = {"prompts": PROMPTS, "new_tokens": 4, "rounds": 1} | options
    rest.pop("policy", None)
    with pytest.raises(kind, match=what):
        bench(tiny_llama(), policy, **rest)


def test_a_strategy_that_the_family_cannot_have_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    setting = settle(
        model, "static:exit=2", prompts=PROMPTS, cells=[("static:exit=2", "recompute")], new_tokens=4
    )
    monkeypatch.setattr(
        STRATEGIES["recompute"], "check", classmethod(lambda kind, request: _refuse()), raising=True
    )
    result = run(setting, rounds=1, peers=False).result
    assert result.contender("static:exit=2 (recompute)").left_out == "not on this family"


def _refuse() -> None:
    raise InputError("not on this family")


def test_every_contender_has_a_name_of_its_own(measured: Measurement) -> None:
    names = [one.name for one in measured.result.contenders]
    assert len(names) == len(set(names)) == len(measured.result.contenders)


def test_texts_measured_together_share_the_identical_contenders_and_little_else() -> None:
    model = tiny_llama()
    settings = [
        settle(model, POLICY, prompts=PROMPTS, cells=[("static:exit=2", "speculate")], new_tokens=6),
        settle(model, "static:exit=1", prompts=PROMPTS[::-1], new_tokens=5),
    ]
    first, second = run_together(settings, rounds=[3, 2], extent=SHORT)
    assert isinstance(first, Measurement)
    assert isinstance(second, Measurement)
    for found, rounds in ((first, 3), (second, 2)):
        assert_counted(found)
        names = {one.name for one in found.result.contenders}
        assert {NEVER, NEVER_AGAIN, GENERATE} < names
        assert STATIC_CACHE not in names
        assert {len(one.samples) for one in found.result.contenders} == {2 * rounds}
        assert found.result.contender(NEVER).same_output == 1.0
        assert all(len(decoded) == len(PROMPTS) for decoded in found.decoded.values())
    assert len(first.result.contenders) == 5
    assert len(second.result.contenders) == 4
    ratios = [
        paired_ratios(found.result.contender(NEVER).samples, found.result.contender(NEVER_AGAIN).samples)
        for found in (first, second)
    ]
    assert first.result.a_a == second.result.a_a == median([*ratios[0], *ratios[1]])
    assert "the two identical contenders are compared on all texts together: 10 pairs" in first.result.notes
    assert any("too few samples for an interval: 4" in reason for reason in second.result.reasons)
    assert not any("too few samples" in reason for reason in first.result.reasons)
    alone = measure(model, "static:exit=1", prompts=PROMPTS[::-1], new_tokens=5, rounds=1, peers=False)
    for name, decoded in second.decoded.items():
        assert [one.tokens for one in decoded] == [one.tokens for one in alone.decoded[name]]
    layers = second.result.contender("static:exit=1 (propagate)").layers_per_token
    assert layers == alone.result.contender("static:exit=1 (propagate)").layers_per_token


def test_one_text_whose_policy_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    settings = [
        settle(model, f"static:exit={exit}", prompts=PROMPTS, kv=kv, new_tokens=4)
        for exit, kv in ((1, "propagate"), (2, "recompute"))
    ]
    monkeypatch.setattr(STRATEGIES["recompute"], "check", classmethod(lambda kind, request: _refuse()))
    first, second = run_together(settings, rounds=[1, 1], extent=SHORT)
    assert isinstance(first, Measurement)
    assert isinstance(second, InputError)
    assert second.what == "not on this family"
