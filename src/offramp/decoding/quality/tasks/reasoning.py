"""`reasoning-gym`: problems made by the package of that name, with its own scorers."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from offramp.decoding.quality.tasks.task import Question, Task, TaskSource
from offramp.errors import InputError

LICENCE = "Apache-2.0"
EASY: Mapping[str, Mapping[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 5},
    "gcd": {"min_value": 2, "max_value": 20},
    "letter_counting": {"min_words": 2, "max_words": 4},
}
"""Families of the mix, and settings with which a model of 135 million parameters answers some of them."""

MOST_QUESTIONS = 10_000
"""They are made before the first one is answered, some thousand in a second."""

EVALUATES = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
"""What scorers of the package raise at an answer that has not the form they expect."""


class ReasoningGym(Task):
    """Problems of one data set of reasoning-gym, or of a mix of easy ones in turn.

    An answer is right if the package's own scorer gives it full marks. It gives parts of a mark for a right
    answer within other text, so what is scored is the last number of the text where a number is asked for,
    else the whole text; parts of a mark count as wrong.

    Raises InputError without the package, for an unknown data set, and for one whose scorer would evaluate
    the answer as Python within this process.
    """

    licence = LICENCE
    chat = True
    max_new_tokens = 48

    def __init__(self, dataset: str = "") -> None:
        self._package = _package()
        self.name = f"reasoning-gym:{dataset}" if dataset else "reasoning-gym"
        self.source = f"reasoning-gym {self._package.__version__}"
        self._families: Mapping[str, Mapping[str, Any]] = {dataset: {}} if dataset else EASY
        for family in self._families:
            _require_safe(family)

    def questions(self, count: int, seed: int) -> list[Question]:
        """Different problems, one of each family in turn."""
        if not 1 <= count <= MOST_QUESTIONS:
            raise InputError(
                f"{count:,} questions are asked for",
                where=f"task {self.name}",
                fix=f"ask for 1 to {MOST_QUESTIONS:,}",
            )
        families = {
            name: self._package.create_dataset(name, size=50 * count, seed=seed, **settings)
            for name, settings in self._families.items()
        }
        found: dict[str, Question] = {}
        for place in range(50 * count):  # easy settings repeat problems now and then
            for name, problems in families.items():
                item = problems[place]
                if item["question"] not in found:
                    reference = {"dataset": problems, "item": item}
                    found[item["question"]] = Question(
                        f"{name}-{place + 1}", item["question"], str(item["answer"]), reference
                    )
                if len(found) == count:
                    return list(found.values())
        raise InputError(
            f"there are only {len(found)} different questions with seed {seed}",
            where=f"task {self.name}",
            fix="ask for fewer",
        )

    def score(self, question: Question, answer: str) -> float:
        """1 if the package gives full marks, else 0; an answer that its scorer cannot read is wrong."""
        given = final_answer(answer, question.solution)
        try:
            marks = question.reference["dataset"].score_answer(given, question.reference["item"])
        except UNREADABLE:
            return 0.0
        return float(marks >= 1.0)


def final_answer(text: str, solution: str) -> str:
    """What a text answers: its last number if the solution is one, else all of it."""
    if NUMBER.fullmatch(solution.strip()):
        numbers = NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text))
        return numbers[-1] if numbers else ""
    return text.strip()


def _package() -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise InputError(
            f"the task 'reasoning-gym' needs the package {error.name}", fix="pip install 'offramp[math]'"
        ) from error
    return reasoning_gym


def _require_safe(name: str) -> None:
    """Refuse data sets that are not there, and those that would run what a model has written."""
    from reasoning_gym.factory import DATASETS

    where = f"task reasoning-gym:{name}"
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"choose one of: {', '.join(sorted(DATASETS))}"
        )
        raise InputError(f"reasoning-gym has no data set {name!r}", where=where, fix=hint)
    scorer = DATASETS[name][0].score_answer
    if name == "composite" or EVALUATES.search(inspect.getsource(scorer)):
        raise InputError(
            f"the scorer of {name!r} may evaluate a model's answer as Python in this process",
            where=where,
            fix="choose a data set whose scorer compares texts or numbers, such as gcd or leg_counting",
        )


REASONING_GYM = TaskSource(
    name="reasoning-gym",
    open=lambda argument, allow_code: ReasoningGym(argument),
    licence=LICENCE,
    description="problems of the package reasoning-gym, answered freely; a mix of easy ones without NAME",
    argument="NAME",
)
