"""How many answers are right: `python experiments/images/answers.py MODEL FILE.jsonl`.

Exact matches of transformers' own greedy `generate`, with each question's picture and with a white one,
beside what can be said without a picture: the most frequent answer, and that to the same question in the
training part.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import transformers as typed
from PIL import Image

from questions import read_questions

transformers: Any = typed  # whose classes take whatever a config has
AT_ONCE, NEW_TOKENS = 16, 8


def answer_all(folder: Path, prompts: list[str], images: list[Any]) -> list[str]:
    """The model's answers, without their end."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    answers: list[str] = []
    for first in range(0, len(prompts), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        inputs = processor(images=images[part], text=prompts[part], padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    return answers


def count_right(folder: Path, path: Path, count: int | None = None) -> dict[str, tuple[int, int]]:
    """Right answers and questions, by how they were answered. count: lines of the file, None for all."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    prompts, wanted = [line["prompt"] for line in lines], [line["answer"] for line in lines]
    images = [Image.open(path.parent / line["image"]).convert("RGB") for line in lines]
    white = [Image.new("RGB", image.size, "white") for image in images]
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for question in read_questions("train"):
        usual[question.prompt][question.answer] += 1
    most = Counter(wanted).most_common(1)[0][0]
    said = {
        "with its picture": answer_all(folder, prompts, images),
        "with a white picture": answer_all(folder, prompts, white),
        "as the question is mostly answered": [usual[prompt].most_common(1)[0][0] for prompt in prompts],
        f"always {most}": [most] * len(wanted),
    }
    counts = {}
    for how, answers in said.items():
        right = [answer == true for answer, true in zip(answers, wanted, strict=True)]
        counts[how] = (sum(right), len(right))
        named = [hit for hit, true in zip(right, wanted, strict=True) if true not in ("yes", "no")]
        counts[f"{how}, colours and shapes"] = (sum(named), len(named))
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count the right answers of an image-text model.")
    parser.add_argument("folder", type=Path, metavar="MODEL")
    parser.add_argument("path", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--count", type=int, help="questions, the first of the file; by default all")
    for how, (right, questions) in count_right(**vars(parser.parse_args())).items():
        print(f"{how}: {right} of {questions}, {right / questions:.1%}")
