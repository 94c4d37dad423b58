"""Word error rates of the full model and of a policy on spoken sentences.

python experiments/speech/words.py MODEL SOUNDS --policy P [--heads HEADS] [--count 60]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import offramp

NOT_IN_WORDS = re.compile(r"[^a-z0-9' ]")


def words_of(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return NOT_IN_WORDS.sub(" ", text.lower()).split()


def edits(heard: list[str], said: list[str]) -> int:
    """Words to insert, leave out or replace (Levenshtein 1966)."""
    row = list(range(len(said) + 1))
    for place, word in enumerate(heard, 1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(said, 1):
            changed = diagonal + (word != other)
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, changed)
    return row[-1]


def main() -> None:
    """Transcribe, and print the error rates of both and how many transcripts are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("sounds", type=Path, help="a folder of WAV files beside what is said")
    parser.add_argument("--policy", required=True)
    parser.add_argument("--heads")
    parser.add_argument("--kv", default="propagate")
    parser.add_argument("--count", type=int, default=60)
    asked = parser.parse_args()
    model = offramp.load_model(asked.model)
    sounds = sorted(asked.sounds.glob("*.wav"))[: asked.count]
    said = [words_of(sound.with_suffix(".txt").read_text(encoding="utf-8")) for sound in sounds]
    exiting = {"policy": asked.policy, "kv": asked.kv, "heads": asked.heads}

    def transcribed(**how: Any) -> list[str]:
        heard: Any = [offramp.generate(model, audio=sound, max_new_tokens=60, **how) for sound in sounds]
        return [generation.text for generation in heard]

    transcripts = {"full model": transcribed(), "policy": transcribed(**exiting)}
    for name, texts in transcripts.items():
        wrong = sum(edits(words_of(text), spoken) for text, spoken in zip(texts, said, strict=True))
        print(f"{name}: {100 * wrong / sum(map(len, said)):.1f} % of the words wrong")
    same = sum(full == own for full, own in zip(*transcripts.values(), strict=True))
    print(f"{same} of {len(sounds)} transcripts are the same")


if __name__ == "__main__":
    main()
