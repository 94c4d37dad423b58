"""lm-eval's tasks through the early exit: `hf`'s numbers without a policy, those of the exits with one."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'offramp[harness]'"
)

import lm_eval.tasks
from harness_cases import (
    CHOICES,
    POLICY,
    TASKS,
    TEXTS,
    answers,
    counted_layers,
    evaluate,
    lensed,
    propagated,
    request,
    write_tasks,
)

import offramp
from offramp.decoding.generation.loop import Scorer
from offramp.decoding.harness import __main__ as command
from offramp.decoding.harness.__main__ import register
from offramp.decoding.harness.model import Depth, OfframpLM, by_task, depth_table
from offramp.decoding.judging import judge
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, ModelError
from offramp.heads.file import write_heads
from offramp.kit.typed import to_json
from offramp.policies.grammar import parse_policy
from tiny_models import CHAT_TEMPLATE, write_llama

CONTEXT = 24
"""Positions at most, so that texts take several windows."""
DEPTH = {"own_sums": "generate_until", "own_choices": "loglikelihood", "own_texts": "loglikelihood_rolling"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("harness") / "tiny", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model(folder: Path) -> offramp.Model:
    """The same model, for references."""
    return offramp.load_model(str(folder))


@pytest.fixture(scope="module")
def of_hf(folder: Path, tasks: Path) -> Any:
    """The results of lm-eval's own model."""
    arguments = {"pretrained": str(folder), "dtype": "float32", "max_length": CONTEXT}
    return evaluate(tasks, "hf", arguments, device="cpu", batch_size=1)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register()


def evaluated(tasks: Path, folder: Path, **arguments: Any) -> Any:
    return evaluate(tasks, "offramp", {"pretrained": str(folder), "max_length": CONTEXT, **arguments})


def test_without_exits_it_is_hf_number_for_number(tasks: Path, folder: Path, of_hf: Any) -> None:
    """Without a policy, and with one that leaves at the last layer alone."""
    assert not OfframpLM(pretrained=str(folder))._exits
    results = evaluated(tasks, folder, policy="static:exit=4")
    assert results["results"] == of_hf["results"]
    assert answers(results) == answers(of_hf)
    depth = results["config"]["offramp"]["depth"]
    assert {task: depth[task][kind]["mean_exit"] for task, kind in DEPTH.items()} == dict.fromkeys(TASKS, 4.0)
    assert {depth[task][kind]["layers_skipped"] for task, kind in DEPTH.items()} == {0.0}


def test_the_loop_of_steps_comes_to_the_same_numbers(folder: Path, of_hf: Any) -> None:
    # An exit that is asked and never taken: all goes through the decoder's steps.
    stepping = OfframpLM(
        pretrained=str(folder), max_length=CONTEXT, policy="threshold:signal=logit_gap,value=1e9,exits=1"
    )
    texts = [request("loglikelihood_rolling", text["text"]) for text in TEXTS]
    found = stepping.loglikelihood_rolling(texts, disable_tqdm=True)
    expected = [resps[0][0] for resps in answers(of_hf)["own_texts"]]
    assert np.allclose(found, expected, atol=1e-4, rtol=0)
    pairs = [
        request("loglikelihood", row["start"], f" {choice}") for row in CHOICES for choice in row["choices"]
    ]
    scored = stepping.loglikelihood(pairs, disable_tqdm=True)
    expected = [resp[0] for resps in answers(of_hf)["own_choices"] for resp in resps]
    assert np.allclose([one[0] for one in scored], [one[0] for one in expected], atol=1e-4, rtol=0)
    assert [one[1] for one in scored] == [one[1] for one in expected]


@pytest.mark.parametrize(
    ("kv", "reference", "exit"), [("propagate", propagated, 1), ("recompute", lensed, 3)]
)
def test_log_likelihoods_are_those_of_the_exit(
    folder: Path, model: offramp.Model, kv: str, reference: Any, exit: int
) -> None:
    lm = OfframpLM(pretrained=str(folder), policy=f"static:exit={exit}", kv=kv)
    context, continuation = "the cat sat on", " the mat and looked"
    ((found, greedy),) = lm.loglikelihood([request("loglikelihood", context, continuation)])
    whole = lm.tok_encode(context + continuation)
    before = lm.tok_encode(context)
    after = whole[len(before) :]
    expected = reference(model, before, after, [exit] * len(after))
    assert found == pytest.approx(expected.sum(), abs=1e-4)
    assert abs(found - judge(model, before, after).logprob.sum()) > 0.5
    assert not greedy


