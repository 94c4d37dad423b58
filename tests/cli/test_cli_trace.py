"""`offramp trace`, `score` and `replay`: equal to the Python interface, and what damage is answered with."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import offramp
from command_line import run_offramp, tree
from offramp.tracing.facts import FACTS
from tiny_models import LAYERS


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    """A finished trace of two parts. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("traces") / "trace"
    run_offramp(*trace_arguments(tiny_model, documents), "-o", folder).require(0)
    assert len(list(folder.glob("facts-*.parquet"))) == 2
    return folder


@pytest.fixture
def trace_folder(traced: Path, tmp_path: Path) -> Path:
    """A copy of the finished trace, to be changed."""
    return Path(shutil.copytree(traced, tmp_path / "trace"))


def trace_arguments(model: Path, documents: Path) -> list[object]:
    return ["trace", model, "-w", f"jsonl:{documents}#text", "--tokens", 1400]


def test_trace_says_what_it_wrote(tiny_model: Path, documents: Path, trace_folder: Path) -> None:
    command = [*trace_arguments(tiny_model, documents), "-o", trace_folder]
    shown = run_offramp(*command).require(0)
    assert f"1,400 tokens of 44 documents at 4 exits: {trace_folder}" in shown.out
    value = run_offramp(*command, "--json").require(0).json
    assert value["tokens"] == 1400
    assert value["documents"] == 44
    assert value["exits"] == [1, 2, 3, 4]
    assert value["left_out"] == value["notes"] == []
    assert value["trace"] == str(trace_folder)


def test_the_command_and_the_function_measure_the_same(
    traced: Path, tiny_model: Path, documents: Path
) -> None:
    stored = offramp.Trace.load(traced)
    model = offramp.load_model(str(tiny_model))
    held = offramp.trace(model, f"jsonl:{documents}#text", tokens=1400)
    for fact in FACTS:
        assert np.array_equal(stored.fact(fact.name), held.fact(fact.name)), fact.name
    for name in ("token", "next_token", "document", "position", "generated", "exits"):
        assert np.array_equal(getattr(stored, name), getattr(held, name)), name
    assert stored.documents == held.documents
    assert np.array_equal(stored.marginal.sums, held.marginal.sums)
    assert stored.provenance["request_fingerprint"] == held.provenance["request_fingerprint"]


