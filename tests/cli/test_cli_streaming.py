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
from offramp.models.memory import parse_size, shown_size
from tiny_models import write_llama


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


def test_a_streamed_model_is_quantised_alike(sharded: Path, documents: Path, tmp_path: Path) -> None:
    options = ("--transform", "int8", "--json")
    assert traced(sharded, documents, tmp_path / "whole", *options).require(0).json["streamed"] is False
    traced(sharded, documents, tmp_path / "streamed", "--stream", *options).require(0)
    assert tree(tmp_path / "streamed") == tree(tmp_path / "whole")


def test_a_model_that_would_not_fit_is_streamed_and_it_is_said(
    sharded: Path, whole: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (sharded, documents, tmp_path / "trace", "--json")
    assert traced(*arguments).require(0).json["streamed"] is False
    monkeypatch.setattr("offramp.models.streamed_loading.available_memory", lambda: 1000)
    done = traced(*arguments, "--overwrite").require(0)
    assert done.json["streamed"] is True
    assert "do not fit in the memory that is free: traced layer by layer" in done.err
    assert traced(*arguments, "--overwrite", "--no-stream").require(0).json["streamed"] is False


def test_a_budget_decides_by_itself(sharded: Path, documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    large = traced(sharded, documents, folder, "--memory", "1GB", "--json").require(0)
    assert large.json["streamed"] is False
    small = traced(sharded, documents, tmp_path / "small", "--memory", "180kB", "--json").require(0)
    assert small.json["streamed"] is True
    assert "do not fit in 180.0 kB: traced layer by layer" in small.err
    assert tree(tmp_path / "small") == tree(folder)


def test_a_budget_that_all_weights_fit_in_needs_no_streaming(
    sharded: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a family which cannot be streamed is traced."""
    monkeypatch.setattr("offramp.models.streamed_loading.build_skeleton", lambda *some, **more: 1 / 0)
    done = traced(sharded, documents, tmp_path / "trace", "--memory", "1GB", "--json").require(0)
    assert done.json["streamed"] is False


def test_a_pruned_model_that_would_not_fit_is_refused(
    sharded: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.models.streamed_loading.available_memory", lambda: 1000)
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
        return dataclasses.replace(model, identity=identity)


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


def test_a_budget_too_small_for_one_layer_says_what_is_needed(
    sharded: Path, documents: Path, tmp_path: Path
) -> None:
    done = traced(sharded, documents, tmp_path / "trace", "--memory", "20KiB").require(2)
    assert "20,480 bytes are too few" in done.err
    assert "allow at least" in done.err
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "lots"], "'lots' is not an amount of memory"),
        (["--memory", "0GB"], "'0GB' is not an amount"),
        (["--memory", "-4GB"], "'-4GB' is not an amount"),
        (["--memory", "4 parsecs"], "'4 parsecs' is not an amount"),
        (["--memory", "4GB", "--no-stream"], "leave out one of them"),
        (["--stream", "--transform", "prune:drop=2"], "pruned as a whole"),
        (["--memory", "4GB", "--transform", "prune:drop=2"], "pruned as a whole"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, sharded: Path, documents: Path, tmp_path: Path
) -> None:
    done = traced(sharded, documents, tmp_path / "trace", *options).require(2)
    assert message in done.err
    assert not (tmp_path / "trace").exists()


def test_prompts_without_answers_are_refused_before_loading(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.models.streamed_loading.load_streamed", lambda *some, **more: 1 / 0)
    done = run_offramp("trace", sharded, "-w", "chat", "--stream", "-o", tmp_path / "trace").require(2)
    assert "for every new token" in done.err
    assert "jsonl:PATH#field" in done.err
    assert not (tmp_path / "trace").exists()


def test_a_damaged_shard_is_refused(documents: Path, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    traced(model, documents, tmp_path / "trace", "--stream").require(2)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        ("1.5GiB", 3 * 2**29),
        ("800MB", 800_000_000),
        ("12k", 12_000),
        ("7", 7),
        ("0.5KiB", 512),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_size(text, "--memory") == size


def test_sizes_are_shown_in_their_unit() -> None:
    sizes = (14_500_000_000, 1_000_000, 999_999, 12)
    assert [shown_size(size) for size in sizes] == ["14.5 GB", "1.0 MB", "1,000.0 kB", "12 bytes"]


@pytest.mark.parametrize("text", ["", "GB", "0", "0.1", "1e9", "4GBs", "4,5GB", "nan", "²"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="is not an amount of memory") as caught:
        parse_size(text, "--memory")
    assert caught.value.where == "--memory"
