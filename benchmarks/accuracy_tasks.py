"""Two tasks of lm-evaluation-harness in files of its own form, whose questions come out of packages."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import InputError


def zone_file(name: str) -> str:
    """A file of the time zone database (public domain): the system's, else that of the package tzdata.

    Raises InputError without either.
    """
    for path in (Path(folder) / name for folder in zoneinfo.TZPATH):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    try:
        return (importlib.resources.files("tzdata") / "zoneinfo" / name).read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise InputError("there is no time zone database", where=name, fix="pip install tzdata") from error


def cities(count: int, seed: int) -> list[dict[str, Any]]:
    """One city of each country that does not give its country's name away, with three other countries."""
    rows = [line.split("\t") for line in zone_file("iso3166.tab").splitlines() if line[:1] != "#"]
    names = {code: name for code, name in rows if re.fullmatch(r"[A-Za-z ]+", name)}
    found: dict[str, str] = {}
    for line in zone_file("zone.tab").splitlines():
        if line[:1] != "#":
            code, _, zone = line.split("\t")[:3]
            city = zone.rpartition("/")[2].replace("_", " ")
            if code in names and not set(city.split()) & set(names[code].split()):
                found.setdefault(code, city)
    drawn, generator = [], np.random.default_rng(seed)
    for code in generator.permutation(sorted(found))[:count]:
        others = generator.choice([other for other in sorted(found) if other != code], 3, replace=False)
        choices = [names[one] for one in generator.permutation([code, *others])]
        question = f"{found[code]} is a city in"
        drawn.append({"text": question, "choices": choices, "answer": choices.index(names[code])})
    return drawn


LEAST_WORDS = 40


def last_words(count: int, seed: int) -> list[dict[str, Any]]:
    """Passages of whole sentences, and the last word of each (LAMBADA's form, arXiv 1606.06031).

    Of "In the Year 2889" (J. and M. Verne, public domain), which reasoning-gym brings. Raises InputError
    without that.
    """
    package = importlib.util.find_spec("reasoning_gym")  # which takes seconds to import
    if package is None or package.origin is None:
        raise InputError("the story comes with reasoning-gym", fix="pip install 'offramp[math]'")
    story = Path(package.origin).parent / "data" / "in_the_year_2889.txt"
    body = story.read_text(encoding="utf-8").split("***")[2].partition("IN THE YEAR 2889.")[2]
    passages: list[dict[str, Any]] = []
    words: list[str] = []
    for sentence in re.split(r"(?<=[a-z][.!?])\s+(?=[A-Z])", body):
        words += sentence.split()
        last = re.fullmatch(r"[a-z]{3,}[.!?]", words[-1]) if words else None
        if last and len(words) >= LEAST_WORDS:
            passages.append({"text": " ".join(words[:-1]), "answer": words[-1][:-1]})
            words = []
    return [passages[place] for place in np.random.default_rng(seed).permutation(len(passages))[:count]]


@dataclass(frozen=True)
class HarnessTask:
    """Documents with the fields text, answer and perhaps choices, and the rest of lm-eval's YAML."""

    documents: Callable[[int, int], list[dict[str, Any]]]
    yaml: str


OF_HARNESS = {
    "cities": HarnessTask(
        cities, "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
    ),
    # lm-eval puts nothing between a text and what it scores behind it: without the space, "olden" and "times"
    # would be one word.
    "last-word": HarnessTask(last_words, 'output_type: loglikelihood\ndoc_to_target: " {{answer}}"\n'),
}

YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
doc_to_text: "{{{{text}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write_task(folder: Path, name: str, documents: Sequence[Mapping[str, Any]]) -> None:
    """The task's documents and its YAML, as lm-eval reads them from a folder."""
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    yaml = YAML.format(name=name, folder=folder) + OF_HARNESS[name].yaml
    (folder / f"{name}.yaml").write_text(yaml, encoding="utf-8")
