"""`multiple-choice`: which of four sentences continues a docstring of the Python standard library?"""

from __future__ import annotations

import functools
import platform
import re
from dataclasses import dataclass

import numpy as np

from offramp.decoding.quality.tasks.task import Question, Task, TaskSource, draw
from offramp.workloads.registry import load_workload

LICENCE = "PSF-2.0"
OPTIONS = 4
OPTION_WORDS = 8
"""Words of every option: equal, so that no option wins by being short."""

FEWEST_WORDS, MOST_WORDS = 12, 60
"""Words of the text that an option continues."""

SENTENCE_END = re.compile(r"(?<=[a-z)][.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Cloze:
    """A text, and the words that follow it. file: where both come from."""

    id: str
    file: str
    text: str
    continuation: str


class MultipleChoice(Task):
    """Four options each, one right: chance is 25 %.

    The right one is the first eight words of the docstring's next sentence; the others begin sentences of
    other docstrings, of the same file where it has any. One question per docstring, in the running Python's
    own version. The model picks the option that it finds most likely, per token, as a continuation.
    """

    name = "multiple-choice"
    licence = LICENCE

    def __init__(self) -> None:
        self.source = f"docstrings of the standard library of Python {platform.python_version()}"

    def questions(self, count: int, seed: int) -> list[Question]:
        """Different docstrings in a random order."""
        known = clozes()
        places = draw(len(known), count, seed, self.name)
        return [_question(known, place, np.random.default_rng([seed, place])) for place in places]

    def score(self, question: Question, answer: str) -> float:
        """1 for the right option, else 0."""
        return float(answer == question.solution)


@functools.cache
def clozes() -> tuple[Cloze, ...]:
    """One per docstring that has prose enough for it."""
    found = []
    for document in load_workload("prose:short").documents:
        cloze = cut(document.id, " ".join(document.text.split()))
        if cloze is not None:
            found.append(cloze)
    return tuple(found)


def cut(identity: str, text: str) -> Cloze | None:
    """Cut a text at the first end of a sentence that has enough words on both sides, None without one."""
    sentences = SENTENCE_END.split(text)
    before: list[str] = []
    for place, sentence in enumerate(sentences[:-1]):
        before += sentence.split()
        after = sentences[place + 1].split()
        if len(before) > MOST_WORDS:
            return None
        if len(before) >= FEWEST_WORDS and len(after) >= OPTION_WORDS:
            file = identity.partition(":")[0]
            return Cloze(identity, file, " ".join(before), " " + " ".join(after[:OPTION_WORDS]))
    return None


def _question(known: tuple[Cloze, ...], place: int, generator: np.random.Generator) -> Question:
    """A cloze with three wrong continuations, of the same file as far as there are any."""
    cloze = known[place]
    shuffled = [known[other] for other in generator.permutation(len(known)) if other != place]
    shuffled.sort(key=lambda other: other.file != cloze.file)
    wrong = dict.fromkeys(
        other.continuation for other in shuffled if other.continuation != cloze.continuation
    )
    options = [cloze.continuation, *list(wrong)[: OPTIONS - 1]]
    order = generator.permutation(OPTIONS)
    return Question(
        cloze.id, cloze.text, cloze.continuation, options=tuple(options[option] for option in order)
    )


MULTIPLE_CHOICE = TaskSource(
    name="multiple-choice",
    open=lambda argument, allow_code: MultipleChoice(),
    licence=LICENCE,
    description="which of four sentences continues a docstring, by likelihood; chance is 25 %",
)
