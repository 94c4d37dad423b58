"""Every command line of `refusals.txt` and every study file of `bad_studies.txt`: refused, in which words."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from golden.recorder import Recorder, told
from golden.surroundings import offramp
from golden.world import CONFIGS, FEW_TEXTS, OTHER_TEXTS, PROFILE, TEXTS, edited, truncated, write_model

TABLES = Path(__file__).parents[1]
NAME = "%%% "
KEY_MAP = '[lens]\nweight = "{exit}.weight"\nbias = "{exit}.bias"\nexits = [1, 2]\n'


def record(recorder: Recorder) -> None:
    """A golden for each command, with all its refusals one below another.

    Raises AssertionError for lines that are no refusals (any more).
    """
    write_places()
    said: dict[str, list[str]] = {}
    carried_out: list[str] = []
    for line in command_lines((TABLES / "refusals.txt").read_text(encoding="utf-8")):
        words = shlex.split(line)
        answer = offramp(*words)
        text = told(line, answer.code, answer.out, answer.err)
        said.setdefault(command_of(words), []).append(text)
        carried_out += [text] * (answer.code == 0)
    for name, content in study_files((TABLES / "bad_studies.txt").read_text(encoding="utf-8")):
        Path("STUDY.toml").write_text(content, encoding="utf-8")
        answer = offramp("study", "plan", "STUDY.toml")
        text = told("study plan STUDY.toml", answer.code, answer.out, answer.err)
        said.setdefault("study-files", []).append(f"{NAME}{name}\n{text}")
        carried_out += [text] * (answer.code == 0)
    assert not carried_out, "\n\n".join(["not refused:", *carried_out])
    for command, texts in said.items():
        recorder.keep(f"{command}.txt", recorder.normal.text("\n\n".join(texts)))


def command_lines(table: str) -> Iterator[str]:
    """The command lines of a table: each that begins with ">", with every line below it in turn."""
    lines = [line for line in table.splitlines() if line and not line.startswith("#")]
    for place, line in enumerate(lines):
        if line.startswith("> "):
            begun = line.removeprefix("> ")
            if lines[place + 1 : place + 2] == [] or lines[place + 1].startswith("> "):
                yield begun
        else:
            yield f"{begun} {line}"


def command_of(words: list[str]) -> str:
    """The command of a command line, for the name of a golden."""
    named = [word for word in words[:2] if word.isalpha()]
    groups = ("study", "heads", "exits", "hardware")
    return "-".join(named[:2] if words[0] in groups else named[:1]) or "options"


def study_files(table: str) -> Iterator[tuple[str, str]]:
    """The name and the content of every study file of a table."""
    for block in table.split(f"\n{NAME}")[1:]:
        name, _, content = block.partition("\n")
        yield name, content


def write_places() -> None:
    """What the command lines name: traces, heads, a policy, runs, and damaged copies of them."""
    made(
        ("trace", "dense", "-w", TEXTS, "--tokens", 480, "-o", "trace"),
        ("trace", "mixture", "-w", TEXTS, "--tokens", 480, "-o", "other-trace"),
        ("heads", "fit", "dense", "-w", OTHER_TEXTS, "--tokens", 300, "-o", "heads.safetensors"),
        (
            "heads",
            "fit",
            "mixture",
            "-w",
            OTHER_TEXTS,
            "--tokens",
            300,
            "--no-classifiers",
            "-o",
            "other-heads.safetensors",
        ),
        (
            "tune",
            "trace",
            "--floor",
            "agreement=0.6",
            "--hardware",
            "machine.toml",
            "--model",
            "none",
            "-o",
            "tuned.json",
        ),
        (
            "run",
            "dense",
            "-w",
            FEW_TEXTS,
            "--tokens",
            200,
            "--floor",
            0.8,
            "--hardware",
            "machine.toml",
            "--no-decode",
            "-o",
            "done",
        ),
    )
    for folder in ("a-folder", "bad", "mine"):
        Path(folder).mkdir()
    (Path("mine") / "chapter.tex").write_text("years of work")
    Path("a-file").write_text("mine")
    Path("few-words.txt").write_text("one text\n\nand another\n")
    Path("one.txt").write_text("a text called one\n")
    Path("two.txt").write_text("a text called two\n")
    Path("study.toml").write_text(
        f'models = ["dense"]\nworkloads = ["{TEXTS}"]\nmachines = ["h100"]\n[study]\nname = "s"\n'
    )
    for name, layers in (("a", 4), ("b", 6)):
        write_model(Path(name), CONFIGS["dense"] | {"num_hidden_layers": layers}, seed=layers)
    shutil.copytree("a", "copy")
    write_bad_files(Path("bad"))
    write_bad_models(Path("bad"))
    write_bad_machines(Path("bad"))


def made(*commands: tuple[object, ...]) -> None:
    """Run commands that must succeed."""
    for command in commands:
        answer = offramp(*command)
        if answer.code != 0:
            raise AssertionError(f"{command}\n{answer.err}")


def write_bad_files(bad: Path) -> None:
    """Traces, heads, policies, runs and texts that were cut or edited."""
    for name in ("trace-cut", "trace-edited", "trace-without-manifest", "trace-of-a-newer-offramp"):
        shutil.copytree("trace", bad / name)
    truncated(bad / "trace-cut" / "facts-00000.parquet")
    edited(bad / "trace-edited" / "manifest.json", lambda value: {**value, "layers": 5})
    (bad / "trace-without-manifest" / "manifest.json").unlink()
    edited(bad / "trace-of-a-newer-offramp" / "manifest.json", lambda value: {**value, "schema_version": 99})
    for name in ("heads-cut", "heads-edited"):
        shutil.copy("heads.safetensors", bad / f"{name}.safetensors")
    truncated(bad / "heads-cut.safetensors")
    content = (bad / "heads-edited.safetensors").read_bytes()
    (bad / "heads-edited.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for name in ("policy-edited", "tuned-edited"):
        shutil.copy("tuned.json", bad / f"{name}.json")
        edited(bad / f"{name}.json", lambda value: {**value, "floor": {"agreement": 0.1}})
    (bad / "policy-open.json").write_text("{")
    (bad / "policy-list.json").write_text("[]")
    (bad / "policy-empty.json").write_text("{}")
    (bad / "latin.txt").write_bytes("café".encode("latin-1"))
    (bad / "one-token.jsonl").write_text('{"text": "~"}\n' * 25)
    (bad / "lens.toml").write_text(KEY_MAP)
    (bad / "map-without-exits.toml").write_text('[lens]\nweight = "{exit}.weight"\n')
    (bad / "not.toml").write_text("kind = roofline\n")
    cell = {"model": "m", "base": "b", "scores": {"composite": 0.5}, "saving": 0.1, "machine": "h100"}
    (bad / "cells.jsonl").write_text(json.dumps({**cell, "floor": "agreement=0.99"}) + "\n")


def write_bad_models(bad: Path) -> None:
    """Checkpoints that are not loaded."""
    import torch
    from safetensors.torch import load_file, save_file

    for name in ("no-config", "pickled", "remote-code", "cut", "infinite"):
        shutil.copytree("dense", bad / name)
    (bad / "no-config" / "config.json").unlink()
    weights = load_file(bad / "pickled" / "model.safetensors")
    torch.save(weights, bad / "pickled" / "pytorch_model.bin")
    (bad / "pickled" / "model.safetensors").unlink()
    edited(
        bad / "remote-code" / "config.json",
        lambda value: {**value, "auto_map": {"AutoModelForCausalLM": "m.M"}},
    )
    truncated(bad / "cut" / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, bad / "infinite" / "model.safetensors", metadata={"format": "pt"})
    (bad / "model.gguf").write_bytes(b"GGUF" + np.zeros(64, dtype=np.uint8).tobytes())


def write_bad_machines(bad: Path) -> None:
    """Hardware profiles with one thing wrong each."""
    for name, before, after in (
        ("without-source", 'source = "made up"\n', ""),
        ("unknown-kind", '"roofline"', '"rooflane"'),
        ("unknown-key", "launch_seconds", "lunch_seconds"),
        ("negative", "2e10", "-2e10"),
        ("dtype", "bfloat16", "bf16"),
    ):
        (bad / f"machine-{name}.toml").write_text(PROFILE.replace(before, after))
