"""`offramp tune` with the trace's own model: what it decodes, shows, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import offramp
from command_line import run_offramp
from offramp.cli import tune
from offramp.cli.shared_options import load_traced_model
from offramp.defaults import METHOD
from offramp.policies.figures import PLAIN_DECODING
from offramp.tuning.bounds import documents_needed
from offramp.tuning.floor import parse_floor
from offramp.tuning.tuned import read_tuned
from tiny_models import write_documents

FLOOR = ("--floor", "agreement=0.6", "--hardware", "cpu-2core", "--prompt-tokens", "8", "--new-tokens", "6")


@pytest.fixture(scope="module")
def trace(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the documents of a file, traced."""
    folder = tmp_path_factory.mktemp("tune")
    documents = write_documents(folder / "texts.jsonl", documents=80, words=24)
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400, "--document-tokens", 10]
    run_offramp(*command, "-o", folder / "trace").require(0)
    return folder / "trace"


def test_what_is_certified_was_decoded(trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "policy.json"
    value = run_offramp("tune", trace, *FLOOR, "-o", output, "--json").require(0).json
    tuned = read_tuned(output)
    assert tuned.certificate.executed
    assert value["certificate"] == json.loads(json.dumps(value["certificate"]))
    assert value["answer"] == tuned.answer
    assert tuned.certificate.prompt_tokens == 8
    assert tuned.certificate.new_tokens == 6
    assert list((tmp_path / "executions").glob("*.json"))
    # The same from Python, and with what was kept nothing is decoded again.
    model = offramp.load_model(str(Path(offramp.Trace.load(trace).request["model"]["source"])))
    same = offramp.tune(
        offramp.Trace.load(trace), {"agreement": 0.6}, "cpu-2core", model, prompt_tokens=8, new_tokens=6
    )
    assert same.answer == tuned.answer
    assert same.candidates == tuned.candidates
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "executions").glob("*.json")}
    shown = run_offramp("tune", trace, *FLOOR, "-o", output).require(0).out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "executions").glob("*.json")} == kept
    said = " ".join(shown.split())
    assert "candidates, from cautious to bold" in said
    assert "replay bound" not in said
    if not tuned.plain:
        assert "certificate (wsr):" in said
        source = tuned.model["source"]
        assert f"next: offramp generate {source} --policy {output} --prompt TEXT" in said
        assert f"next: offramp bench {source} --policy {output}" in said
        assert value["next"] in said
    # Commands and paths are not broken, so that they can be pasted.
    whole = ("next:", "next, ", "written:", " = ")
    lines = [line for line in shown.splitlines() if not any(words in line for words in whole)]
    assert max(map(len, lines), default=0) <= 80


