"""`images:FILE.jsonl`: pictures, what is asked of them, and the answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.errors import InputError
from offramp.kit.given import Given
from offramp.kit.picture import given_picture, picture_of, read_picture
from offramp.workloads.registry import load_workload
from tiny_models import write_picture


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "a.png")


def lines(path: Path, *values: dict[str, object]) -> Path:
    path.write_text("\n".join(map(json.dumps, values)) + "\n", encoding="utf-8")
    return path


def test_a_line_is_a_picture_with_a_question_and_an_answer(picture: Path) -> None:
    asked = {"image": "a.png", "prompt": "what is it?", "answer": "noise"}
    file = lines(picture.parent / "all.jsonl", asked, {**asked, "id": "second", "prompt": "is it?"})
    workload = load_workload(f"images:{file}")
    first, second = workload.documents
    assert (first.text, second.id, workload.mode, workload.reads) == ("noise", "second", "text", "image")
    assert first.given == given_picture(picture, "what is it?")
    assert workload.decoded_whole
    assert first.given is not None
    assert second.given is not None
    assert first.given.fingerprint != second.given.fingerprint  # another question


def test_pixels_tell_pictures_apart_and_files_do_not(picture: Path) -> None:
    given = given_picture(picture, "q")
    Image.open(picture).save(picture.with_name("b.bmp"))
    assert given_picture(picture.with_name("b.bmp"), "q").fingerprint == given.fingerprint
    np.testing.assert_array_equal(np.asarray(picture_of(given)), np.asarray(read_picture(picture)))
    write_picture(picture, seed=1)
    with pytest.raises(InputError, match="the picture changed since it was given"):
        picture_of(given)
    assert given_picture(picture, "q").fingerprint != given.fingerprint


def test_grey_and_transparent_pictures_are_read_in_colour(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (3, 2)).save(tmp_path / f"{mode}.png")
        assert read_picture(tmp_path / f"{mode}.png").mode == "RGB"


def test_what_is_no_picture_is_refused(picture: Path, tmp_path: Path) -> None:
    whole = picture.read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("a text")
    for name, said in (
        ("torn.png", "the picture cannot be read"),
        ("text.png", "it is no picture of a format that is read"),
        ("none.png", "the picture cannot be read: No such file"),
    ):
        with pytest.raises(InputError, match=said):
            read_picture(tmp_path / name)
    file = lines(tmp_path / "all.jsonl", {"image": "none.png", "prompt": "q", "answer": "a"})
    with pytest.raises(InputError, match="cannot be read"):
        load_workload(f"images:{file}")
    with pytest.raises(InputError, match="prompt"):
        load_workload(f"images:{lines(file, {'image': 'a.png', 'answer': 'a'})}")


def test_a_picture_without_pixels_says_nothing() -> None:
    with pytest.raises(InputError, match="the source is empty"):
        Given("a.png", kind="image", prompt="what is it?")
