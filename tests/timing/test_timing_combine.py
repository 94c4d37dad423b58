"""Accelerations combined on a tiny model: who takes part, outputs, exits on pruned models, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation_cases import tiny_llama
from reading_cases import random_heads

import offramp
from offramp.commands import loadable_name
from offramp.decoding.options import DecodingOptions
from offramp.errors import DamagedFileError, InputError, PolicyError
from offramp.files import write_sealed_json
from offramp.heads.exit_heads import ExitHeads
from offramp.scoring.estimate import Estimate
from offramp.timing.accelerations import (
    combinations_of,
    excluded_of,
    name_of,
    read_accelerations,
)
from offramp.timing.combine import combine, interaction_of
from offramp.timing.contenders import GENERATE, NEVER, ONE_CALL, STATIC_CACHE
from offramp.timing.ratios import product_of
from offramp.timing.results import (
    COMBINED,
    LOOKUP,
    Cluster,
    Combination,
    CombineResult,
    Quality,
)
from offramp.timing.stopping import TimeLimits
from offramp.timing.variants import kept_layers

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]
POLICY = "static:exit=3"
ASKED = ("prune:drop=2", "exits", "speculate", "prompt_lookup")


pytestmark = pytest.mark.usefixtures("uncollected")


def decoding(new_tokens: int, policy: str | None = POLICY, kv: str | None = None) -> DecodingOptions:
    return DecodingOptions.read(policy, kv=kv, new_tokens=new_tokens)


@pytest.fixture(scope="module")
def result(uncollected: None) -> CombineResult:
    return combine(
        tiny_llama(),
        ASKED,
        decoding(7, kv="recompute"),
        prompts=PROMPTS,
        limits=TimeLimits(rounds=3),
        workload="numbers",
    )


def names(texts: list[str]) -> list[str]:
    return [name_of(parts) for parts in combinations_of(read_accelerations(texts))]


def test_combinations_hold_one_of_each_group() -> None:
    assert names(["int8", "prune:drop=2", "exits"]) == [
        "plain",
        "prune",  # before int8: importance is that of exact layers
        "int8",
        "exits",
        "prune + int8",
        "prune + exits",
        "int8 + exits",
        "prune + int8 + exits",
    ]
    assert names(["prompt_lookup", "exits", "speculate"])[1:] == [
        *("exits", "speculate", "prompt_lookup"),
        "exits + prompt_lookup",
    ]
    assert names(["exits", "prune:drop=2", "shortlist"])[1:] == [
        *("prune", "shortlist", "exits"),
        *("prune + shortlist", "prune + exits", "shortlist + exits"),
        "prune + shortlist + exits",
    ]
    assert "prune + speculate" in names(["speculate", "prune:drop=2", "exits"])


def test_alternatives_are_named_apart_and_said_to_exclude_each_other() -> None:
    two = ["prune:drop=2", "prune:drop=2+3", "exits", "speculate"]
    assert names(two)[:3] == ["plain", "prune:drop=2", "prune:drop=2+3"]
    assert len(names(two)) == 9
    first, second = excluded_of(read_accelerations(two))
    assert first.startswith("prune:drop=2 and prune:drop=2+3 are not combined with each other")
    assert second.startswith("exits and speculate are not combined with each other")
    assert excluded_of(read_accelerations(["prune:drop=2", "exits", "shortlist"])) == ()
    drafting = ["prompt_lookup", "shortlist", "speculate"]
    assert names(drafting)[1:] == ["shortlist", "speculate", "prompt_lookup", "shortlist + prompt_lookup"]
    (first, second) = excluded_of(read_accelerations(drafting))
    assert first.startswith("speculate is not combined with shortlist")
    assert second.startswith("speculate is not combined with prompt_lookup")
    native = ["llama.cpp", "shortlist", "int8", "exits"]
    assert [name for name in names(native) if "llama.cpp" in name] == ["llama.cpp"]
    (first, second) = excluded_of(read_accelerations(native))
    assert first.startswith("llama.cpp and exits are not combined with each other")
    assert second.startswith("llama.cpp is not combined with shortlist or int8")


def found_of(result: CombineResult, *parts: str) -> Combination:
    """The combination of some parts, which must be there."""
    found = result.combination(*parts) if parts else result.combinations[0]
    assert found is not None
    return found


def quality_of(result: CombineResult, *parts: str) -> Quality:
    """Its quality, which must be known."""
    quality = found_of(result, *parts).quality
    assert quality is not None
    return quality


def test_an_output_head_cut_to_a_short_list(uncollected: None) -> None:
    """Beside exits and a pruned model; without heads the list is the first ids, here all of them."""
    asked = ("shortlist", "exits", "prune:drop=2")
    found = combine(tiny_llama(), asked, decoding(7), prompts=PROMPTS[:1], limits=TimeLimits(rounds=2))
    policies = {one.name: one.policy for one in found.combinations}
    assert policies["shortlist"] == policies["prune + shortlist"] == "shortlist:policy=[never],at=all"
    assert policies["shortlist + exits"] == f"shortlist:policy=[{POLICY}],at=all"
    assert policies["prune + shortlist + exits"] == "shortlist:policy=[static:exit=2],at=all"
    assert policies["exits"] == POLICY
    assert all(one.contender.left_out is None and one.quality for one in found.combinations)
    for cut, whole in ((["shortlist"], []), (["shortlist", "exits"], ["exits"])):
        first, second = found_of(found, *cut), found_of(found, *whole)
        assert first.quality == second.quality
        assert first.contender.layers_per_token == second.contender.layers_per_token
        assert not first.contender.output_must_match
    assert found_of(found, "shortlist", "exits").interaction is not None
    size = tiny_llama().shape.vocabulary_size
    assert f"shortlist: its tokens are the first {size} ids of the vocabulary" in found.notes


def test_a_short_list_that_heads_bring(uncollected: None) -> None:
    model = tiny_llama()
    listed = range(0, model.shape.vocabulary_size, 2)
    heads = random_heads(model, (3,), lens=False, facts=(), shortlist=tuple(listed))
    found = combine(
        model,
        ["shortlist"],
        decoding(7, None),
        prompts=PROMPTS[:1],
        heads=[heads],
        limits=TimeLimits(rounds=2),
    )
    assert f"shortlist: its tokens are the {len(listed):,} of the heads" in found.notes
    whole = offramp.generate(model, [PROMPTS[0]], max_new_tokens=7, eos_token_id=None)[0].tokens
    kept = np.mean([token % 2 == 0 for token in whole])
    assert quality_of(found, "shortlist").forced_agreement.value == pytest.approx(kept)


def test_prompt_lookup_through_a_cut_head_gives_the_tokens_of_the_cut_head(uncollected: None) -> None:
    model = tiny_llama()
    head = model.hf.get_output_embeddings()
    listed = tuple(range(0, model.shape.vocabulary_size, 3))
    heads = random_heads(model, (3,), lens=False, facts=(), shortlist=listed)
    found = combine(
        model,
        ["shortlist", "prompt_lookup"],
        decoding(7, None),
        prompts=PROMPTS,
        heads=[heads],
        limits=TimeLimits(rounds=2),
    )
    cut, whole = found_of(found, "shortlist"), found_of(found, "prompt_lookup")
    both = found_of(found, "shortlist", "prompt_lookup")
    assert both.quality == cut.quality
    assert both.quality != whole.quality
    assert both.contender.left_out is None
    assert {part.part for part in both.on_top} == {"shortlist", "prompt_lookup"}
    assert model.hf.get_output_embeddings() is head


def test_everybody_takes_part_in_one_run(result: CombineResult) -> None:
    assert [one.name for one in result.combinations] == [
        "plain",
        *("prune", "exits", "speculate", "prompt_lookup"),
        *("prune + exits", "prune + speculate", "prune + prompt_lookup", "exits + prompt_lookup"),
        "prune + exits + prompt_lookup",
    ]
    plain_ones = [NEVER, GENERATE, STATIC_CACHE, ONE_CALL]
    *others, lookup, again = (one.name for one in result.others)
    assert others == plain_ones
    assert lookup == LOOKUP  # transformers' own, beside our loop's
    assert again in {f"{name} again" for name in plain_ones}  # the fastest of the pilot, not of the turns
    assert {len(one.contender.samples) for one in result.combinations} == {3 * len(PROMPTS)}
    assert (result.prompts, result.rounds, result.new_tokens, result.workload) == (2, 3, 7, "numbers")
    assert result.plain in plain_ones
    plain = result.combinations[0]
    assert plain.contender.samples == next(one for one in result.others if one.name == result.plain).samples
    assert plain.speedup == Estimate(1.0, 1.0, 1.0)
    assert (result.stopped, result.defects) == ("rounds", ())


def test_combinations_are_held_against_each_other_prompt_by_prompt(result: CombineResult) -> None:
    pruned, left, both = (
        found_of(result, *parts).contender.clusters for parts in (["prune"], ["exits"], ["prune", "exits"])
    )
    together, alone = found_of(result, "exits", "prune"), found_of(result, "exits")
    assert [one.prompt for one in both] == [0, 1]
    assert together.product == product_of((1.0, pruned), (1.0, left))
    assert together.interaction == interaction_of([pruned, left], both)
    added = {one.part: one.speedup.value for one in together.on_top}
    p, e, b = (np.exp([-one.log_ratio for one in of]).mean() for of in (pruned, left, both))
    assert added == {"exits": pytest.approx(p / b), "prune": pytest.approx(e / b)}
    assert (alone.product, alone.interaction, alone.on_top) == (None, None, ())


def single(value: float) -> list[Cluster]:
    """Six prompts on which a part is so many times as fast."""
    return [Cluster(0, prompt, float(np.log(value)), 8) for prompt in range(6)]


def test_a_hand_worked_interaction() -> None:
    # Alone 2 and 1.25 times as fast: together 2.5 times if nothing got in the way. Measured: 100 / 44.
    first, second, together = single(2.0), single(1.25), single(100 / 44)
    both = product_of((1.0, first), (1.0, second))
    assert (both.value, both.low, both.high) == pytest.approx((2.5, 2.5, 2.5))
    found = interaction_of([first, second], together)
    assert found.value == pytest.approx((100 / 44) / 2.5)
    assert found.high is not None
    assert found.high < 1.0
    assert product_of(*((1.0, single(value)) for value in (2.0, 3.0, 1.5))).value == pytest.approx(9.0)


def test_a_prompt_on_which_plain_decoding_was_slow_cancels_in_the_interaction() -> None:
    slow = [0.3, -0.2, 0.5, 0.0, -0.4, 0.1]

    def parts(value: float, times: float) -> list[Cluster]:
        logs = [np.log(value) + times * shift for shift in slow]
        return [Cluster(0, prompt, float(log), 8) for prompt, log in enumerate(logs)]

    # With two parts the noise of the plain decoder is in each of the three ratios.
    found = interaction_of([parts(2.0, 0.5), parts(1.25, 0.5)], parts(2.5, 1.0))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_layers_are_counted_on_each_model(result: CombineResult) -> None:
    layers = {one.name: one.contender.layers_per_token for one in result.combinations}
    assert layers["plain"] == 4.0
    assert layers["prune"] == 3.0
    assert layers["exits"] == 3.0
    assert layers["prune + exits"] == 2.0  # exit 3 without layer 2
    for one in result.combinations:
        claimed = one.contender.claimed_layers_per_token
        assert claimed is None or claimed == one.contender.layers_per_token


def test_lossless_decoders_give_their_models_own_tokens(result: CombineResult) -> None:
    must = {one.name for one in result.combinations if one.contender.output_must_match}
    lossless = {"speculate", "prompt_lookup", "prune + speculate", "prune + prompt_lookup"}
    assert lossless <= must
    for one in result.combinations:
        assert one.name not in lossless or one.contender.same_output == 1.0
    assert not any("must give" in reason for reason in result.defects)
    for decoder in ("speculate", "prompt_lookup"):
        assert quality_of(result, decoder).free_running.sequence_match.value == 1.0
        assert quality_of(result, "prune", decoder) == quality_of(result, "prune")


def test_quality_is_against_the_untransformed_model(result: CombineResult) -> None:
    plain = quality_of(result)
    for found in (plain, quality_of(result, "speculate"), quality_of(result, "prompt_lookup")):
        assert (found.forced_agreement.value, found.shared.value) == (1.0, 1.0)
        assert found.free_running.nll == plain.free_running.nll
    pruned = quality_of(result, "prune")
    assert 0.0 <= pruned.shared.value < 1.0
    assert pruned.free_running.nll.value > pruned.free_running.plain_nll.value


def test_forced_agreement_is_what_each_says_in_the_untransformed_answers_place(result: CombineResult) -> None:
    import torch

    base = tiny_llama()
    pruned = offramp.load_model(str(base.source.folder), transforms=["prune:drop=2"])  # type: ignore[union-attr]
    shares: dict[str, list[float]] = {"prune": [], "exits": [], "prune + exits": []}
    for prompt in PROMPTS:
        answer = offramp.generate(base, torch.tensor([prompt]), max_new_tokens=7, eos_token_id=-1).tokens  # type: ignore[union-attr]
        for name, model, policy in (
            ("prune", pruned, None),
            ("exits", base, POLICY),
            ("prune + exits", pruned, "static:exit=2"),
        ):
            forced = offramp.generate(
                model, torch.tensor([prompt]), policy=policy, kv="recompute", force_tokens=answer
            )
            shares[name].append(float(np.mean(np.array(forced.chosen) == np.array(answer))))  # type: ignore[union-attr]
    for name, expected in shares.items():
        found = quality_of(result, *name.split(" + "))
        assert found.forced_agreement.value == pytest.approx(np.mean(expected)), name


def test_what_ran_is_recorded(result: CombineResult) -> None:
    pruned = found_of(result, "prune", "exits")
    assert pruned.transforms == ("prune:drop=2",)
    assert pruned.policy == "static:exit=2"
    assert result.combinations[0].transforms == ()
    around = result.circumstances
    assert around["model_fingerprint"] == tiny_llama().identity.fingerprint
    assert around["models"]["prune"]["layers"] == 3
    assert around["models"]["prune"]["fingerprint"] != around["model_fingerprint"]
    assert any(note.startswith("prune: decoded plainly by ") for note in result.notes)


def test_the_file_gives_all_of_it_back(result: CombineResult, tmp_path: Path) -> None:
    path = tmp_path / "combined.json"
    COMBINED.write(path, result)
    assert COMBINED.read(path) == result
    whole = path.read_text()
    path.write_text(whole.replace('"prune"', '"prime"', 1))
    with pytest.raises(DamagedFileError, match="changed since it was written"):
        COMBINED.read(path)
    path.write_text("{}")
    with pytest.raises(DamagedFileError, match="no file of offramp bench --combine"):
        COMBINED.read(path)
    for other in ({}, {"result": {"model": "tiny", "unknown": 1}}, {"result": [1]}):
        write_sealed_json(path, {"schema_version": COMBINED.version, "kind": COMBINED.kind, **other})
        with pytest.raises(DamagedFileError, match="it is not what offramp writes"):
            COMBINED.read(path)


def test_quantised_weights_are_combined_and_promise_no_equal_tokens() -> None:
    found = combine(
        tiny_llama(), ["int8", "speculate"], decoding(4), prompts=PROMPTS[:1], limits=TimeLimits(rounds=1)
    )
    together = found_of(found, "int8", "speculate")
    assert together.transforms == ("int8",)
    assert together.contender.left_out is None
    assert not together.contender.output_must_match
    assert together.contender.answer == "unresolved"  # one prompt has no interval


def test_exits_take_drafts_from_the_text_where_k_and_v_are_exact() -> None:
    """A text that repeats itself: fewer steps than tokens, and exits in between."""
    asked, prompts = ["exits", "prompt_lookup", "shortlist"], [[5, 6, 7] * 4]
    how, limits = decoding(12, kv="recompute"), TimeLimits(rounds=1)
    found = combine(tiny_llama(), asked, how, prompts=prompts, limits=limits)
    both = found_of(found, "exits", "prompt_lookup")
    assert (both.policy, both.contender.left_out, both.contender.full_depth) == (POLICY, None, False)
    assert found_of(found, "shortlist", "exits", "prompt_lookup").contender.left_out is None
    assert found_of(found, "prompt_lookup").policy is None
    assert found.credit(both) is None  # of one prompt nothing is known
    propagated = combine(tiny_llama(), asked[:2], decoding(12), prompts=prompts, limits=limits)
    assert "with K and V by recompute" in str(
        found_of(propagated, "exits", "prompt_lookup").contender.left_out
    )


def test_an_exit_that_is_left_nowhere_is_left_out_with_its_reason() -> None:
    found = combine(
        tiny_llama(), ["prune:drop=4", "exits"], decoding(4), prompts=PROMPTS[:1], limits=TimeLimits(rounds=1)
    )
    together = found_of(found, "prune", "exits")
    assert "no exit is left below the last of the 3 layers" in str(together.contender.left_out)
    assert (together.speedup, together.product, together.quality) == (None, None, None)
    assert found_of(found, "exits").speedup is not None


def heads_of(fingerprint: str, layers: int = 4) -> ExitHeads:
    """Heads that hold nothing, of the model with a fingerprint and so many layers."""
    bare = random_heads(tiny_llama(), (3,), lens=False, facts=())
    return dataclasses.replace(bare, model={**bare.model, "fingerprint": fingerprint, "layers": layers})


def test_heads_are_used_on_their_own_model_only() -> None:
    base = tiny_llama()
    own = heads_of(base.identity.fingerprint)
    pruned = heads_of(dataclasses.replace(base.identity, transforms=("prune:drop=2",)).fingerprint, layers=3)

    def left_out(*heads: ExitHeads) -> str:
        found = combine(
            base,
            ["prune:drop=2", "exits"],
            decoding(4),
            prompts=PROMPTS[:1],
            limits=TimeLimits(rounds=1),
            heads=heads,
        )
        return str(found_of(found, "prune", "exits").contender.left_out)

    of_base = left_out(own)
    assert "the exit heads belong to the untransformed model" in of_base
    model = loadable_name(base.described)
    options = "--transform prune:drop=2 --workload prose --output heads.safetensors"
    assert of_base.endswith(f"offramp heads fit {model} {options}")
    assert left_out(own, pruned) == "None"
    assert "give heads of both" in left_out(pruned)
    with pytest.raises(InputError, match="none of the models that are combined"):
        left_out(heads_of("0" * 64))
    with pytest.raises(InputError, match="2 files of exit heads belong to"):
        left_out(own, own)


def test_kept_layers_are_numbered_as_in_the_whole_model() -> None:
    base = tiny_llama()
    pruned = offramp.load_model(str(base.source.folder), transforms=["prune:drop=1+3"])  # type: ignore[union-attr]
    assert kept_layers(pruned, 4) == (2, 4)
    assert kept_layers(base, 4) == (1, 2, 3, 4)
    with pytest.raises(PolicyError, match="nothing says which"):
        kept_layers(base, 5)


@pytest.mark.parametrize(
    ("asked", "options", "what"),
    [
        ([], {}, "there is nothing to combine"),
        (["int9"], {}, "unknown acceleration 'int9'"),
        (["exits", "exits"], {"policy": POLICY}, "exits is given twice"),
        (["exits"], {}, "exits needs a policy"),
        (["speculate"], {}, "speculate needs a policy"),
        (["int8"], {"policy": POLICY}, "a policy means nothing without exits"),
        (["int8"], {"heads": [heads_of("0" * 64)]}, "exit heads mean nothing without exits"),
        (["exits"], {"policy": POLICY, "kv": "speculate"}, "speculation is an acceleration of its own"),
        (["exits"], {"policy": "never"}, "exits needs a policy"),
        (["exits"], {"policy": "static:exit=9"}, "exit 9 is beyond the model"),
        (["prune:drop=9"], {}, "leaves out layer 9"),
        (["prune:drop=1+2+3+4"], {}, "leaves out all of the model's 4 layers"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(
    asked: list[str], options: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object, **__: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr("offramp.timing.turns.Turns.take", timed)
    how = decoding(64, *(options.pop(name, None) for name in ("policy", "kv")))
    with pytest.raises(InputError, match=what):
        combine(tiny_llama(), asked, how, prompts=PROMPTS, **options)


def test_a_transformed_model_is_refused() -> None:
    base = tiny_llama()
    pruned = offramp.load_model(str(base.source.folder), transforms=["prune:drop=1"])  # type: ignore[union-attr]
    with pytest.raises(InputError, match="is transformed already"):
        combine(pruned, ["prompt_lookup"], prompts=PROMPTS)
    unsourced = dataclasses.replace(base, source=None)
    with pytest.raises(InputError, match="cannot be loaded again"):
        combine(unsourced, ["prune:drop=1"], prompts=PROMPTS)
