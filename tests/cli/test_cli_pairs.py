"""Encoder-decoders on the command line: `generate --source`, and workloads of pairs by their name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import offramp
from command_line import assert_bench_decodes, assert_refused, run_offramp
from tiny_models import SOURCE_POSITIONS, write_pairs

SOURCE = "the cat sat on the mat"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"pairs:{write_pairs(tmp_path_factory.mktemp('pairs') / 'pairs.jsonl')}#en,de"


def test_an_answer_to_a_source_is_the_models_own(bart: Path) -> None:
    model = offramp.load_model(bart)
    expected = offramp.generate(model, source=SOURCE, max_new_tokens=8)
    found = run_offramp(
        *("generate", bart, "--source", SOURCE, "--max-new-tokens", 8, "--policy", "static:exit=2"),
        *("--kv", "speculate", "--check", "--json"),
    ).require(0)
    assert found.json["tokens"] == list(expected.tokens)
    assert found.json["prompt"] == SOURCE
    both = run_offramp(
        "generate", bart, "--source", SOURCE, "--source", "a model", "--max-new-tokens", 8, "--json"
    ).require(0)
    assert [row["tokens"] for row in both.json["rows"]] == [
        list(expected.tokens),
        list(offramp.generate(model, source="a model", max_new_tokens=8).tokens),
    ]


def test_a_workload_of_pairs_is_traced_replayed_and_run_again(bart: Path, pairs: str, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    traced = run_offramp("trace", bart, "-w", pairs, "--tokens", 80, "-o", folder, "--json").require(0)
    assert (traced.json["tokens"], traced.json["left_out"]) == (80, [])
    again = run_offramp("trace", bart, "-w", pairs, "--tokens", 80, "-o", folder).require(0)
    assert "80 tokens" in again.out
    assert run_offramp("score", folder, "--json").require(0).json["scores"][0]["representation"]
    replayed = run_offramp("replay", folder, "--policy", "static:exit=2", "--execute", "--json").require(0)
    trace = offramp.Trace.load(folder)
    layers, once = trace.shape, trace.shape.encoder
    assert once is not None
    assert replayed.json["rerun"]["skip_ratio"] == pytest.approx(0.5)
    assert f"K and V of the {once.positions:.1f} positions that it reads" in replayed.json["notes"][0]
    assert replayed.json["predicted_speedup_flops"] > 1.0
    assert all(layer.cross is not None for layer in layers.layers)
    assert np.unique(trace.document).size > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "BART", "--prompt", SOURCE), "bart is an encoder-decoder: it reads a source"),
        (("generate", "BART", "--source", " "), "the source is empty"),
        (("generate", "BART", "--source", "a", "--prompt", "b"), "begin with no prompt"),
        (("generate", "TEXT", "--source", SOURCE), "it is not an encoder-decoder"),
        (("trace", "BART", "-w", "WORDS", "-o", "TRACE"), "reads a source beside each text"),
        (("trace", "TEXT", "-w", "PAIRS", "-o", "TRACE"), "it is not an encoder-decoder"),
        (("trace", "BART", "-w", "PAIRS,x", "-o", "TRACE"), "has no field 'de,x'"),
        (("bench", "TEXT", "--policy", "never", "--workload", "PAIRS"), "it is not an encoder-decoder"),
        (("run", "BART", "-w", "WORDS", "-o", "TRACE"), "reads a source beside each text"),
        (("heads", "fit", "TEXT", "-w", "PAIRS", "-o", "TRACE"), "it is not an encoder-decoder"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_weight_is_loaded(
    arguments: tuple[str, ...],
    said: str,
    bart: Path,
    tiny_model: Path,
    pairs: str,
    documents: Path,
    tmp_path: Path,
    no_weights: None,
) -> None:
    names = {"BART": bart, "TEXT": tiny_model, "TRACE": tmp_path / "out", "WORDS": f"jsonl:{documents}#text"}
    words = [word.replace("PAIRS", pairs) for word in arguments]
    assert_refused(words, said, names, tmp_path / "out")


def test_a_source_that_is_too_long_is_named(bart: Path) -> None:
    found = run_offramp("generate", bart, "--source", "cat " * SOURCE_POSITIONS).require(2)
    assert f"takes 1 to {SOURCE_POSITIONS}" in found.err
    assert "the source 'cat cat" in found.err


def test_bench_decodes_answers_to_sources(bart: Path, pairs: str) -> None:
    assert_bench_decodes(bart, pairs)


def test_a_run_says_first_what_a_request_could_gain_and_searches_nothing_below_the_worth(
    bart: Path, tmp_path: Path
) -> None:
    many = f"pairs:{write_pairs(tmp_path / 'many.jsonl', documents=48)}#en,de"
    run = ("run", bart, "-w", many, "--tokens", 160, "--floor", 0.9, "--hardware", "h100", "--worth", 0.99)
    found = run_offramp(*run, "--no-decode", "-o", tmp_path / "run", "--json").require(0)
    assert "Early exit does not pay here: a whole request could become at most" in found.err
    assert found.err.index("does not pay here") < found.err.index("tuning on")
    (verdict,) = found.json["verdicts"]
    assert verdict["decision"] == found.json["decision"] == "does not pay"
    request = verdict["request"]
    assert request["ceiling"] < 1.99
    assert f"at most {request['ceiling']:.3f} × as fast (on h100)" in found.json["headline"]
    place = tmp_path / "run"
    page = (place / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert f"at most {request['ceiling']:.3f} × as fast" in page
    predict = ("predict", "static:exit=2", "--trace", place, "--hardware", "h100")
    shown = run_offramp(*predict).require(0).out
    assert shown.startswith("At best, a whole request could become at most")
    assert "speed of a whole request" in shown
    ceiling = run_offramp(*predict, "--json").require(0).json["request"]["ceiling"]
    assert ceiling == pytest.approx(request["ceiling"])
    tuned = run_offramp(
        *("tune", place, "--floor", "agreement=0.9", "--hardware", "h100", "--model", "none", "--json"),
        *("-o", tmp_path / "tuned.json"),
    ).require(0)
    assert tuned.json["request"]["ceiling"] == pytest.approx(request["ceiling"])