def test_the_model_is_loaded_again_with_the_attention_that_was_traced(
    trace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert load_traced_model(offramp.Trace.load(trace), None, None, instead="").attention is None
    model = offramp.load_model(tiny_model, attn_implementation="eager")
    work = f"jsonl:{trace.parent / 'texts.jsonl'}#text"
    traced = offramp.trace(model, work, tokens=50, output=tmp_path / "eager", progress=False)
    for name in (None, str(tiny_model)):
        again = load_traced_model(traced, name, None, instead="")
        assert again.attention == again.hf.config._attn_implementation == "eager"


def test_another_copy_another_folder_and_one_strategy(trace: Path, tiny_model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    more = ("--model", tiny_model, "--kv", "propagate", "--executions", kept, "--documents", "12")
    run_offramp("tune", trace, *FLOOR, *more, "-o", tmp_path / "policy.json").require(0)
    tuned = read_tuned(tmp_path / "policy.json")
    assert {one.kv for one in tuned.candidates} <= {"propagate", "speculate"}
    assert tuned.certificate.documents == 12
    assert kept.is_dir()


def test_several_traces_give_one_policy_with_an_entry_for_each(
    trace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    documents = write_documents(tmp_path / "others.jsonl", documents=60, words=20)
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 300, "--document-tokens", 10]
    run_offramp(*command, "-o", tmp_path / "others").require(0)
    output, more = tmp_path / "policy.json", ("--model", "none")
    outcome = run_offramp(
        "tune", trace, tmp_path / "others", *FLOOR[:4], *more, "-o", output, "--json"
    ).require(0)
    names = [
        offramp.Trace.load(folder).request["workload"]["name"] for folder in (trace, tmp_path / "others")
    ]
    assert list(outcome.json["workloads"]) == names
    policy = offramp.parse_policy(str(output))
    for name, answer in outcome.json["workloads"].items():
        tuned = read_tuned(answer["file"])
        assert Path(answer["file"]).parent == tmp_path
        assert tuned.certificate.delta == 0.05
        assert str(policy.for_task(name)) == str(tuned.policy) == answer["policy"]
        assert tuned.answer in " ".join(outcome.err.split())
    assert "each answer is wrong with a chance of 0.05, any of them with 0.1" in " ".join(outcome.err.split())
    again = ("tune", trace, tmp_path / "others", *FLOOR[:4], *more, "-o", output)
    run_offramp(*again).require(0)
    edited = json.dumps({**json.loads(output.read_text()), "kind": "never", "parameters": {}})
    for mine in (edited, '{"schema_version": 1, "kind": "never", "parameters": {}}'):
        output.write_text(mine)
        assert "holds no tuned policy" in run_offramp(*again).require(2).err
        assert output.read_text() == mine
    twice = run_offramp("tune", trace, trace, *FLOOR[:4], *more, "-o", tmp_path / "one.json").require(0)
    assert "entry for each" not in twice.out, "one trace named twice is one"


def test_several_texts_share_the_chance_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    monkeypatch.setattr(tune, "_require_documents", lambda asked, text, count: needed.append(count))
    floor = parse_floor("agreement=0.9")
    asked: Any = SimpleNamespace(kv="auto", batch=1, method=METHOD, kept=floor, delta=0.08)
    texts: Any = ["prose", "code"]
    tune.require_executable(asked, [texts[:1], texts])
    assert needed == [documents_needed(floor.risk, delta) for delta in (0.08, 0.04, 0.04)]
    assert needed[0] < needed[1]


def test_a_trained_models_tokens_are_judged_by_the_original(
    trace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The trained model: a copy of the original whose weights moved a little."""
    trained = Path(shutil.copytree(tiny_model, tmp_path / "trained"))
    weights = load_file(trained / "model.safetensors")
    torch.manual_seed(5)
    moved = {name: weight + 0.002 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(moved, trained / "model.safetensors", {"format": "pt"})
    work = f"jsonl:{trace.parent / 'texts.jsonl'}#text"
    traced, output = tmp_path / "trace", tmp_path / "policy.json"
    command = ["trace", trained, "-w", work, "--tokens", 400, "--document-tokens", 10]
    run_offramp(*command, "--reference", tiny_model, "-o", traced).require(0)
    asked = ("tune", traced, "--floor", "reference_agreement=0.6", *FLOOR[2:], "-o", output)

    wrong = run_offramp(*asked, "--reference", trained).require(2)
    said = "another model than the one that was traced as the reference, tiny"
    assert said in " ".join(wrong.err.split())
    gone = run_offramp(*asked, "--reference", tmp_path / "nowhere").require(2)
    assert "with --reference; without it, --model none still answers" in " ".join(gone.err.split())
    unused = run_offramp("tune", trace, *FLOOR, "--reference", tiny_model).require(2)
    assert "nothing is decoded that" in " ".join(unused.err.split())
    none = run_offramp("tune", trace, *asked[2:4], "--hardware", "local").require(2)
    assert "no other reference was given" in " ".join(none.err.split()), "before timings are asked for"
    assert not list(tmp_path.glob("executions/*.json"))

    said = " ".join(run_offramp(*asked).require(0).out.split())
    tuned = read_tuned(output)
    assert tuned.certificate.executed
    assert tuned.candidates[0].policy == PLAIN_DECODING
    assert tuned.executed_reference_agreement is not None
    assert "the original full model's choice on the same prefix" in said
    assert "replayed and rerun: reference agreement on the search documents" in said


def test_other_heads_are_refused_before_the_model_is_loaded(
    trace: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = f"jsonl:{trace.with_name('texts.jsonl')}#text"
    heads = tmp_path / "heads.safetensors"
    run_offramp("heads", "fit", tiny_model, "-w", texts, "--tokens", 400, "-o", heads).require(0)
    monkeypatch.setattr("offramp.models.loading.load_source", lambda *some, **more: 1 / 0)
    monkeypatch.setattr("offramp.tracing.loading.load_source", lambda *some, **more: 1 / 0, raising=False)
    execute = ("replay", trace, "-p", "static:exit=2", "--execute", "--heads", heads)
    for command in (execute, ("tune", trace, *FLOOR, "--heads", heads, "-o", tmp_path / "p.json")):
        refused = run_offramp(*command).require(2)
        assert "the trace was made without exit heads, and some are given" in refused.err
        assert "loading the model" not in refused.err
