"""`audio:DIR` and `audio:FILE.jsonl`: sounds beside what is said in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from offramp.errors import InputError
from offramp.kit.sound import given_sound
from offramp.workloads.registry import load_workload
from tiny_models import write_sounds, write_wav

TONE = 0.5 * np.sin(np.arange(800) / 7.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sounds(tmp_path / "sounds", documents=3)


def test_a_folder_is_its_sounds_by_name_with_their_texts(folder: Path) -> None:
    (folder / "README.txt").write_text("not said anywhere")
    workload = load_workload(f"audio:{folder}")
    assert [document.id for document in workload.documents] == ["s00", "s01", "s02"]
    assert workload.documents[1].text == (folder / "s01.txt").read_text(encoding="utf-8")
    assert workload.documents[1].given == given_sound(folder / "s01.wav")
    assert (workload.mode, workload.reads, workload.decoded_whole, workload.notes) == (
        "text",
        "audio",
        True,
        (),
    )


def test_a_file_names_sounds_from_its_own_folder_on(folder: Path) -> None:
    lines = [{"audio": f"sounds/s0{number}.wav", "text": f"text {number}", "id": number} for number in (2, 0)]
    file = folder.parent / "all.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    workload = load_workload(f"audio:{file}")
    assert [(document.id, document.text) for document in workload.documents] == [
        ("2", "text 2"),
        ("0", "text 0"),
    ]
    assert workload.documents[0].given == given_sound(folder / "s02.wav")


def test_a_changed_sound_is_another_workload_and_a_moved_one_is_not(folder: Path) -> None:
    before = load_workload(f"audio:{folder}").fingerprint
    moved = folder.rename(folder.with_name("moved"))
    assert load_workload(f"audio:{moved}").fingerprint == before
    write_wav(moved / "s01.wav", TONE)
    assert load_workload(f"audio:{moved}").fingerprint != before


def test_other_rates_are_said_once(folder: Path) -> None:
    for number, rate in enumerate((8_000, 22_050, 8_000)):
        write_wav(folder / f"s0{number}.wav", TONE, rate=rate)
    assert load_workload(f"audio:{folder}").notes == (
        "sounds of 8,000, 22,050 samples a second are resampled to the model's own rate",
    )


def without_text(folder: Path) -> None:
    (folder / "s01.txt").unlink()


def named_alike(folder: Path) -> None:
    write_wav(folder / "S01.wav", TONE)
    (folder / "S01.txt").write_text("one")


def without_sounds(folder: Path) -> None:
    for file in folder.glob("*.wav"):
        file.unlink()


def empty_text(folder: Path) -> None:
    (folder / "s01.txt").write_text(" \n")


def torn(folder: Path) -> None:
    file = folder / "s01.wav"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_text, "the sound s01.wav has no text: there is no s01.txt"),
        (named_alike, "S01.wav and s01.wav are named alike, but for case"),
        (without_sounds, "the folder holds no WAV files"),
        (empty_text, "the file is empty"),
        (torn, "the WAV file is torn"),
    ],
)
def test_a_spoilt_folder_is_refused(spoil: object, said: str, folder: Path) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(InputError, match=said):
        load_workload(f"audio:{folder}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"audio": "sounds/s00.wav"}, "the line has no field 'text'"),
        ({"text": "a"}, "the line has no field 'audio'"),
        ({"audio": "sounds/s09.wav", "text": "a"}, "the sound cannot be read: No such file"),
        ({"audio": 3, "text": "a"}, "the field 'audio' holds a number"),
    ],
)
def test_a_spoilt_line_is_refused(line: dict[str, object], said: str, folder: Path) -> None:
    file = folder.parent / "all.jsonl"
    file.write_text(json.dumps(line))
    with pytest.raises(InputError, match=said):
        load_workload(f"audio:{file}")
