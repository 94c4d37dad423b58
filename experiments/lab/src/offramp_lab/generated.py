"""Text whose answers take a known number of steps, each needing the one before: look-ups, and arithmetic.

*Look-ups*: a table of arrows over LETTERS that form one cycle, and questions "k x?": where do k arrows from x
lead? The cycle is longer than 2 k, and starts are drawn so that no shorter way leads there, not backwards and
not by way of answers that stand before.

*Arithmetic*: k operations nested in each other, modulo 10. Each is a bijection of the ten digits (add or take
away a digit, multiply by 3, 7 or 9), so that no step can be left out; no inner one stands answered before.

`steps` counts what one does after the other on paper. A network can do some at once: arrows can be doubled
and operations put together, so that k is known and the least number of layers is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offramp import Document

Form = Literal["lookup", "arithmetic"]
FORMS: tuple[Form, ...] = ("lookup", "arithmetic")

MOST_STEPS = 6
LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""More than twice the most steps, so that backwards is no shorter."""

QUESTIONS: dict[Form, int] = {"lookup": 12, "arithmetic": 18}
"""Of a document, every number of steps equally often. With more look-ups few starts would be left to which
answers before are no short cut."""

FACTORS = (3, 7, 9)
"""Digits that multiplication modulo 10 can be undone for; 1 would be no step."""


Asked = tuple[str, str, int]
"""A question, its answer and the steps that it takes."""


@dataclass(frozen=True)
class Answer:
    """Where an answer stands in its document, and the steps that it takes.

    start, end: characters of the text, the space before the answer included, as tokens begin with it.
    """

    start: int
    end: int
    steps: int


@dataclass(frozen=True)
class Problem:
    """A document and the answers in it, in their order."""

    document: Document
    answers: tuple[Answer, ...]


def problems(part: str, seed: int) -> Iterator[Problem]:
    """Documents without end, look-ups and arithmetic in turns; the same for the same part and seed."""
    number = 0
    while True:
        form = FORMS[number % len(FORMS)]
        generator = np.random.default_rng([seed, *part.encode(), number])
        write = _lookup if form == "lookup" else _arithmetic
        yield write(f"generated:{part}-{form}-{number}", generator)
        number += 1


def _lookup(identity: str, generator: np.random.Generator) -> Problem:
    order = generator.permutation(len(LETTERS))
    following = {LETTERS[a]: LETTERS[b] for a, b in zip(order, np.roll(order, -1), strict=True)}
    table = [LETTERS[place] for place in generator.permutation(len(LETTERS))]
    lines = [" ".join(f"{letter}>{following[letter]}" for letter in table)]
    asked: list[Asked] = []
    while not asked:
        asked = _asked_look_ups(following, generator)
    return _document(identity, lines, asked)


def _asked_look_ups(following: Mapping[str, str], generator: np.random.Generator) -> list[Asked]:
    """Questions of a document; none if those before leave one without a start."""
    near = {letter: {goal} for letter, goal in following.items()}
    for letter, goal in following.items():
        near[goal].add(letter)
    asked = []
    for steps in _mixed_steps("lookup", generator):
        for place in generator.permutation(len(LETTERS)):
            start = reached = LETTERS[place]
            for _ in range(steps):
                reached = following[reached]
            if _fewest_steps(near, start, reached) == steps:
                break
        else:
            return []
        asked.append((f"{steps} {start}?", reached, steps))
        near[start].add(reached)
        near[reached].add(start)
    return asked


def _fewest_steps(near: Mapping[str, set[str]], start: str, goal: str) -> int:
    reached, steps = {start}, 0
    while goal not in reached:
        reached = reached.union(*(near[letter] for letter in reached))
        steps += 1
    return steps


def _arithmetic(identity: str, generator: np.random.Generator) -> Problem:
    asked: list[Asked] = []
    answered: set[str] = set()
    for steps in _mixed_steps("arithmetic", generator):
        nested, value = _expressions(steps, generator)
        while not answered.isdisjoint(nested):
            nested, value = _expressions(steps, generator)
        answered.add(nested[-1])
        asked.append((f"{nested[-1]} =", str(value), steps))
    return _document(identity, ["modulo 10"], asked)


def _expressions(steps: int, generator: np.random.Generator) -> tuple[list[str], int]:
    """Of 1, 2, ... operations, each with the one before inside; the value of the last."""
    value = int(generator.integers(10))
    inner, written = str(value), []
    for _ in range(steps):
        sign = "+-*"[generator.integers(3)]
        digit = FACTORS[generator.integers(3)] if sign == "*" else int(generator.integers(1, 10))
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[sign] % 10
        written.append(f"{inner}{sign}{digit}")
        inner = f"({written[-1]})"
    return written, value


def _mixed_steps(form: Form, generator: np.random.Generator) -> list[int]:
    """1 to MOST_STEPS, each equally often, in a random order."""
    steps = 1 + np.arange(QUESTIONS[form]) % MOST_STEPS
    return [int(one) for one in generator.permutation(steps)]


def _document(identity: str, lines: Sequence[str], asked: Sequence[Asked]) -> Problem:
    """A text of these lines, then a line for each question with its answer."""
    text = "\n".join(lines) + "\n"
    answers = []
    for question, answer, steps in asked:
        text += question
        answers.append(Answer(len(text), len(text) + 1 + len(answer), steps))
        text += f" {answer}\n"
    return Problem(Document(identity, text), tuple(answers))
