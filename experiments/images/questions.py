"""Questions about pictures, as a workload: `python experiments/images/questions.py FILE.jsonl --count 400`.

FILE.jsonl is then a workload of offramp, `images:FILE.jsonl`, with its pictures in a folder beside it. They
are the test part of easy-VQA (`pip install easy-vqa`, MIT): a coloured shape on each, answers of one word.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from offramp import InputError
from offramp.files import write_atomically, write_text_atomically

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    text: str
    answer: str
    picture: Path

    @property
    def prompt(self) -> str:
        """The question first: what stands before a picture can be read once for all pictures."""
        return f"Question: {self.text}\nPicture:<image>\n"

    @property
    def shown(self) -> set[str]:
        """Words that hold for the picture, as question and answer imply."""
        words = set(re.findall("[a-z]+", self.text))
        if self.answer not in ("yes", "no"):
            return words | {self.answer}
        return words if (self.answer == "yes") is words.isdisjoint(("no", "not")) else set()


def read_questions(part: str) -> list[Question]:
    """Those of easy-VQA. part: "train" or "test". Raises InputError where the package is missing."""
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise InputError(
            "there are no pictures to ask about: the package easy-vqa is missing",
            where="easy_vqa",
            fix="pip install easy-vqa",
        )
    folder = Path(package.origin).parent / "data" / part
    asked = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return [Question(text, answer, folder / "images" / f"{number}.png") for text, answer, number in asked]


def kinds_of(questions: Sequence[Question]) -> dict[Path, tuple[str, str]]:
    """Colour and shape of each picture of which the questions tell both."""
    shown: dict[Path, set[str]] = {}
    for question in questions:
        shown.setdefault(question.picture, set()).update(question.shown)
    told = {picture: [words & {*names} for names in (COLOURS, SHAPES)] for picture, words in shown.items()}
    return {picture: (min(hue), min(form)) for picture, (hue, form) in told.items() if hue and form}


def write_workload(path: Path, questions: Sequence[Question], count: int, seed: int = 0) -> None:
    """Write a question, drawn at random, about each of so many pictures, and before them the pictures."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(questions))
    drawn = {questions[place].picture: questions[place] for place in order}
    lines = []
    for number, question in enumerate([*drawn.values()][:count]):
        copied = folder / f"{number:04}.png"
        write_atomically(copied, partial(shutil.copyfile, question.picture))
        line = {"image": f"{folder.name}/{copied.name}", "prompt": question.prompt, "answer": question.answer}
        lines.append(json.dumps(line) + "\n")
    write_text_atomically(path, "".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write questions about pictures as a workload.")
    parser.add_argument("path", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--count", type=int, default=400, help="one about each of so many pictures")
    chosen = parser.parse_args()
    write_workload(chosen.path, read_questions("test"), chosen.count)
