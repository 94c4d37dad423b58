"""`offramp hardware measure` on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import offramp.decoding.measurement.machine_profiler
from command_line import run_offramp, tree
from offramp.costs.hardware import load_local_profile
from offramp.costs.timings import TimingsProfile
from offramp.records.typed import from_json


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("OFFRAMP_CACHE", str(folder))
    monkeypatch.setattr(offramp.decoding.measurement.machine_profiler, "MOST_ROUNDS", 4)
    return folder


def test_measure_prints_and_keeps_a_profile(tiny_model: Path, cache: Path) -> None:
    outcome = run_offramp("hardware", "measure", tiny_model, "--batches", "1,2", "--json").require(0)
    answer = outcome.json
    profile = from_json(TimingsProfile, answer["profile"])
    assert profile.batches == (1, 2)
    assert Path(answer["file"]).parent == cache / "hardware"
    kept = load_local_profile(profile.details["model"]["fingerprint"], "float32")
    assert kept.to_json() == answer["profile"]
    assert "of a plain step" in outcome.err


def test_measure_says_what_it_found(tiny_model: Path) -> None:
    outcome = run_offramp("hardware", "measure", tiny_model, "--threads", 1).require(0)
    for text in (
        "restricted head",
        "batch 8",
        "the parts were timed to add up to",
        "kept as the hardware profile local",
    ):
        assert text in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--batches", "4,1"], "the batch sizes '4,1' do not rise"),
        (["--batches", "0,1"], "the batch sizes '0,1' do not rise"),
        (["--batches", "1,99999"], "the batch sizes '1,99999' do not rise"),
        (["--batches", "one"], "the batch sizes 'one' do not rise"),
        (["--threads", "0"], "0 threads are not possible here"),
        (["--threads", "100000"], "100000 threads are not possible here"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(
    tiny_model: Path, cache: Path, arguments: list[str], message: str
) -> None:
    outcome = run_offramp("hardware", "measure", tiny_model, *arguments, "--json").require(2)
    assert outcome.json["error"]["what"].startswith(message)
    assert not cache.exists() or tree(cache) == {}


def test_an_unknown_model_is_refused(cache: Path) -> None:
    outcome = run_offramp("hardware", "measure", "smollm3.gguf").require(2)
    assert "smollm3.gguf" in outcome.err
    assert not cache.exists() or tree(cache) == {}


def test_hardware_alone_shows_how_it_is_used() -> None:
    assert "measure" in run_offramp("hardware").require(2).out
