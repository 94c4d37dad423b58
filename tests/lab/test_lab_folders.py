"""What users keep in the folders of texts and trainings, or beside them: none of it is removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from command_line import tree
from lab_recipes import tiny
from lab_texts import own_text, write_works
from offramp.errors import InputError
from offramp.lab.text.folder import LabText
from offramp.lab.text.make import make_text
from offramp.lab.text.request import TextRequest
from offramp.lab.training.folder import kept_model
from offramp.lab.training.train import train

SHORT = {"tokens": 3 * 128, "checkpoints": 2}


def put(folder: Path, *names: str) -> dict[str, bytes]:
    """Files of the user, as `tree` gives them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return dict.fromkeys(names, b"mine")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextRequest:
    """A little text."""
    monkeypatch.setattr("offramp.lab.text.make.PROBLEMS_APART", 2)
    monkeypatch.setattr("offramp.lab.text.make.SEEN_WORKLOADS", ())
    own = [own_text(write_works(tmp_path / "works"))]
    return TextRequest.model_validate({"sources": (), "vocabulary": 300, "own": own})


@pytest.mark.parametrize(
    "name", ["tokenizer/mine.json", "train-prose.jsonl", "text.json", "tokens.safetensors"]
)
def test_a_text_is_not_written_over_files_of_its_names(asked: TextRequest, tmp_path: Path, name: str) -> None:
    mine = put(tmp_path / "out", name)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"something else|holds a text"):
            make_text(asked, tmp_path / "out", overwrite=overwrite)
        assert tree(tmp_path / "out") == mine


def test_a_text_stays_where_the_new_one_is_refused(asked: TextRequest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_text(asked, out)
    before = tree(out)
    with pytest.raises(InputError, match="no source"):
        make_text(asked.model_copy(update={"own": ()}), out, overwrite=True)
    assert tree(out) == before
    (out / "train-prose.jsonl").write_text("edited")
    make_text(asked, out, overwrite=True)
    assert tree(out) == {**before, "train-prose.jsonl.changed": b"edited"}
    put(out, "tokenizer/mine.json")
    with pytest.raises(InputError, match=r"something else: tokenizer/mine\.json"):
        make_text(asked, out, overwrite=True)
    assert (out / "tokenizer" / "mine.json").read_text() == "mine"


def test_what_lies_beside_a_training_survives(lab_text: LabText, tmp_path: Path) -> None:
    train(tiny(lab_text, **SHORT), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "run@backup")
    mine = put(tmp_path, "run@mine/notes.txt", "run@copy/training.json", "run.txt")
    (step,) = (path for path in tmp_path.glob("run@*") if path.name.removeprefix("run@").isdecimal())
    mine |= put(tmp_path, f"{step.name}/notes.txt")
    backup = tree(tmp_path / "run@backup")
    another = tiny(lab_text, **{**SHORT, "tokens": 6 * 128})
    train(another, tmp_path / "run", overwrite=True)
    assert mine.items() <= tree(tmp_path).items()
    assert tree(tmp_path / "run@backup") == backup
    assert kept_model(tmp_path / "run", 3).is_dir()
    for name in ("README.md", "vocab_notes.txt"):
        put(tmp_path, f"run/{name}.mine")
        with pytest.raises(InputError, match="holds something else"):
            train(another, tmp_path / "run", overwrite=True)
        (tmp_path / "run" / f"{name}.mine").unlink()


def test_another_training_is_refused_where_the_new_one_cannot_be(lab_text: LabText, tmp_path: Path) -> None:
    train(tiny(lab_text, **SHORT), tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="one step takes"):
        train(tiny(lab_text, batch=100_000), tmp_path / "run", overwrite=True)
    mine = put(tmp_path, "run@3/model.safetensors")
    with pytest.raises(InputError, match="earlier step is kept"):
        train(tiny(lab_text, **{**SHORT, "tokens": 6 * 128}), tmp_path / "run", overwrite=True)
    assert tree(tmp_path) == {**before, **mine}
