"""The contract of a task, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import math

from offramp.decoding.quality.tasks.task import Question, Task
from offramp.errors import InputError

COUNT, SEED = 6, 7
NOT_ANSWERS = ("", "\n", "no answer at all, only words", "\x00\ud7ff (( /")


def check_task(task: Task) -> Task:
    """Hold a task against what accuracy relies on; returns the task.

    Name, licence and source are set, and there is room for an answer. Six questions are six, with distinct
    ids and prompts that are not empty, and the same for the same seed. The solution scores 1; an empty text
    and nonsense score less, within [0, 1], and raise nothing. Options are distinct and hold the solution.

    Raises InputError naming the first rule that is broken.
    """
    for field in ("name", "licence", "source"):
        if not str(getattr(task, field, "")).strip():
            raise InputError(f"the task's {field} is not set", where=type(task).__name__)
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
