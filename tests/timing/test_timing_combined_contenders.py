"""What a user would pick instead of exits, beside a policy: who takes part, on which model, the credit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_cases import tiny_llama, write_llama
from quantised_cases import needs_int4
from reading_cases import random_heads

import offramp
from combine_cases import combined_result
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError
from offramp.timing import defects
from offramp.timing.accelerations import name_of, read_beside
from offramp.timing.bench import bench, judge_measurement, kept_in_batch, run, settle
from offramp.timing.contenders import WITHOUT_PEERS, Extent
from offramp.timing.ratios import ratio_of, ratio_over
from offramp.timing.results import BenchResult, CombineResult
from offramp.timing.stopping import TimeLimits

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [3, 1, 4, 1, 5], [2, 7, 1, 8], [6, 2, 8], [1, 6, 1, 8]]
PRUNED = "prune:drop=2"
BESIDE = (
    PRUNED,
    f"{PRUNED} + shortlist",
    "shortlist + prompt_lookup",
    "prompt_lookup + shortlist",
)

pytestmark = pytest.mark.usefixtures("uncollected")


@pytest.fixture(scope="module")
def result(uncollected: None) -> BenchResult:
    model = tiny_llama()
    listed = tuple(range(0, model.shape.vocabulary_size, 2))
    heads = random_heads(model, (3,), lens=False, facts=(), shortlist=listed)
    options = DecodingOptions.read("static:exit=3", heads=heads, new_tokens=9)
    setting = settle(model, [options], prompts=PROMPTS)
    # A machine that is busy at the wrong moment makes the plain decoder unequal to itself.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defects, "a_a_defect", lambda *ratio: None)
        measured = run(setting, limits=TimeLimits(rounds=2), extent=Extent(beside=read_beside(BESIDE)))
        return judge_measurement(measured, None, predicted={}).result


def test_each_text_is_one_combination_and_each_is_there_once() -> None:
    assert list(map(name_of, read_beside(BESIDE))) == [
        "prune",
        "prune + shortlist",
        "shortlist + prompt_lookup",
    ]
    assert read_beside([]) == ()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("int8 + exits", "exits is early exit itself"),
        ("speculate", "speculate is early exit itself"),
        ("llama.cpp + shortlist", "llama.cpp is not combined with shortlist"),
        ("int8 + int4", "int8 and int4 are not combined"),
        ("int8 + int8", "int8 is given twice"),
        ("short list", "unknown acceleration 'short list'"),
        ("", "unknown acceleration ''"),
    ],
)
def test_what_has_exits_or_cannot_be_together_is_refused(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read_beside([text])
    assert caught.value.where == "--beside"


def test_they_take_turns_as_decoders_without_exits(result: BenchResult) -> None:
    beside = [result.contender(name) for name in ("prune", "prune + shortlist", "shortlist + prompt_lookup")]
    for contender in beside:
        assert (contender.role, contender.full_depth, contender.left_out) == ("peer", True, None)
        assert len({cluster.prompt for cluster in contender.clusters}) == len(PROMPTS)
    assert [contender.layers_per_token for contender in beside[:2]] == [3.0, 3.0]
    assert not result.defects


def test_their_answers_are_judged_by_the_model_of_all(result: BenchResult) -> None:
    """The reference asks the whole model for its choice after every prefix, one by one."""
    model, name = tiny_llama(), "prune + shortlist"
    kept = result.contender(name).executed_agreement
    assert kept is not None
    # Decoded again, plainly: the pruned model's logits of the listed (even) tokens alone.
    pruned = copy.deepcopy(model.hf)
    del pruned.model.layers[1]
    for place, layer in enumerate(pruned.model.layers):
        layer.self_attn.layer_idx = place
    right = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for number in range(9):
            with torch.no_grad():
                whole = model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
                cut = pruned(torch.tensor([ids]), use_cache=False).logits[0, -1]
            token = 2 * int(cut[::2].argmax())
            right += [token == int(whole.argmax())] if number else []  # the first comes with the prompt
            ids.append(token)
    assert kept.value == pytest.approx(np.mean(right))
    assert 0.0 <= kept.value < 1.0


def test_credit_is_over_the_fastest_of_them_that_keeps_the_floor(result: BenchResult) -> None:
    contender = result.main
    for floor in (None, 0.999):
        others = [
            other
            for other in result.contenders
            if (other.role == "plain" or other.full_depth)
            and other.left_out is None
            and (floor is None or (kept := other.executed_agreement) is None or kept.value >= floor)
        ]
        speeds = {
            other.name: ratio_of(contender.clusters)
            if other.name == result.plain
            else ratio_over(contender.clusters, other.clusters)
            for other in others
            if other.clusters or other.name == result.plain
        }
        credit = result.credit(contender.name, floor)
        assert credit is not None
        least = min(speeds, key=lambda name: speeds[name].value)  # type: ignore[union-attr]
        assert (credit.over, credit.value) == (least, pytest.approx(speeds[least].value))  # type: ignore[union-attr]


def without_exits(result: CombineResult) -> CombineResult:
    """With what a combination says of itself, which the made-up one lacks."""
    ways = tuple(
        replace(
            way,
            contender=replace(
                way.contender,
                full_depth="exits" not in way.parts,
                executed_agreement=None if way.quality is None else way.quality.free_running.agreement,
            ),
        )
        for way in result.combinations
    )
    return replace(result, combinations=ways)


def test_exits_in_a_combination_are_credited_with_what_they_add() -> None:
    """Worked by hand: int8 takes 5 of 10 ms at 97 %, with exits 4: 1.25 at 95 %; above 97 % over plain."""
    seconds = {"plain": 10.0, "int8": 5.0, "exits": 8.0, "int8 + exits": 4.0}
    found = without_exits(combined_result(seconds, {"int8": 0.97, "exits": 0.96, "int8 + exits": 0.95}))

    def credit(result: CombineResult, *parts: str) -> tuple[str, float]:
        way = result.combination(*parts)
        assert way is not None
        credit = result.credit(way)
        assert credit is not None
        return credit.over, round(credit.value, 2)

    assert credit(found, "int8", "exits") == ("int8", 1.25)
    assert credit(found, "exits") == ("int8", 0.62)
    assert credit(replace(found, floor=0.98), "int8", "exits") == ("generate()", 2.5)


def test_a_model_with_code_of_its_own_is_loaded_again_by_whoever_trusts_it(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "own")
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "model_type": "own"}))
    model = offramp.load_model(str(folder), trust_remote_code=True)
    assert model.runs_own_code
    assert not tiny_llama().runs_own_code
    found = bench(model, "static:exit=3", prompts=PROMPTS[:2], beside=(PRUNED,), new_tokens=5, rounds=1)
    assert found.contender("prune").left_out is None


def test_credit_of_a_bench_from_python_is_over_what_stands_beside() -> None:
    found = bench(
        tiny_llama(), "static:exit=3", prompts=PROMPTS[:2], beside=(PRUNED,), new_tokens=5, rounds=1
    )
    assert found.contender("prune").full_depth
    with pytest.raises(InputError, match="is early exit itself"):
        bench(tiny_llama(), "static:exit=3", prompts=PROMPTS[:2], beside=("exits",))


@needs_int4
def test_bits_that_do_not_fit_the_model_are_left_out_with_the_reason() -> None:
    beside = ["int4:group=128"]
    measured = bench(
        tiny_llama(), "static:exit=3", prompts=PROMPTS, beside=beside, rounds=1, new_tokens=9, peers=False
    )
    found = measured.contender("int4")
    assert found.left_out is not None
    assert "int4:group=128 fits only 0% of the weights of layer 1" in found.left_out
    assert found.full_depth


def test_what_is_kept_of_prompts_side_by_side_is_what_is_kept_one_by_one() -> None:
    """The fastest first, until one keeps enough; what writes the full model's answers is not asked."""
    model = tiny_llama()
    options, last = (DecodingOptions.read(f"static:exit={exit}", new_tokens=9) for exit in (2, 3))
    setting = settle(model, [options, last], prompts=PROMPTS)
    measured = run(setting, limits=TimeLimits(rounds=1), extent=WITHOUT_PEERS)
    alone = judge_measurement(measured, None, predicted={}).free_running[options.name].agreement
    names = ["generate()", options.name, last.name]
    kept = kept_in_batch(setting, measured.decoders, names, PROMPTS, alone.value or 0.0)
    assert list(kept) == [options.name]
    assert kept[options.name].value == pytest.approx(alone.value)
    assert alone.value is not None
    assert alone.value < 1.0