def test_fewer_tokens_than_asked_go_on_and_say_so(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    command = ["-w", f"jsonl:{documents}#text", "--tokens", 10**6, "-o", tmp_path / "out"]
    shown = run_offramp("trace", tiny_model, *command).require(0)
    assert "tokens were traced; 1,000,000 were asked for and there are no more" in shown.out
    assert run_offramp("trace", tiny_model, *command, "--json").json["notes"]


def test_score_shows_every_component_at_80_columns(traced: Path) -> None:
    shown = run_offramp("score", traced).require(0)
    for name in (
        "Representation",
        "Information",
        "Calibration",
        "Composite",
        "EAS, hidden",
    ):
        assert name in shown.out
    lines = [line for line in shown.out.splitlines() if "/" not in line]
    assert max(map(len, lines)) <= 80
    card = offramp.score(offramp.Trace.load(traced))
    value = run_offramp("score", traced, "--json").require(0).json["scores"][0]
    assert value["trace"] == str(traced)
    assert value["representation"] == dataclasses.asdict(card.representation)
    low, high = card.representation.low, card.representation.high
    assert low is not None
    assert high is not None
    assert f"{low:.3f} to {high:.3f}" in shown.out


def test_score_says_why_a_figure_or_an_interval_is_missing(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "trace"
    run_offramp("trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 1, "-o", folder).require(0)
    text = " ".join(run_offramp("score", folder).require(0).out.split())
    assert "no intervals: 1 document; an interval needs 20" in text
    assert re.search(r"Calibration undefined.*1 document;", text)
    value = run_offramp("score", folder, "--json").require(0).json["scores"][0]
    assert value["calibration"]["value"] is None
    assert value["calibration"]["undefined"].startswith("1 document")


def test_score_takes_several_traces_and_runs(traced: Path, finished_run: Path) -> None:
    value = run_offramp("score", traced, finished_run, traced, "--json").require(0).json
    folders = [entry["trace"] for entry in value["scores"]]
    assert folders[0] == str(traced)
    assert [Path(folder).is_relative_to(finished_run) for folder in folders] == [False, True, True]


def test_replay_equals_the_function(traced: Path) -> None:
    text = "threshold:signal=max_prob,value=0.06,exits=1+2+3"
    shown = run_offramp("replay", traced, "--policy", text).require(0)
    for name in (
        "agreement with the full model",
        "layers skipped",
        "predicted speed (bytes moved)",
        "at exit 4",
    ):
        assert name in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    value = run_offramp("replay", traced, "--policy", text, "--json").require(0).json
    result = offramp.replay(offramp.Trace.load(traced), offramp.parse_policy(text))
    assert 0 < result.skip_ratio < 1
    for name in (
        "agreement",
        "skip_ratio",
        "predicted_speedup",
        "speedup_without_probes",
        "nll_increase",
        "kl",
    ):
        assert value[name] == getattr(result, name)
    counts = {int(exit): count for exit, count in value["tokens_by_exit"].items()}
    assert counts == {exit: int(np.sum(result.exits == exit)) for exit in counts}
    assert sum(counts.values()) == value["tokens"] == 1400


def test_replay_takes_a_run_with_one_trace_only(finished_run: Path, tmp_path: Path) -> None:
    refused = run_offramp("replay", finished_run, "--policy", "never").require(2)
    assert "the run has 2 traces" in refused.err
    assert "chat" in refused.err
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "traces" / "tiny" / "chat")
    (run / "traces" / "tiny" / "mine").mkdir()
    run_offramp("replay", run, "--policy", "never").require(0)


def test_an_untraced_exit_is_answered_with_the_option_that_traces_it(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "trace"
    arguments = ["-w", f"jsonl:{documents}#text", "--tokens", 64, "--exits", "2", "-o", folder]
    run_offramp("trace", tiny_model, *arguments).require(0)
    refused = run_offramp("replay", folder, "--policy", "static:exit=3", "--json").require(2).json["error"]
    assert "exit 3 was not traced" in refused["what"]
    assert "--exits 2,3,4" in refused["fix"]


def test_a_bad_policy_is_refused_where_it_is_wrong(traced: Path) -> None:
    policy = "threshold:signal=margi,value=0.9,exits=1"
    refused = run_offramp("replay", traced, "--policy", policy).require(2).err
    assert "did you mean 'margin'" in refused
    assert f"\n  {policy}\n  {' ' * policy.index('margi')}^\n" in refused
    beyond = f"static:exit={LAYERS + 1}"
    for other, what in (("", "the value is empty"), (beyond, f"which has {LAYERS} layers")):
        assert what in run_offramp("replay", traced, "--policy", other).require(2).err


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["facts-00001.parquet", "manifest.json"])
def test_a_flipped_byte_is_named_and_repaired(
    tiny_model: Path, documents: Path, trace_folder: Path, name: str
) -> None:
    whole = tree(trace_folder)
    flip(trace_folder / name)
    retrace = [*trace_arguments(tiny_model, documents), "-o", trace_folder]
    for command in (["score", trace_folder], ["replay", trace_folder, "--policy", "never"], retrace):
        refused = run_offramp(*command, "--json").require(1).json["error"]
        assert refused["where"] == str(trace_folder / name)
        assert name in refused["what"]
        assert "--repair" in refused["fix"]
    run_offramp(*retrace, "--repair").require(0)
    assert tree(trace_folder) == whole
    run_offramp("score", trace_folder).require(0)


def test_a_manifest_of_a_newer_schema_is_refused(
    tiny_model: Path, documents: Path, trace_folder: Path
) -> None:
    path = trace_folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    before = tree(trace_folder)
    retrace = [*trace_arguments(tiny_model, documents), "-o", trace_folder]
    for command in (["score", trace_folder], ["replay", trace_folder, "-p", "never"], retrace):
        refused = run_offramp(*command).require(2)
        for words in ("schema version 99", str(path), "upgrade offramp"):
            assert words in refused.err
    assert tree(trace_folder) == before


def test_an_unfinished_trace_is_not_scored(trace_folder: Path) -> None:
    (trace_folder / "manifest.json").unlink()
    refused = run_offramp("score", trace_folder).require(2)
    assert "the trace is not finished" in refused.err
    assert "run the same offramp trace command again" in refused.err


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name in ("missing", "empty", "file"):
        path = tmp_path / name
        for command in (["score", path], ["replay", path, "--policy", "never"]):
            refused = run_offramp(*command).require(2)
            assert "there is no trace here" in refused.err
            assert str(path) in refused.err


def test_another_trace_in_the_folder_is_refused_and_overwritten(
    tiny_model: Path, documents: Path, trace_folder: Path
) -> None:
    other = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "-o", trace_folder]
    before = tree(trace_folder)
    refused = run_offramp(*other).require(2)
    assert "it differs in: tokens" in refused.err
    assert tree(trace_folder) == before
    run_offramp(*other, "--overwrite").require(0)
    assert offramp.Trace.load(trace_folder).token_count == 64
    assert len(list(trace_folder.glob("*.parquet"))) == 3
