"""`--kv mapped` from the fit to the stopwatch: heads fit, generate, bench, trace, replay, tune, predict."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import offramp
from command_line import run_offramp
from offramp.heads.file import read_heads
from tiny_models import write_llama

POLICY = "threshold:signal=max_prob,value=0.08,exits=1+2+3"
PROMPT = "the cat sat"

pytestmark = pytest.mark.usefixtures("uncollected")


@pytest.fixture(scope="module")
def workload(documents: Path) -> str:
    return f"jsonl:{documents}#text"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory, model: Path, workload: str) -> Path:
    path = tmp_path_factory.mktemp("maps") / "maps.safetensors"
    fit = ["heads", "fit", model, "-w", workload, "--tokens", 600, "--kv-maps", "1,2", "--kv-rank", 4]
    outcome = run_offramp(*fit, "--no-lens", "--no-classifiers", "-o", path).require(0)
    assert "variance explained of what deeper layers add" in " ".join(outcome.out.split())
    return path


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, model: Path, workload: str, maps: Path) -> Path:
    folder = tmp_path_factory.mktemp("traces") / "trace"
    command = ["trace", model, "-w", workload, "--tokens", 400, "--exits", "1,2,3,4", "--heads", maps]
    run_offramp(*command, "-o", folder).require(0)
    return folder


def test_generating_with_maps(model: Path, maps: Path) -> None:
    command = ["generate", model, "--policy", POLICY, "--prompt", PROMPT, "--max-new-tokens", 12]
    found = run_offramp(*command, "--kv", "mapped", "--heads", maps, "--check").require(0)
    loaded = offramp.load_model(str(model))
    expected = offramp.generate(loaded, PROMPT, policy=POLICY, kv="mapped", heads=maps, max_new_tokens=12)
    assert found.out == expected.text + "\n"
    assert 0 < expected.skip_ratio < 1


def test_replaying_and_predicting_with_maps(trace: Path, model: Path, workload: str, tmp_path: Path) -> None:
    replayed = {}
    for kv in ("propagate", "mapped"):
        command = ["replay", trace, "--policy", POLICY, "--kv", kv, "--hardware", "h100"]
        replayed[kv] = run_offramp(*command, "--explain", "--json").require(0).json
    mapped, propagated = replayed["mapped"], replayed["propagate"]
    assert mapped["kv"] == "mapped"
    assert mapped["agreement"] == propagated["agreement"]
    lines = [line for line in mapped["bill"]["lines"] if line["part"] == "K,V map"]
    assert {exit for line in lines for exit in line["places"]} <= {1, 2}
    more = mapped["bill"]["total"] - propagated["bill"]["total"]
    assert more == pytest.approx(sum(line["total"] for line in lines))
    assert more > 0
    predict = ["predict", POLICY, "--trace", trace, "--hardware", "h100", "--kv", "mapped"]
    said = " ".join(run_offramp(*predict).require(0).out.split())
    assert "with K and V by mapped, later tokens see others in decoding" in said
    run_offramp("trace", model, "-w", workload, "--tokens", 100, "-o", tmp_path / "bare").require(0)
    outcome = run_offramp("replay", tmp_path / "bare", "--policy", POLICY, "--kv", "mapped").require(2)
    assert "offramp heads fit MODEL --workload W --kv-maps EXITS" in " ".join(outcome.err.split())


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_what_cannot_be_mapped_is_refused_before_the_model_is_loaded(
    command: str, model: Path, workload: str, maps: Path, tmp_path: Path
) -> None:
    begun = ["--prompt", PROMPT] if command == "generate" else ["-w", workload]
    given = [command, model, "--kv", "mapped", *begun]
    outcome = run_offramp(*given, "--policy", POLICY).require(2)
    assert "there are no K,V maps" in outcome.err
    text = "prose" if command == "generate" else shlex.quote(workload)
    assert f"offramp heads fit {model} --workload {text} --kv-maps EXITS" in outcome.err
    fewer = tmp_path / "fewer"
    fit = ["heads", "fit", model, "-w", workload, "--tokens", 600, "--kv-maps", "2", "--no-lens"]
    run_offramp(*fit, "--no-classifiers", "-o", fewer).require(0)
    assert read_heads(fewer).kv_maps is not None
    outcome = run_offramp(*given, "--policy", POLICY, "--heads", fewer).require(2)
    assert "leaves at exit 1, which has no K,V maps; they start at: 2" in " ".join(outcome.err.split())
