"""What users keep in the folders of exits and gates, and what stays where a new training cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Outcome, run_offramp, tree
from offramp.training.record import GATE_RECORD

QUICK = ["--steps", 12, "--tokens", 3000]


def train(model: Path, documents: Path, folder: Path, *more: object) -> Outcome:
    """Train lenses, or whatever else is asked for."""
    arguments = ["exits", "train", model, "-w", f"jsonl:{documents}#text", *QUICK, "--at", "1,2"]
    return run_offramp(*arguments, "-o", folder, *more)


def test_exits_stay_where_new_ones_cannot_be_and_beside_files_of_the_users(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "exits"
    train(tiny_model, documents, folder, "--kind", "lens").require(0)
    before = tree(folder)
    refused = train(tiny_model, documents, folder, "--kind", "lens", "--overwrite", "--tokens", 20)
    assert refused.code != 0
    assert {name: one for name, one in tree(folder).items() if "-new/" not in name} == before
    for name in ("README.md", "vocab_notes.txt", "states/mine.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        refused = train(tiny_model, documents, folder, "--kind", "lens", "--overwrite").require(2)
        assert f"holds files that are not a training: {name}" in refused.err
        assert (folder / name).read_text() == "mine"
        (folder / name).unlink()
    (folder / "exits.safetensors").write_bytes(b"edited")
    train(tiny_model, documents, folder, "--kind", "lens", "--overwrite").require(0)
    after = tree(folder)
    assert after.pop("exits.safetensors.changed") == b"edited"
    assert after.keys() == before.keys()


def test_gates_of_a_killed_command_are_made_by_the_same_one(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gates"

    def gates() -> Outcome:
        options = ["--kind", "gate", "--hardware", "h100", "--floor", 0.4, "--steps", 5]
        return train(tiny_model, documents, folder, *options)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(GATE_RECORD), "write", killed)
        assert gates().code != 0
    gates().require(0)
    assert tree(folder).keys() == {"exits.safetensors", "training.json"}
    assert "there already" in gates().require(2).err
