"""A task: questions with known answers, and a scorer."""

from __future__ import annotations

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
    goes through the model's chat template. max_new_tokens: room for a free answer.
    """

    name: str
    licence: str
    source: str
    chat: bool = False
    max_new_tokens: int = 64

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
    if there is none) and from whether code that a model wrote may be run. argument: grammar of that text,
    optional for the user; empty if the source takes none. licence, description: for people. runs_code:
    whether scoring runs code that the model wrote.
    """

    name: str
    open: Callable[[str, bool], Task]
    licence: str
    description: str
    argument: str = ""
    runs_code: bool = False

    @property
    def grammar(self) -> str:
        """How it is written: "human-eval", "reasoning-gym[:NAME]"."""
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