def test_exits_are_read_through_heads(folder: Path, model: offramp.Model, tmp_path: Path) -> None:
    from reading_cases import random_heads

    heads = random_heads(model, [1, 2, 3], facts=())
    write_heads(heads, tmp_path / "heads.safetensors")
    lm = OfframpLM(
        pretrained=str(folder),
        policy="static:exit=2",
        kv="recompute",
        heads=str(tmp_path / "heads.safetensors"),
    )
    ids, after = model.encode("the cat sat on"), [7, 8, 9]
    options = DecodingOptions(parse_policy("static:exit=2"), "recompute", heads)
    expected = Scorer(model, options).score(ids, after)
    ((found, _),) = lm._loglikelihood_tokens([(("a", "b"), ids, after)], disable_tqdm=True)
    assert found == pytest.approx(expected.logprob, abs=1e-5)
    assert abs(found - lensed(model, ids, after, [2] * 3).sum()) > 0.5
    about = lm.get_model_info()
    own = about["offramp"]
    assert (own["policy"], own["kv"], own["layers"]) == ("static:exit=2", "recompute", 4)
    assert (own["heads"], own["fingerprint"]) == (heads.fingerprint, model.identity.fingerprint)
    assert about["model_dtype"] == "float32"


def test_policies_share_a_loaded_model(folder: Path, model: offramp.Model) -> None:
    asked = [request("loglikelihood", "the cat sat on", " the mat and looked")]
    shared, own = (OfframpLM(pretrained=one, policy="static:exit=2") for one in (model, str(folder)))
    assert shared._offramp is model
    assert shared.loglikelihood(asked) == own.loglikelihood(asked)
    with pytest.raises(InputError, match="dtype says how to load"):
        OfframpLM(pretrained=model, dtype="float32")


def test_what_the_exit_would_say_is_greedy(folder: Path, model: offramp.Model) -> None:
    lm = OfframpLM(pretrained=str(folder), policy="static:exit=1", kv="recompute")
    ids, said = lm.tok_encode("the cat sat on the mat"), [5]
    for place in range(4):
        chosen = lm._scorer.score(ids, said)
        said = [*said[:place], int(chosen.chosen[place]), 5]
    said = said[:-1]
    pairs = [(("", ""), ids, said), (("", ""), ids, [*said[:-1], said[-1] + 1])]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(pairs, disable_tqdm=True)] == [True, False]
    # The full model would have said something else.
    assert judge(model, ids, said).chosen.tolist() != said


