"""Sentences of Python's docstrings, spoken: `python experiments/speech/speak.py VOICE.onnx FOLDER`.

FOLDER is then a workload of offramp, `audio:FOLDER`. VOICE.onnx: a voice of Piper (`pip install piper-tts`),
which speaks here and is no part of offramp.
"""

from __future__ import annotations

import argparse
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import offramp

WORDS = re.compile(r"[A-Z][a-z']*( [a-z']+,?){4,24}\.")
"""Of a sentence that is read as it is written: no code, no numbers, no names."""


def sentences() -> Iterator[str]:
    """Each once, in the order of the workload."""
    found: dict[str, None] = {}
    for document in offramp.load_workload("prose:short").documents:
        for part in re.split(r"(?<=\.)\s+", " ".join(document.text.split())):
            if WORDS.fullmatch(part):
                found[part] = None
    return iter(found)


def speak(voice: Path, folder: Path, count: int) -> None:
    """Write so many sentences, a WAV file and its text each."""
    from piper import PiperVoice

    speaker = PiperVoice.load(voice)
    folder.mkdir(parents=True, exist_ok=True)
    for number, sentence in zip(range(count), sentences(), strict=False):
        with wave.open(str(folder / f"{number:04}.wav"), "wb") as file:
            speaker.synthesize_wav(sentence, file)
        (folder / f"{number:04}.txt").write_text(sentence + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speak sentences of Python's docstrings.")
    parser.add_argument("voice", type=Path, help="a voice of Piper, with its .json beside it")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60)
    speak(**vars(parser.parse_args()))
