"""`offramp trace --stream`, `--no-stream` and `--memory`: the same trace, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from command_line import Outcome, run_offramp, tree
from offramp.errors import InputError
from offramp.kit.numbers import shown_size
from offramp.models.process import parse_size


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model in several weight files."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "sharded"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sharded: Path, documents: Path) -> Path:
    """Its trace from memory."""
    folder = tmp_path_factory.mktemp("traces") / "whole"
    traced(sharded, documents, folder, "--no-stream").require(0)
    return folder


def traced(model: Path, documents: Path, folder: Path, *options: object) -> Outcome:
    workload = f"jsonl:{documents}#text"
    return run_offramp("trace", model, "-w", workload, "--tokens", 200, "-o", folder, *options)


def test_a_streamed_trace_is_the_same(sharded: Path, whole: Path, documents: Path, tmp_path: Path) -> None:
    done = traced(sharded, documents, tmp_path / "trace", "--stream", "--json").require(0)
    assert done.json["streamed"] is True
    assert "do not fit" not in done.err
    assert tree(tmp_path / "trace") == tree(whole)


def test_a_model_that_would_not_fit_is_streamed_and_it_is_said(
    sharded: Path, whole: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (sharded, documents, tmp_path / "trace", "--json")
    assert traced(*arguments).require(0).json["streamed"] is False
    monkeypatch.setattr("offramp.models.streaming.available_memory", lambda: 1000)
    done = traced(*arguments, "--overwrite").require(0)
    assert done.json["streamed"] is True
    assert "do not fit in the memory that is free: traced layer by layer" in done.err
    assert traced(*arguments, "--overwrite", "--no-stream").require(0).json["streamed"] is False


def test_a_budget_decides_by_itself(
    sharded: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    with monkeypatch.context() as patch:  # a family that cannot be streamed is traced where all weights fit
        patch.setattr("offramp.models.streaming.build_skeleton", lambda *some, **more: 1 / 0)
        large = traced(sharded, documents, folder, "--memory", "1GB", "--json").require(0)
    assert large.json["streamed"] is False
    small = traced(sharded, documents, tmp_path / "small", "--memory", "180kB", "--json").require(0)
    assert small.json["streamed"] is True
    assert "do not fit in 180.0 kB: traced layer by layer" in small.err
    assert tree(tmp_path / "small") == tree(folder)
    refused = traced(sharded, documents, tmp_path / "tiny", "--memory", "20KiB").require(2)
    assert "20,480 bytes are too few" in refused.err
    enough = refused.err.partition("allow at least ")[2].split()[0]
    assert "do not fit" in traced(sharded, documents, tmp_path / "enough", "--memory", enough).require(0).err
    monkeypatch.setattr("offramp.models.streaming.load_streamed", lambda *some, **more: 1 / 0)
    chat = run_offramp("trace", sharded, "-w", "chat", "--stream", "-o", tmp_path / "tiny").require(2)
    assert "for every new token" in chat.err
    assert not (tmp_path / "tiny").exists()


def test_a_pruned_model_that_would_not_fit_is_refused(
    sharded: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.models.streaming.available_memory", lambda: 1000)
    arguments = (sharded, documents, tmp_path / "trace", "--transform", "prune:drop=2")
    assert "do not fit in the memory that is free" in traced(*arguments).require(2).err
    assert not (tmp_path / "trace").exists()
    traced(*arguments, "--no-stream").require(0)


@dataclasses.dataclass(frozen=True)
class Damped:
    """Halves what the last layer adds, if its weights are there."""

    name: ClassVar[str] = "damped"
    text: ClassVar[str] = "damped"

    def check(self, dtype: str | None = None) -> None:
        """Every machine can."""

    def apply(self, model: Any) -> Any:
        """The damped model."""
        with torch.no_grad():
            model.stack.layers[-1].mlp.down_proj.weight /= 2
        identity = dataclasses.replace(model.identity, transforms=(*model.identity.transforms, self.text))
        return model.with_identity(identity)


def test_a_transform_that_does_nothing_to_layers_on_disk_is_refused(
    sharded: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.tracing.loading.read_transforms", lambda texts, dtype: (Damped(),))
    arguments = (sharded, documents, tmp_path / "trace", "--transform", "damped")
    assert (
        "damped cannot be applied to layers that stay on disk"
        in traced(*arguments, "--stream").require(2).err
    )
    assert not (tmp_path / "trace").exists()
    traced(*arguments).require(0)


def test_sizes_of_memory() -> None:
    read = {"4GB": 4 * 10**9, "4 gb": 4 * 10**9, "1.5GiB": 3 * 2**29, "12k": 12_000, "7": 7, "0.5KiB": 512}
    assert {text: parse_size(text, "--memory") for text in read} == read
    sizes = (14_500_000_000, 1_000_000, 999_999, 12)
    assert [shown_size(one) for one in sizes] == ["14.5 GB", "1.0 MB", "1,000.0 kB", "12 bytes"]
    for wrong in ("", "GB", "0", "0.1", "-4GB", "1e9", "4GBs", "4,5GB", "nan", "²"):
        with pytest.raises(InputError, match="is not an amount of memory") as caught:
            parse_size(wrong, "--memory")
        assert caught.value.where == "--memory"
