"""Image-text models on the command line: `generate --image`, and workloads of pictures by their name."""

from __future__ import annotations

from pathlib import Path

import pytest

import offramp
from command_line import assert_bench_decodes, assert_refused, run_offramp


def test_a_picture_is_answered_as_the_model_answers_it(llava: Path, pictures: Path) -> None:
    model = offramp.load_model(llava)
    files = [pictures.with_name(f"p0{number}.png") for number in range(2)]
    answers = offramp.generate(model, "the cat", image=files, max_new_tokens=8)
    assert isinstance(answers, list)
    expected = [list(answer.tokens) for answer in answers]
    options = ("--prompt", "the cat", "--max-new-tokens", 8, "--json")
    found = run_offramp(
        *(
            "generate",
            llava,
            "--image",
            files[0],
            "--policy",
            "static:exit=2",
            "--kv",
            "speculate",
            "--check",
        ),
        *options,
    ).require(0)
    assert (found.json["tokens"], found.json["prompt"]) == (expected[0], "the cat")
    both = run_offramp("generate", llava, "--image", files[0], "--image", files[1], *options).require(0)
    assert [row["tokens"] for row in both.json["rows"]] == expected


def test_a_workload_of_pictures_is_traced_scored_and_run_again(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "trace"
    traced = run_offramp("trace", llava, "-w", f"images:{pictures}", "--tokens", 60, "-o", folder, "--json")
    assert (traced.require(0).json["tokens"], traced.json["left_out"]) == (60, [])
    assert run_offramp("score", folder, "--json").require(0).json["scores"][0]["representation"]
    replayed = run_offramp("replay", folder, "--policy", "static:exit=2", "--execute", "--json").require(0)
    assert replayed.json["rerun"]["skip_ratio"] == pytest.approx(0.5)
    assert "what sees and a prompt of" in replayed.json["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("generate", "TEXT", "--image", "PICTURE", "--prompt", "a"),
            "reads none: it is not an image-text model",
        ),
        (("generate", "LLAVA", "--image", "PICTURE"), "there is no prompt"),
        (("generate", "LLAVA", "--image", "MISSING", "--prompt", "a"), "the picture cannot be read"),
        (("generate", "LLAVA", "--source", "a"), "it reads a picture beside each text, and here is a source"),
        (
            ("generate", "LLAVA", "--image", "PICTURE", "--source", "a"),
            "a text, a sound or a picture is given",
        ),
        (
            ("generate", "LLAVA", "--image", "PICTURE", "--image", "PICTURE", *(["--prompt", "a"] * 3)),
            "3 prompts are given for 2 pictures",
        ),
        (("trace", "TEXT", "-w", "PICTURES", "-o", "OUT"), "it is not an image-text model"),
        (("bench", "TEXT", "--policy", "never", "--workload", "PICTURES"), "it is not an image-text model"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_weight_is_loaded(
    arguments: tuple[str, ...],
    said: str,
    llava: Path,
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    no_weights: None,
) -> None:
    names: dict[str, object] = {
        "LLAVA": llava,
        "TEXT": tiny_model,
        "OUT": tmp_path / "out",
        "PICTURES": f"images:{pictures}",
        "PICTURE": pictures.with_name("p00.png"),
        "MISSING": pictures.with_name("none.png"),
    }
    assert_refused(arguments, said, names, tmp_path / "out")


def test_bench_decodes_answers_about_pictures(llava: Path, pictures: Path) -> None:
    assert_bench_decodes(llava, f"images:{pictures}")


def test_a_run_on_pictures_begins_with_the_ceiling_of_a_request(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    found = run_offramp(
        *("run", llava, "-w", f"images:{pictures}", "--tokens", 60, "-o", tmp_path / "run", "--json"),
        *("--minutes", 1),
    ).require(0)
    verdicts = found.json["verdicts"]
    assert verdicts
    assert all(verdict["request"]["ceiling"] > 0 for verdict in verdicts)
