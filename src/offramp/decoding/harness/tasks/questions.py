"""The questions of the tasks beside this file, which lm-eval's YAML names as `!function questions....`.

Each gives a split "test" in a random order that never changes, so that `--limit N` takes a fair sample.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import InputError
from offramp.files import parse_json
from offramp.workloads.registry import load_workload

Split = Mapping[str, Sequence[Mapping[str, Any]]]

SEED = 0
OPTIONS = 4
NEEDS_PACKAGE = "pip install 'offramp[math]'"


def _split(questions: Iterable[Mapping[str, Any]]) -> Split:
    import datasets

    return {"test": datasets.Dataset.from_list(list(questions))}


# --- multiple choice

OPTION_WORDS = 8
"""Words of every option: equal, so that no option wins by being short."""

FEWEST_WORDS, MOST_WORDS = 12, 60
"""Words of the text that an option continues."""

SENTENCE_END = re.compile(r"(?<=[a-z)][.!?])\s+(?=[A-Z])")


def multiple_choice(**metadata: Any) -> Split:
    """Which of four eight-word continuations follows a docstring of the standard library? Chance is 25 %.

    The right one begins the docstring's next sentence; the others begin sentences of other docstrings, of the
    same file where it has any. One question per docstring of the running Python.
    """
    cut: dict[str, tuple[str, str, str]] = {}
    for document in load_workload("prose:short").documents:
        parts = cut_at_a_sentence(document.text)
        if parts is not None:
            cut.setdefault(parts[0], (document.id.partition(":")[0], *parts))
    known = list(cut.values())
    questions = []
    for place in np.random.default_rng(SEED).permutation(len(known)):
        generator = np.random.default_rng([SEED, int(place)])
        file, text, right = known[place]
        shuffled = [known[other] for other in generator.permutation(len(known)) if other != place]
        shuffled.sort(key=lambda cloze: cloze[0] != file)
        wrong = dict.fromkeys(other for _, _, other in shuffled if other != right)
        options = [right, *list(wrong)[: OPTIONS - 1]]
        choices = [options[option] for option in generator.permutation(OPTIONS)]
        questions.append({"text": text, "choices": choices, "answer": choices.index(right)})
    return _split(questions)


def cut_at_a_sentence(text: str) -> tuple[str, str] | None:
    """A text up to its first end of a sentence that has enough words on both sides, and what follows it."""
    sentences = SENTENCE_END.split(" ".join(text.split()))
    before: list[str] = []
    for place, sentence in enumerate(sentences[:-1]):
        before += sentence.split()
        after = sentences[place + 1].split()
        if len(before) > MOST_WORDS:
            return None
        if len(before) >= FEWEST_WORDS and len(after) >= OPTION_WORDS:
            return " ".join(before), " ".join(after[:OPTION_WORDS])
    return None


# --- problems of reasoning-gym

EASY: Mapping[str, Mapping[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 5},
    "gcd": {"min_value": 2, "max_value": 20},
    "letter_counting": {"min_words": 2, "max_words": 4},
}
"""Families of the mix, and settings with which a model of 135 million parameters answers some of them.

The scorer of each compares texts: none evaluates an answer.
"""

PROBLEMS_OF_A_FAMILY = 200
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
"""What scorers of the package raise at an answer that has not the form they expect."""


def reasoning(**metadata: Any) -> Split:
    """Problems of reasoning-gym, one of each family in turn, none twice.

    Raises InputError without the package.
    """
    package = _reasoning_gym()
    families = {
        name: package.create_dataset(name, size=PROBLEMS_OF_A_FAMILY, seed=SEED, **settings)
        for name, settings in EASY.items()
    }
    questions: dict[str, dict[str, str]] = {}
    for place in range(PROBLEMS_OF_A_FAMILY):
        for name, problems in families.items():
            item = problems[place]
            questions.setdefault(
                item["question"],
                {
                    "text": item["question"],
                    "answer": str(item["answer"]),
                    "family": name,
                    "item": json.dumps(item, default=str),
                },
            )
    return _split(questions.values())


def marks(document: Mapping[str, str], answers: Sequence[str]) -> dict[str, float]:
    """Accuracy of one answer: 1 if the package's own scorer gives full marks, else 0.

    The package gives parts of a mark for a right answer within other text, so what is scored is the last
    number of the text where a number is asked for, else the whole text; parts of a mark count as wrong.
    """
    score = _reasoning_gym().get_score_answer_fn(document["family"])
    try:
        mark = score(final_answer(answers[0], document["answer"]), parse_json(document["item"]))
    except UNREADABLE:
        mark = 0.0
    return {"acc": float(mark >= 1.0)}


def final_answer(text: str, solution: str) -> str:
    """What a text answers: its last number if the solution is one, else all of it."""
    if NUMBER.fullmatch(solution.strip()):
        numbers = NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text))
        return numbers[-1] if numbers else ""
    return text.strip()


def _reasoning_gym() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise InputError(f"the task needs the package {error.name}", fix=NEEDS_PACKAGE) from error
    return reasoning_gym


# --- cities


def cities(**metadata: Any) -> Split:
    """In which of four countries lies a city? One city of each country that does not give its name away."""
    rows = [line.split("\t") for line in zone_file("iso3166.tab").splitlines() if line[:1] != "#"]
    names = {code: name for code, name in rows if re.fullmatch(r"[A-Za-z ]+", name)}
    city_of: dict[str, str] = {}
    for line in zone_file("zone.tab").splitlines():
        if line[:1] != "#":
            code, _, zone = line.split("\t")[:3]
            city = zone.rpartition("/")[2].replace("_", " ")
            if code in names and not set(city.split()) & set(names[code].split()):
                city_of.setdefault(code, city)
    questions, generator = [], np.random.default_rng(SEED)
    for code in generator.permutation(sorted(city_of)):
        others = generator.choice([other for other in sorted(city_of) if other != code], 3, replace=False)
        choices = [names[option] for option in generator.permutation([code, *others])]
        text = f"{city_of[code]} is a city in"
        questions.append({"text": text, "choices": choices, "answer": choices.index(names[code])})
    return _split(questions)


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


# --- the last word of a passage

LEAST_WORDS = 40


def last_words(**metadata: Any) -> Split:
    """Passages of whole sentences, and the last word of each (LAMBADA's form, arXiv 1606.06031).

    Of "In the Year 2889" (J. and M. Verne, public domain), which reasoning-gym brings. Raises InputError
    without that.
    """
    package = importlib.util.find_spec("reasoning_gym")  # which takes seconds to import
    if package is None or package.origin is None:
        raise InputError("the story comes with the package reasoning_gym", fix=NEEDS_PACKAGE)
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
    return _split(passages[place] for place in np.random.default_rng(SEED).permutation(len(passages)))
