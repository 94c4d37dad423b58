"""`audio:DIR` and `audio:FILE.jsonl`: sounds that a speech model reads, and what it is to write of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offramp.errors import WorkloadError
from offramp.kit.sound import given_sound, read_wav
from offramp.workloads.text_files import (
    OWN_LICENCE,
    documents_of_lines,
    numbered_lines,
    read_text,
    require_exists,
    text_in,
)
from offramp.workloads.workload import Document, Workload, WorkloadSource

SPEECH_RATE = 16_000
"""Samples a second that speech models read."""


def load_audio(argument: str) -> Workload:
    """One document for each sound: the text beside it is what is to be written.

    Of a folder, its *.wav files with the *.txt of the same stem, by name; of a file, its lines' keys "audio",
    a path from the file's folder on, and "text". Raises WorkloadError for a sound without its text, names
    alike but for case, and lines as in `load_json_lines`; InputError as `read_wav`.
    """
    argument = os.path.expanduser(argument)
    path, rates = Path(argument), set[int]()
    require_exists(path)

    def spoken(name: str, file: Path, text: str) -> Document:
        sound = read_wav(file)
        rates.add(sound.rate)
        return Document(name, text, given=given_sound(file, sound))

    def of_line(name: str, number: int, value: dict[str, Any]) -> Document:
        text = text_in(path, number, value, "text")
        return spoken(name, path.parent / text_in(path, number, value, "audio"), text)

    if path.is_dir():
        documents = tuple(spoken(name, file, read_text(text)) for name, file, text in _files(path))
    else:
        documents = documents_of_lines(path, numbered_lines(argument)[2], of_line)
    others = ", ".join(f"{rate:,}" for rate in sorted(rates - {SPEECH_RATE}))
    note = f"sounds of {others} samples a second are resampled to the model's own rate"
    return Workload(
        name=f"audio:{argument}",
        mode="text",
        documents=documents,
        licence=OWN_LICENCE,
        source=str(path),
        notes=(note,) if others else (),
    )


def _files(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """The name, the sound and the text of each pair of files."""
    sounds = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".wav")
    if not sounds:
        fix = "put *.wav files directly into it, each with a *.txt of the same name"
        raise WorkloadError("the folder holds no WAV files", where=str(folder), fix=fix)
    known: dict[str, Path] = {}
    for sound in sounds:
        other = known.setdefault(sound.stem.casefold(), sound)
        if other is not sound:
            what = f"{other.name} and {sound.name} are named alike, but for case"
            raise WorkloadError(what, where=str(folder), fix="rename one of them, with its text")
        text = sound.with_suffix(".txt")
        if not text.is_file():
            what = f"the sound {sound.name} has no text: there is no {text.name}"
            raise WorkloadError(
                what, where=str(folder), fix="write what is said into it, or take the sound out"
            )
        yield sound.stem, sound, text


AUDIO = WorkloadSource(
    name="audio",
    load=load_audio,
    mode="text",
    documents="one per sound",
    licence=OWN_LICENCE,
    description="for a speech model: a folder of *.wav files, each beside what is said in a *.txt of the "
    'same name, or a JSON-lines file with the keys "audio" and "text"',
    argument="PATH",
)
