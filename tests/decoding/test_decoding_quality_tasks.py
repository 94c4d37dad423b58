"""Tasks: their contract, their scorers, their registry."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from offramp.decoding.quality.tasks import registry
from offramp.decoding.quality.tasks.multiple_choice import OPTION_WORDS, MultipleChoice, clozes, cut
from offramp.decoding.quality.tasks.reasoning import EASY, ReasoningGym, final_answer
from offramp.decoding.quality.tasks.registry import describe_tasks, load_task
from offramp.decoding.quality.tasks.task import Question, Task, TaskSource, check_task, draw
from offramp.errors import InputError


@pytest.mark.parametrize("spec", ["multiple-choice", "reasoning-gym", "reasoning-gym:gcd"])
def test_built_in_tasks_keep_the_contract(spec: str) -> None:
    assert check_task(load_task(spec)).name == spec


@pytest.mark.parametrize("spec", ["human-eval", "mine"])
@pytest.mark.parametrize("allowed", [False, True])
def test_code_that_a_model_wrote_is_not_run(
    spec: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("mine", f"{__name__}:RUNS_CODE", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: [point])
    with pytest.raises(InputError, match=r"(?s)code that the model wrote.*lm-evaluation-harness"):
        load_task(spec, allow_code=allowed)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("multiple_choice", "did you mean multiple-choice"),
        ("chess", "choose one of: reasoning-gym"),
        ("multiple-choice:four", "takes no argument"),
        ("reasoning-gym:gdc", "did you mean"),
        ("reasoning-gym:countdown", "evaluate a model's answer as Python"),
        ("reasoning-gym:composite", "evaluate a model's answer as Python"),
    ],
)
def test_unusable_names_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task(spec)


@pytest.mark.parametrize("spec", ["multiple-choice", "reasoning-gym"])
def test_a_count_that_is_not_there_is_refused(spec: str) -> None:
    for count in (0, 10**15):
        with pytest.raises(InputError, match=f"{count:,} questions|{count} questions"):
            load_task(spec).questions(count, 0)
    with pytest.raises(InputError, match="questions are asked for"):
        MultipleChoice().questions(10_000, 0)


def test_drawing_depends_on_the_seed_only() -> None:
    assert draw(50, 9, 1, "t") == draw(50, 9, 1, "t")
    assert draw(50, 9, 1, "t") != draw(50, 9, 2, "t")
    assert sorted(draw(50, 50, 3, "t")) == list(range(50))


@pytest.mark.parametrize(
    ("text", "solution", "expected"),
    [
        ("7 + 5 = 12", "12", "12"),
        ("The answer is 1,234.", "1234", "1234"),
        ("It is -3.5!", "-3.5", "-3.5"),
        ("no number", "4", ""),
        ("  Yes \n", "Yes", "Yes"),
        ("12 and 13", "twelve", "12 and 13"),
    ],
)
def test_what_a_text_answers(text: str, solution: str, expected: str) -> None:
    assert final_answer(text, solution) == expected


def test_reasoning_gym_scores_full_marks_only() -> None:
    task = ReasoningGym()
    questions = task.questions(10, 3)
    families = [question.id.rpartition("-")[0] for question in questions]
    assert families[:5] == list(EASY)
    for question in questions:
        assert task.score(question, f"I think it is {question.solution}.") == 1.0
        assert task.score(question, f"{question.solution}7") == 0.0
    fractions = ReasoningGym("fraction_simplification")
    (question,) = fractions.questions(1, 0)
    assert fractions.score(question, question.solution) == 1.0
    assert fractions.score(question, "nonsense") == 0.0


def test_an_answer_that_the_package_cannot_read_is_wrong() -> None:
    task = ReasoningGym("prime_factorization")
    (question,) = task.questions(1, 0)
    assert task.score(question, "The answer is 2") == 0.0  # its scorer raises ValueError


def test_multiple_choice_questions_are_real() -> None:
    by_id = {cloze.id: cloze for cloze in clozes()}
    assert len(by_id) > 300
    questions = MultipleChoice().questions(60, 1)
    places = [question.options.index(question.solution) for question in questions]
    assert set(places) == {0, 1, 2, 3}
    for question in questions:
        cloze = by_id[question.id]
        assert (question.prompt, question.solution) == (cloze.text, cloze.continuation)
        assert len(set(question.options)) == 4
        assert {len(option.split()) for option in question.options} == {OPTION_WORDS}


def test_cutting_a_text() -> None:
    first = "One two three four five six seven eight nine ten eleven twelve."
    after = "Now these are the words that may come next, and more."
    cloze = cut("a.py:f", f"{first} {after}")
    assert cloze is not None
    assert (cloze.text, cloze.file) == (first, "a.py")
    assert cloze.continuation == " Now these are the words that may come"
    assert cut("a.py", first) is None
    assert cut("a.py", f"Too short. {after}") is None
    assert cut("a.py", f"{'word ' * 70}end. {after}") is None


class Broken(Task):
    """A task that breaks one rule."""

    name, licence, source = "broken", "MIT", "here"

    def __init__(self, questions: list[list[Question]], scores: dict[str, Any]) -> None:
        self._questions = iter(questions)
        self._scores = scores

    def questions(self, count: int, seed: int) -> list[Question]:
        return next(self._questions)

    def score(self, question: Question, answer: str) -> float:
        score: float = self._scores.get(answer, 0.0)
        return score


def asked(ids: Iterable[str] = "abcdef", **fields: Any) -> list[Question]:
    return [Question(**{"id": name, "prompt": "p", "solution": "right", **fields}) for name in ids]


RIGHT = {"right": 1.0}


@pytest.mark.parametrize(
    ("first", "second", "scores", "message"),
    [
        (asked("abc"), asked("abc"), RIGHT, "3 questions came"),
        (asked(), asked(prompt="q"), RIGHT, "same seed"),
        (asked("aabcde"), asked("aabcde"), RIGHT, "same id"),
        (asked(prompt=" "), asked(prompt=" "), RIGHT, "prompt is empty"),
        (asked(options=("x", "y")), asked(options=("x", "y")), RIGHT, "options"),
        (asked(), asked(), {}, "does not score 1"),
        (asked(), asked(), {"right": 1.0, "": 1.0}, "scores 1"),
        (asked(), asked(), {"right": 2.0}, "from 0 to 1"),
        (asked(), asked(), {"right": float("nan")}, "from 0 to 1"),
    ],
)
def test_the_contract_finds_what_is_broken(
    first: list[Question], second: list[Question], scores: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_task(Broken([first, second], scores))


def test_a_sound_task_keeps_the_contract() -> None:
    check_task(Broken([asked(), asked()], RIGHT))
    nameless = Broken([asked(), asked()], RIGHT)
    nameless.licence = ""
    with pytest.raises(InputError, match="licence"):
        check_task(nameless)
    roomless = Broken([asked(), asked()], RIGHT)
    roomless.max_new_tokens = 0
    with pytest.raises(InputError, match="max_new_tokens"):
        check_task(roomless)


PLUG_IN = TaskSource("mine", lambda argument, allow_code: Broken([], RIGHT), "MIT", "a plug-in")
RUNS_CODE = TaskSource("mine", PLUG_IN.open, "MIT", "a plug-in", runs_code=True)
NO_SOURCE = object()


def test_plug_ins_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("mine", f"{__name__}:PLUG_IN", registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: points)
    assert isinstance(load_task("mine"), Broken)
    assert [source.name for source in describe_tasks()][-1] == "mine"
    with pytest.raises(InputError, match="did you mean mine"):
        load_task("mime")


@pytest.mark.parametrize(
    ("value", "message"),
    [("nowhere_at_all:X", "cannot be loaded"), (f"{__name__}:NO_SOURCE", "type object")],
)
def test_broken_plug_ins_are_named(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    points = [EntryPoint("mine", value, registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: points)
    with pytest.raises(InputError, match=message):
        load_task("mine")
    assert load_task("multiple-choice").name == "multiple-choice"  # the others are not stopped
