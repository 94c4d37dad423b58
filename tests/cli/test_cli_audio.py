"""Speech models on the command line: `generate --audio`, and workloads of sounds by their name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import offramp
from command_line import assert_bench_decodes, assert_refused, run_offramp
from tiny_models import write_pairs, write_wav


def test_a_sound_is_answered_as_the_model_answers_it(whisper: Path, sounds: Path) -> None:
    model = offramp.load_model(whisper)
    files = [sounds / "s00.wav", sounds / "s01.wav"]
    expected = [list(offramp.generate(model, audio=file, max_new_tokens=8).tokens) for file in files]
    found = run_offramp(
        *("generate", whisper, "--audio", files[0], "--max-new-tokens", 8, "--policy", "static:exit=2"),
        *("--kv", "speculate", "--check", "--json"),
    ).require(0)
    assert (found.json["tokens"], found.json["prompt"]) == (expected[0], str(files[0]))
    options = ("--max-new-tokens", 8, "--json")
    both = run_offramp("generate", whisper, "--audio", files[0], "--audio", files[1], *options).require(0)
    assert [row["tokens"] for row in both.json["rows"]] == expected


def test_a_workload_of_sounds_is_traced_scored_and_run_again(
    whisper: Path, sounds: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "trace"
    traced = run_offramp("trace", whisper, "-w", f"audio:{sounds}", "--tokens", 80, "-o", folder, "--json")
    assert (traced.require(0).json["tokens"], traced.json["left_out"]) == (80, [])
    assert run_offramp("score", folder, "--json").require(0).json["scores"][0]["representation"]
    replayed = run_offramp("replay", folder, "--policy", "static:exit=2", "--execute", "--json").require(0)
    assert replayed.json["rerun"]["skip_ratio"] == pytest.approx(0.5)
    assert "K and V of the 50.0 positions that it reads" in replayed.json["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "WHISPER", "--prompt", "a"), "it reads a sound beside each text, and here is none"),
        (("generate", "WHISPER", "--source", "a"), "it reads a sound beside each text, and here is a source"),
        (("generate", "BART", "--audio", "SOUND"), "it reads a source beside each text, and here is a sound"),
        (("generate", "TEXT", "--audio", "SOUND"), "there is a sound beside the text"),
        (("generate", "WHISPER", "--audio", "SOUND", "--source", "a"), "begin with no prompt"),
        (("generate", "WHISPER", "--audio", "MISSING"), "the sound cannot be read"),
        (("generate", "WHISPER", "--audio", "LONG"), "lasts 1.2 s, and whisper reads 1 s at most"),
        (("trace", "WHISPER", "-w", "WORDS", "-o", "OUT"), "it reads a sound beside each text"),
        (("trace", "WHISPER", "-w", "PAIRS", "-o", "OUT"), "and here is a source"),
        (("trace", "BART", "-w", "SOUNDS", "-o", "OUT"), "and here is a sound"),
        (("trace", "TEXT", "-w", "SOUNDS", "-o", "OUT"), "it is not a speech model"),
        (("heads", "fit", "TEXT", "-w", "SOUNDS", "-o", "OUT"), "it is not a speech model"),
        (("bench", "WHISPER", "--policy", "never", "--workload", "WORDS"), "it reads a sound"),
        (("trace", "WHISPER", "-w", "LONGER", "-o", "OUT"), "lasts 1.2 s, and whisper reads 1 s at most"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_weight_is_loaded(
    arguments: tuple[str, ...],
    said: str,
    whisper: Path,
    bart: Path,
    tiny_model: Path,
    sounds: Path,
    documents: Path,
    tmp_path: Path,
    no_weights: None,
) -> None:
    long = write_wav(tmp_path / "long.wav", 0.5 * np.sin(np.arange(20_000) / 7.0))
    longer = tmp_path / "longer.jsonl"
    longer.write_text(f'{{"audio": "{long}", "text": "a"}}\n')
    names: dict[str, object] = {
        "WHISPER": whisper,
        "BART": bart,
        "TEXT": tiny_model,
        "OUT": tmp_path / "out",
        "WORDS": f"jsonl:{documents}#text",
        "SOUNDS": f"audio:{sounds}",
        "LONGER": f"audio:{longer}",
        "PAIRS": f"pairs:{write_pairs(tmp_path / 'pairs.jsonl')}#en,de",
        "SOUND": sounds / "s00.wav",
        "MISSING": sounds / "none.wav",
        "LONG": long,
    }
    assert_refused(arguments, said, names, tmp_path / "out")


def test_bench_decodes_answers_to_sounds(whisper: Path, sounds: Path) -> None:
    assert_bench_decodes(whisper, f"audio:{sounds}")
