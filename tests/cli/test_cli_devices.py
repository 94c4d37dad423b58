"""`--device` and `--dtype`: refused before anything is loaded, said as they were settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import run_offramp
from offramp.errors import InputError
from offramp.files import write_sealed_json
from offramp.runs.folder import RUN_FOLDER, default_folder

LOADING = (
    ("run", "nowhere"),
    ("trace", "nowhere", "-w", "chat", "-o", "there"),
    ("heads", "fit", "nowhere", "-w", "chat", "-o", "there.safetensors"),
    ("heads", "import", "nowhere.safetensors", "-o", "there.safetensors"),
    ("tune", "nowhere", "--floor", "agreement=0.9"),
    ("replay", "nowhere", "-p", "never", "--execute"),
    ("generate", "nowhere", "--prompt", "a"),
    ("bench", "nowhere", "-p", "static:exit=1"),
    ("bench", "nowhere", "--combine", "int8"),
    ("hardware", "measure", "nowhere"),
)


@pytest.mark.parametrize("command", LOADING, ids=" ".join)
@pytest.mark.parametrize(
    ("device", "what"), [("gpu", "unknown device 'gpu'"), ("cuda:63", "there is no device cuda:63 here")]
)
def test_a_device_that_is_not_here_is_refused_first(command: tuple[str, ...], device: str, what: str) -> None:
    error = run_offramp(*command, "--device", device, "--json").require(2).json["error"]
    assert (error["what"], error["where"]) == (what, "--device")
    assert "auto, cpu" in error["fix"]


def test_replay_without_a_model_takes_no_device() -> None:
    error = (
        run_offramp("replay", "nowhere", "-p", "never", "--device", "cpu", "--json").require(2).json["error"]
    )
    assert error["what"] == "--device means nothing without --execute"


def test_a_run_says_where_it_was_computed(finished_run: Path) -> None:
    request = json.loads((finished_run / "run.json").read_text())
    provenance = json.loads((finished_run / "summary.json").read_text())["provenance"]
    assert (request["device"], request["dtype"]) == ("cpu", "float32")
    assert (provenance["device"], provenance["dtype"]) == ("cpu", "float32")


def test_a_run_from_before_there_were_devices_is_one_on_the_processor(tmp_path: Path) -> None:
    before = {"model": "m", "tokens": 64}
    write_sealed_json(tmp_path / "run.json", before)
    on_cpu, on_card = {**before, "device": "cpu"}, {**before, "device": "cuda:0"}
    RUN_FOLDER.require(tmp_path, on_cpu)
    with pytest.raises(InputError, match="holds another run"):
        RUN_FOLDER.require(tmp_path, on_card)
    assert default_folder("m", before) == default_folder("m", on_cpu) != default_folder("m", on_card)
