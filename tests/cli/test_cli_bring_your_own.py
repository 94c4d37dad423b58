"""The page on other people's exits: its worked example runs as it is written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import run_offramp
from offramp.heads.file import read_heads
from offramp.heads.importing.key_map import read_key_map
from offramp.tracing.trace import Trace
from tiny_models import LINES

PAGE = Path(__file__).parents[2] / "docs/bring-your-own-exits.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_every_key_map_on_the_page_is_one(tmp_path: Path) -> None:
    maps = []
    for text in blocks("toml"):
        (tmp_path / "map.toml").write_text(text)
        maps.append(read_key_map(tmp_path / "map.toml"))
    lens, spread, network, example = maps
    assert lens.keys((3,)) == ["3.weight", "3.bias"]
    assert spread.exits == (8, 16, 24)
    assert spread.keys((16,))[0] == "heads.1.weight"
    assert network.keys((2,))[-1] == "exits.2.down.weight"
    assert example.keys((2,)) == ["exits.1.head.weight", "exits.1.norm.weight"]


def test_the_worked_example_runs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "my-model")
    paragraphs = [" ".join(LINES[place:] + LINES[:place]) for place in range(len(LINES))]
    (tmp_path / "my-text.txt").write_text("\n\n".join(paragraphs * 3))
    monkeypatch.chdir(tmp_path)
    _, training, python = blocks("python")  # the first is held by the layouts' own tests
    (commands,) = blocks("bash")
    Path("map.toml").write_text(blocks("toml")[-1])
    exec(compile(training, "training", "exec"), {})
    outcomes = {}
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        assert program == "offramp"
        outcomes[words[0]] = run_offramp(*words).require(0)
    assert "my-model: an output head of its own at exits 2, 3" in outcomes["heads"].out
    run_offramp(*shlex.split("trace my-model -w txt:my-text.txt#paragraphs --exits 2,3 -o plain")).require(0)
    mine, plain = Trace.load(Path("traces/mine")), Trace.load(Path("plain"))
    agreement = [(trace.top1[:, 0] == trace.top1[:, -1]).mean() for trace in (mine, plain)]
    assert agreement[0] > agreement[1] + 0.2, "heads that were trained on this very text"
    assert "does not know which documents they were trained on" in " ".join(outcomes["replay"].out.split())
    np.testing.assert_array_equal(mine.exits, [2, 3, 4])
    capsys.readouterr()
    exec(compile(python, "python", "exec"), {})
    assert capsys.readouterr().out.strip() == "[4, 2, 2, 2, 2, 2, 2, 2]"
    assert read_heads("heads-again.safetensors").fingerprint == read_heads("heads.safetensors").fingerprint