def test_rolling_windows_take_every_token_from_the_exit(folder: Path, model: offramp.Model) -> None:
    lm = OfframpLM(pretrained=str(folder), policy="static:exit=2", max_length=8)
    (found,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", TEXTS[1]["text"])])
    ids = lm.tok_encode(TEXTS[1]["text"])
    assert 8 < len(ids) < 16  # two windows
    first = propagated(model, [lm.prefix_token_id], ids[:8], [2] * 8)
    # The second one is filled up with the tokens before it, which run as a prompt.
    rest = len(ids) - 8
    second = propagated(model, ids[len(ids) - 9 : 8], ids[8:], [2] * rest)
    assert found == pytest.approx(first.sum() + second.sum(), abs=1e-4)


def test_long_contexts_lose_their_beginning_as_with_hf(folder: Path, model: offramp.Model) -> None:
    lm = OfframpLM(pretrained=str(folder), policy="static:exit=2", max_length=8)
    context, after = model.encode(TEXTS[0]["text"])[:20], [7, 8, 9]
    ((found, _),) = lm._loglikelihood_tokens([(("a", "b"), context, after)], disable_tqdm=True)
    assert found == pytest.approx(propagated(model, context[-6:], after, [2] * 3).sum(), abs=1e-4)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
def test_generation_decodes_with_the_policy(folder: Path, model: offramp.Model, kv: str) -> None:
    lm = OfframpLM(pretrained=str(folder), policy=POLICY, kv=kv)
    context = "the cat sat on the mat"
    found = lm.generate_until([request("generate_until", context, {"until": ["\n"], "max_gen_toks": 12})])
    generation = offramp.generate(model, context, policy=POLICY, kv=kv, max_new_tokens=12)
    assert isinstance(generation, offramp.Generation)
    text = model.tokenizer.decode(generation.tokens, skip_special_tokens=True)
    assert found == [text.split("\n")[0].split("</s>")[0]]
    assert to_json(by_task(lm._depths))["mine"]["generate_until"]["layers_executed"] == (
        generation.layers_executed - generation.prompt_layers
    )


def test_generation_stops_at_its_strings(folder: Path) -> None:
    lm = OfframpLM(pretrained=str(folder), policy="static:exit=2")
    wanted = {"until": [], "max_gen_toks": 16}
    (whole,) = lm.generate_until([request("generate_until", "the cat", wanted)])
    stop = whole[4:6]
    (cut,) = lm.generate_until([request("generate_until", "the cat", {**wanted, "until": [stop]})])
    assert cut == whole.split(stop)[0]
    tokens = to_json(by_task(lm._depths))["mine"]["generate_until"]["tokens"]
    assert tokens < 32


def test_depths_of_each_task_are_those_that_hooks_count(
    tasks: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = OfframpLM(pretrained=str(folder), policy=POLICY, kv="recompute", max_length=CONTEXT)
    prompts: list[int] = []
    score, generate = lm._scorer.score, lm._model_generate
    lm._scorer.score = lambda context, after: (prompts.append(len(context) - 1), score(context, after))[1]
    lm._model_generate = lambda context, **given: (
        prompts.append(context.shape[1]),
        generate(context=context, **given),
    )[1]
    with counted_layers(lm.model) as counts:
        results = evaluate(tasks, lm)
    shown = capsys.readouterr().out
    depth = results["config"]["offramp"]["depth"]
    rows = [depth[task][kind] for task, kind in DEPTH.items()]
    assert sum(row["layers_executed"] for row in rows) == counts.total() - 4 * sum(prompts)
    assert [row["requests"] for row in rows] == [3, 9, 2]
    for task, row in zip(TASKS, rows, strict=True):
        assert 1 < row["mean_exit"] < 4
        assert f"{row['mean_exit']:.2f} of 4" in next(
            line for line in shown.splitlines() if line.startswith(f"|{task}")
        )
        assert row["layers_skipped"] == 1 - row["layers_executed"] / row["layers_of_full_model"]
    scored = sum(len(lm.tok_encode(f" {choice}")) for row in CHOICES for choice in row["choices"])
    assert depth["own_choices"]["loglikelihood"]["tokens"] <= scored


def test_answers_of_a_cache_are_kept_and_used(tasks: Path, folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "answers")
    given: dict[str, Any] = {"pretrained": str(folder), "policy": POLICY}
    first, again = (evaluate(tasks, "offramp", given, use_cache=cache, limit=1) for _ in "ab")
    assert again["results"] == first["results"]
    assert again["config"]["offramp"]["depth"] == {}


def test_chat_templates_are_those_of_hf(tasks: Path, folder: Path) -> None:
    given: dict[str, Any] = {"apply_chat_template": True, "limit": 1}
    of_hf = evaluate(tasks, "hf", {"pretrained": str(folder), "dtype": "float32"}, device="cpu", **given)
    own = evaluate(tasks, "offramp", {"pretrained": str(folder)}, **given)
    assert own["results"] == of_hf["results"]
    assert own["config"]["model_num_parameters"] == of_hf["config"]["model_num_parameters"]
    assert own["samples"]["own_sums"][0]["arguments"][0][0].startswith("[user]")


def test_a_template_that_refuses_system_turns_is_given_none_as_with_hf() -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerBase

    tokenizer: Any = PreTrainedTokenizerBase()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0].content }}{% if add_generation_prompt %} {{ mood }}{% endif %}"
    )
    lm: Any = SimpleNamespace(tokenizer=tokenizer, chat_template_args={"mood": "calm"})
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a question"}]
    for begun in (True, False):
        own = OfframpLM.apply_chat_template(lm, turns, add_generation_prompt=begun)
        assert own == HFLM.apply_chat_template(lm, turns, add_generation_prompt=begun)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ModelError, match="TemplateError: no"):
        OfframpLM.apply_chat_template(lm, turns[1:])


