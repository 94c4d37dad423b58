"""The README's commands and its Python example run in order, on fewer tokens, and say what they should."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Outcome, finish, start_offramp

README = Path(__file__).parents[1] / "README.md"
MAKE_TARGETS = ("run", "test")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every line of the shell blocks, as words, comments left out."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_readme_shows_every_command_and_nothing_else() -> None:
    shown = [words for words in commands() if words[0] == "offramp"]
    assert {words[1] for words in shown} == {"run", "trace", "score", "replay", "list", "doctor"}
    others = [words for words in commands() if words[0] != "offramp"]
    assert others == [["make", target] for target in MAKE_TARGETS]
    makefile = (README.parent / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in MAKE_TARGETS)


@pytest.mark.real_model
@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    outcomes: dict[str, Outcome] = {}
    for words in commands():
        if words[0] == "offramp":
            less = ["--tokens", "128", "--exits", "10,20,25"] if words[1] in ("run", "trace") else []
            outcomes[words[1]] = finish(start_offramp(*words[1:], *less, folder=tmp_path), 240).require(0)
    assert "Report: runs/prose/report.html" in outcomes["run"].out
    assert (tmp_path / "runs/prose/report.html").is_file()
    assert "128 tokens" in outcomes["trace"].out
    assert "representation quality" in outcomes["score"].out
    assert "agreement with the full model" in outcomes["replay"].out


@pytest.mark.real_model
@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = blocks("python")
    result = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    value, agreement, decision = result.stdout.split(maxsplit=2)
    assert 0 < float(value) < float(agreement) <= 1
    assert decision.strip() in ("pays", "does not pay", "too close to call")


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README.read_text()) if "://" not in link]
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert missing == []
