"""`offramp trace --signals ... --heads FILE`: what is recorded, and what is refused before weights load."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from command_line import run_offramp
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import write_heads
from offramp.tracing.facts import FACTS, HEAD_FACTS, SIGNAL_FACTS
from tiny_models import LAYERS

sys.path.insert(0, str(Path(__file__).parents[1] / "tracing"))

from random_heads import random_heads


@pytest.fixture(scope="module")
def heads(tiny_model: Path) -> ExitHeads:
    """Random heads at every exit of the tiny model."""
    return random_heads(offramp.load_model(str(tiny_model)), range(1, LAYERS))


@pytest.fixture(scope="module")
def some_heads(tiny_model: Path) -> ExitHeads:
    """Random heads at two exits only."""
    return random_heads(offramp.load_model(str(tiny_model)), [1, 3])


@pytest.fixture
def heads_file(heads: ExitHeads, tmp_path: Path) -> Path:
    path = tmp_path / "heads.safetensors"
    write_heads(heads, path)
    return path


@pytest.fixture
def no_weights_loaded(
    monkeypatch: pytest.MonkeyPatch, heads: ExitHeads, some_heads: ExitHeads
) -> Iterator[None]:
    """After the heads were made."""
    import transformers

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights were loaded")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
        yield


def test_signals_and_heads_are_recorded(
    tiny_model: Path, documents: Path, heads_file: Path, heads: ExitHeads, tmp_path: Path
) -> None:
    folder = tmp_path / "trace"
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 200, "-o", folder]
    value = run_offramp(*command, "--signals", "all", "--heads", heads_file, "--json").require(0).json
    loaded = offramp.Trace.load(folder)
    asked = [fact.name for name in sorted(SIGNAL_FACTS) for fact in SIGNAL_FACTS[name]]
    names = [*(fact.name for fact in FACTS), *asked, *(fact.name for fact in HEAD_FACTS)]
    assert value["facts"] == list(loaded.fact_names) == names
    held = offramp.trace(
        offramp.load_model(str(tiny_model)), f"jsonl:{documents}#text", tokens=200, signals="all", heads=heads
    )
    for name in names:
        assert np.array_equal(loaded.fact(name), held.fact(name)), name
    assert loaded.provenance == held.provenance
    other = run_offramp(*command, "--json").require(2).json["error"]
    assert "differs in: signals (" in other["what"]
    assert " heads." in other["what"]


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize("kind", ["missing", "another model", "text", "damaged"])
def test_bad_heads(
    tiny_model: Path, documents: Path, tmp_path: Path, heads: ExitHeads, heads_file: Path, kind: str
) -> None:
    if kind == "missing":
        heads_file.unlink()
    elif kind == "another model":
        write_heads(
            dataclasses.replace(heads, model={**heads.model, "name": "another", "fingerprint": "f" * 64}),
            heads_file,
        )
    elif kind == "text":
        heads_file.write_text("no heads at all")
    else:
        content = bytearray(heads_file.read_bytes())
        content[-5] ^= 1
        heads_file.write_bytes(content)
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tmp_path / "out"]
    outcome = run_offramp(*command, "--heads", heads_file, "--json").require(1 if kind == "damaged" else 2)
    assert outcome.json["error"]["fix"]
    assert str(heads_file) in outcome.json["error"]["where"]
    if kind == "another model":
        assert "fitted on another" in outcome.json["error"]["what"]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_weights_loaded")
def test_an_exit_without_a_head(
    tiny_model: Path, documents: Path, tmp_path: Path, some_heads: ExitHeads
) -> None:
    write_heads(some_heads, tmp_path / "heads.safetensors")
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 50]
    command += ["--exits", "1,2", "--heads", tmp_path / "heads.safetensors", "-o", tmp_path / "out"]
    error = run_offramp(*command, "--json").require(2).json["error"]
    assert error["what"] == "the heads were not fitted at exit 2; they have: 1, 3"
    assert error["fix"] == 'trace their exits only: exits="1,3" (--exits 1,3)'
    assert not (tmp_path / "out").exists()