@pytest.mark.parametrize("bos", [True, False])
def test_a_beginning_of_text_is_added_as_with_hf(folder: Path, bos: bool) -> None:
    from lm_eval.models.huggingface import HFLM

    of_hf = HFLM(pretrained=str(folder), dtype="float32", device="cpu", add_bos_token=bos)
    own = OfframpLM(pretrained=str(folder), add_bos_token=bos)
    pair = [request("loglikelihood", "the cat", " sat on")]
    assert own.tok_encode("the cat") == of_hf.tok_encode("the cat")
    assert own.loglikelihood(pair) == of_hf.loglikelihood(pair)
    assert own.tokenizer_name == of_hf.tokenizer_name
    assert own.max_length == of_hf.max_length


def test_a_transformed_model_can_be_evaluated(folder: Path) -> None:
    lm = OfframpLM(pretrained=str(folder), transforms="int8", policy="static:exit=2", kv="recompute")
    pair = [request("loglikelihood", "the cat", " sat on")]
    model = offramp.load_model(str(folder), transforms="int8")
    before, after = model.encode("the cat"), model.encode("the cat sat on")[len(model.encode("the cat")) :]
    ((found, _),) = lm.loglikelihood(pair)
    assert found == pytest.approx(lensed(model, before, after, [2] * len(after)).sum(), abs=1e-4)
    assert lm.get_model_info()["offramp"]["model"] == "tiny + int8"


@pytest.mark.slow
def test_lm_evals_own_command_line_runs_three_tasks(
    tasks: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (
        f"--model offramp --model_args pretrained={folder},policy=static:exit=2,kv=propagate,dtype=float32 "
        f"--tasks {','.join(TASKS)} --include_path {tasks} --limit 2 "
        f"--output_path {tmp_path / 'results.json'} --log_samples"
    )
    # Reading the thousands of tasks that lm-eval brings takes longer than all else.
    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    monkeypatch.setattr(sys, "argv", ["offramp-lm-eval", *arguments.split()])
    command.main()
    shown = capsys.readouterr().out
    assert all(f"|{task}" in shown for task in TASKS)
    assert "of 4" in shown
    (written,) = tmp_path.glob("results*.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    assert 0 <= found["results"]["own_choices"]["acc,none"] <= 1
    own = found["config"]["offramp"]
    assert (own["policy"], own["kv"], own["layers"]) == ("static:exit=2", "propagate", 4)
    scored = own["depth"]["own_texts"]["loglikelihood_rolling"]
    assert (scored["mean_exit"], scored["requests"], scored["layers_skipped"]) == (2.0, 2, 0.5)
    generated = own["depth"]["own_sums"]["generate_until"]
    assert 2 < generated["mean_exit"] < 4  # the first token of each answer comes out of the prompt
    assert generated["layers_skipped"] == 0.5


def test_mean_depths_are_those_worked_by_hand() -> None:
    # Two generations of 3 and 2 tokens in a model of 10 layers: exits 10, 4, 4 and 10, 7.
    depth = Depth(10, requests=1, tokens=3, exits=18, fed=2, layers_executed=8)
    depth = depth.plus(requests=1, tokens=2, exits=17, fed=1, layers_executed=7)
    assert depth.mean_exit == 35 / 5
    assert depth.layers_skipped == pytest.approx(1 - 15 / 30)
    assert to_json(depth) == {
        "requests": 2,
        "tokens": 5,
        "mean_exit": 7.0,
        "layers_executed": 15,
        "layers_of_full_model": 30,
        "layers_skipped": 0.5,
    }
    assert Depth(10, requests=1, tokens=1, exits=10).layers_skipped is None
    assert Depth(10).mean_exit is None


def test_tasks_and_types_are_kept_apart_and_shown() -> None:
    depths = {
        ("sums", "generate_until"): Depth(10, requests=2, tokens=4, exits=28, fed=2, layers_executed=8),
        ("sums", "loglikelihood"): Depth(10, requests=1, tokens=1, exits=3, fed=1, layers_executed=3),
        ("none", "loglikelihood"): Depth(10, requests=1),
    }
    found = to_json(by_task(depths))
    assert list(found) == ["sums", "none"]
    assert found["sums"]["generate_until"]["tokens"] == 4
    assert found["sums"]["loglikelihood"]["mean_exit"] == 3.0
    assert depth_table(depths).splitlines() == [
        "|Tasks|Request type  |Tokens| Mean exit|Layers skipped|",
        "|-----|--------------|-----:|---------:|-------------:|",
        "|sums |generate_until|     4|7.00 of 10|        60.0 %|",
        "|sums |loglikelihood |     1|3.00 of 10|        70.0 %|",
        "|none |loglikelihood |     0|         -|             -|",
    ]
