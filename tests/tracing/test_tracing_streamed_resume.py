"""Traces layer by layer that are stopped, killed or damaged go on to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import stored_traces
from killed_runs import RANDOM_MOMENTS
from stored_traces import files_of, flip, killed_children, run
from streamed_runs import Stopped, states_of, stopped_run, streamed
from tracing_models import tiny_llama

import offramp.tracing.tracer as tracer
from offramp.errors import InputError
from offramp.files import SEAL, write_sealed_json
from offramp.tracing.states import STATES_FOLDER

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = stored_traces.finished
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts


@pytest.mark.parametrize(("exits", "layer"), [("all", 0), ("all", 1), ("all", 2), ("3", 2)])
def test_a_run_goes_on_after_the_last_whole_layer(
    exits: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, layer, exits=exits)
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart, exits=exits)
    assert layers.read == list(range(layer, 3))
    run(tmp_path / "memory", exits=exits)
    assert files_of(folder) == files_of(tmp_path / "memory")


@pytest.mark.parametrize(("begun", "again"), [("streamed", []), ("in memory", [0, 1, 2])])
def test_a_run_stopped_while_parts_are_measured_goes_on_streamed(
    begun: str, again: list[int], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states are there if it was streamed before, and the parts before are not touched."""
    folder = tmp_path / "trace"
    real = tracer.write_part

    def stopping(folder: Path, part: Any, *rest: Any) -> None:
        if part.index == 2:
            raise Stopped
        real(folder, part, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(tracer, "write_part", stopping)
        with pytest.raises(Stopped):
            run(folder, model=streamed(tiny_llama())[0] if begun == "streamed" else tiny_llama())
    assert len(states_of(folder)) == (1 + 2 * 3 if begun == "streamed" else 0)
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == again
    assert files_of(folder) == files_of(finished)


def test_a_damaged_part_goes_through_the_layers_alone(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "trace"))
    flip(folder / "facts-00001.parquet", 300)
    apart, layers = streamed(tiny_llama())
    seen: list[int] = []
    for layer in layers._layers:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
    run(folder, model=apart, repair=True)
    assert files_of(folder) == files_of(finished)
    assert layers.read == [0, 1, 2]
    assert 0 < sum(seen) / 3 < 60, "tokens of one part, not of all"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


DAMAGES = {
    "flipped": ("layer-0001.bin", flipped, [1, 2]),
    "truncated": ("layer-0001.bin", truncated, [1, 2]),
    "missing": ("layer-0001.bin", Path.unlink, [1, 2]),
    "seal": ("layer-0001.json", flipped, [1, 2]),
    "no-seal": ("layer-0001.json", Path.unlink, [1, 2]),
    "description": ("states.json", flipped, [0, 1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_layer_is_found_and_computed_again(
    damage: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2)
    name, change, again = DAMAGES[damage]
    change(folder / STATES_FOLDER / name)
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == again
    assert files_of(folder) == files_of(finished)
    assert ("computed again" in capsys.readouterr().err) == (damage != "no-seal")


@pytest.mark.parametrize(
    ("name", "change", "again"),
    [
        ("layer-0001.json", {"places": []}, [1, 2]),
        ("layer-0001.json", {"places": [{"offset": 0, "shape": [1, 13, 32], "dtype": "Tensor"}]}, [1, 2]),
        ("states.json", {"parts": [0, 1, 2, 7]}, [0, 1, 2]),
    ],
)
def test_a_sealed_layer_of_other_batches_is_computed_again(
    name: str,
    change: dict[str, Any],
    again: list[int],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2)
    file = folder / STATES_FOLDER / name
    sealed = json.loads(file.read_text())
    del sealed[SEAL]
    write_sealed_json(file, {**sealed, **change})
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == again
    assert files_of(folder) == files_of(finished)


def test_states_of_another_request_are_not_used(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2, tokens=100)
    before = files_of(folder)
    with pytest.raises(InputError, match=r"differs in: tokens \("):
        run(folder, model=streamed(tiny_llama())[0])
    assert files_of(folder) == before
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart, overwrite=True)
    assert layers.read == [0, 1, 2]
    assert files_of(folder) == files_of(finished)


def test_a_finished_trace_loses_states_that_were_left(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "trace"))
    (folder / STATES_FOLDER).mkdir()
    (folder / STATES_FOLDER / "layer-0000.bin").write_bytes(b"left by a run that was killed at its end")
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == []
    assert files_of(folder) == files_of(finished)


# The layers that are read again after a kill around the n-th file: each layer's states end with its seal.
READ_AFTER = {
    "replace-3": [0, 1, 2],
    "replace-4": [0, 1, 2],
    "replace-6": [0, 1, 2],
    "replace-7": [1, 2],
    "replace-8": [2],
    "replace-10": [],
    "replace-13": [],
}


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right before and after files are put in place, and at some random moments.

    How many of the random moments fall between two layers is the machine's affair.
    """
    ended = killed_children(tmp_path, "streamed")
    assert len(ended) == len(READ_AFTER) + RANDOM_MOMENTS
    assert {ended[name] for name in READ_AFTER} == {signal.SIGKILL}
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    expected = files_of(finished)
    for name, number in ended.items():
        before = (tmp_path / f"{name}.log").read_text().split()
        apart, layers = streamed(tiny_llama())
        run(tmp_path / name, model=apart)
        assert files_of(tmp_path / name) == expected, name
        assert layers.read == READ_AFTER.get(name, layers.read), name
        if number == signal.SIGKILL and before:
            # The layer in hand at the kill is read again; those before it are not.
            assert not layers.read or layers.read[0] >= int(before[-1]), name
