"""A task: questions with known answers, and a scorer; with the contract that plug-ins are held against."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp.errors import InputError


@dataclass(frozen=True)
class Question:
    """One question.

    prompt: what the model is given. solution: a right answer, as the scorer takes it. reference: whatever
    else the scorer needs. options: the answers to choose from, by their likelihood as a continuation of the
    prompt; empty where the model answers freely. The solution is one of them.
    """

    id: str
    prompt: str
    solution: str
    reference: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


class Task(ABC):
    """Questions with a scorer.

    name, licence, source: for people; the source says which data, of which version. chat: whether the prompt
    goes through the model's chat template. max_new_tokens: room for a free answer. stops: texts that end one,
    so that nothing is decoded which would not be scored.
    """

    name: str
    licence: str
    source: str
    chat: bool = False
    max_new_tokens: int = 64
    stops: tuple[str, ...] = ()

    @abstractmethod
    def questions(self, count: int, seed: int) -> list[Question]:
        """That many different questions; the same ones for the same seed.

        Raises InputError if there are not so many.
        """

    @abstractmethod
    def score(self, question: Question, answer: str) -> float:
        """From 0 (wrong) to 1 (right). answer: text without special tokens, or the chosen option."""


@dataclass(frozen=True)
class TaskSource:
    """What a registry entry holds.

    name: the word before the colon ("reasoning-gym"). open: makes the task from the text after the colon (""
    if there is none) and from False, once whether code that a model wrote may be run. argument: grammar of
    that text, optional for the user; empty if the source takes none. licence, description: for people.
    runs_code: whether scoring runs code that the model wrote; such a task is refused.
    """

    name: str
    open: Callable[[str, bool], Task]
    licence: str
    description: str
    argument: str = ""
    runs_code: bool = False

    @property
    def grammar(self) -> str:
        """How it is written: "multiple-choice", "reasoning-gym[:NAME]"."""
        return f"{self.name}[:{self.argument}]" if self.argument else self.name


def draw(available: int, count: int, seed: int, task: str) -> list[int]:
    """Places of `count` of the available questions, in a random order that depends on the seed.

    Raises InputError for fewer than one, or more than there are.
    """
    if not 1 <= count <= available:
        raise InputError(
            f"{count} questions are asked for", where=f"task {task}", fix=f"ask for 1 to {available:,}"
        )
    return [int(place) for place in np.random.default_rng(seed).permutation(available)[:count]]


COUNT, SEED = 6, 7
NOT_ANSWERS = ("", "\n", "no answer at all, only words", "\x00\ud7ff (( /")


def check_task(task: Task) -> Task:
    """Hold a task against what accuracy relies on; returns the task.

    Name, licence and source are set, and there is room for an answer. Six questions are six, with distinct
    ids and prompts that are not empty, and the same for the same seed. The solution scores 1; an empty text
    and nonsense score less, within [0, 1], and raise nothing. Options are distinct and hold the solution.

    Raises InputError naming the first rule that is broken.
    """
    for named in ("name", "licence", "source"):
        if not str(getattr(task, named, "")).strip():
            raise InputError(f"the task's {named} is not set", where=type(task).__name__)
    if task.max_new_tokens < 1:
        raise _broken(task, "max_new_tokens leaves no room for an answer")
    questions, again = task.questions(COUNT, SEED), task.questions(COUNT, SEED)
    if len(questions) != COUNT:
        raise _broken(task, f"{len(questions)} questions came where {COUNT} were asked for")
    if [_text(question) for question in questions] != [_text(question) for question in again]:
        raise _broken(task, "the same seed gives other questions")
    if len({question.id for question in questions}) != COUNT:
        raise _broken(task, "two questions have the same id")
    for question in questions:
        _check_question(task, question)
    return task


def _check_question(task: Task, question: Question) -> None:
    if not question.prompt.strip():
        raise _broken(task, "a prompt is empty", question)
    options = question.options
    if options and (len(set(options)) != len(options) or question.solution not in options):
        raise _broken(task, "the options are not distinct, or the solution is not among them", question)
    if _score(task, question, question.solution) != 1.0:
        raise _broken(task, "the solution does not score 1", question)
    wrong = [option for option in options if option != question.solution] or NOT_ANSWERS
    for answer in wrong:
        if _score(task, question, answer) >= 1.0:
            raise _broken(task, f"{answer!r} scores 1", question)


def _score(task: Task, question: Question, answer: str) -> float:
    score = task.score(question, answer)
    if not (isinstance(score, float) and math.isfinite(score) and 0.0 <= score <= 1.0):
        raise _broken(task, f"a score is {score!r}, not a number from 0 to 1", question)
    return score


def _text(question: Question) -> tuple[str, str, str, tuple[str, ...]]:
    return question.id, question.prompt, question.solution, question.options


def _broken(task: Task, what: str, question: Question | None = None) -> InputError:
    where = f"task {task.name}" + (f", question {question.id}" if question else "")
    return InputError(what, where=where)
