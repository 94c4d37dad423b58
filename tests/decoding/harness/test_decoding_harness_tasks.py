"""The tasks that come with offramp: their questions, their scorer, and lm-eval running them offline."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import lm_eval.tasks

import offramp.decoding.harness.__main__ as command
from offramp.decoding.harness.tasks.questions import (
    EASY,
    NUMBER,
    OPTION_WORDS,
    Split,
    cities,
    cut_at_a_sentence,
    final_answer,
    last_words,
    marks,
    multiple_choice,
    reasoning,
)
from tiny_models import write_llama

NAMES = {"offramp-cities", "offramp-last-word", "offramp-multiple-choice", "offramp-reasoning"}


def test_lm_evals_command_runs_all_of_them_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_llama(tmp_path / "tiny", max_position_embeddings=512)
    arguments = (
        f"--model offramp --model_args pretrained={folder},policy=static:exit=2 --limit 1 "
        f"--tasks {','.join(sorted(NAMES))}"
    )
    # Reading the thousands of tasks that lm-eval brings takes longer than all else.
    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    monkeypatch.setattr(sys, "argv", ["offramp-lm-eval", *arguments.split()])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command.main()
    shown = capsys.readouterr().out
    for name in NAMES:
        assert re.search(rf"\|{name} *\|.*\|acc *\|", shown), name
        assert re.search(rf"\|{name} *\|(loglikelihood|generate_until) *\| *\d+\|[^|]*of 4\|", shown), name


def test_folders_of_ones_own_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: heard.append(sys.argv[1:]))
    for given in (["--tasks", "a"], ["--tasks", "a", "--include_path=b"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["offramp-lm-eval", *given])
        command.main()
    own = ["--include_path", str(command.TASKS)]
    assert heard == [["--tasks", "a", *own], ["--tasks", "a", "--include_path=b"], ["--help"]]


@pytest.mark.parametrize("questions", [multiple_choice, cities, last_words, reasoning])
def test_questions_are_many_distinct_and_always_the_same(
    questions: functools._lru_cache_wrapper[Split],
) -> None:
    first, again = questions()["test"], questions()["test"]
    assert list(first) == list(again)
    texts = [question["text"] for question in first]
    assert len(set(texts)) == len(texts) >= 80
    for question in first:
        assert question["text"].strip()
        choices = question.get("choices")
        if choices is not None:
            assert len(set(choices)) == 4
    if "choices" in first[0]:
        assert {question["answer"] for question in first} == {0, 1, 2, 3}


def test_options_are_equally_long() -> None:
    lengths = {
        len(option.split()) for question in multiple_choice()["test"] for option in question["choices"]
    }
    assert lengths == {OPTION_WORDS}


def test_cutting_a_text() -> None:
    first = "One two three four five six seven eight nine ten eleven twelve."
    after = "Now these are the words that may come next, and more."
    assert cut_at_a_sentence(f"{first}\n {after}") == (first, "Now these are the words that may come")
    assert cut_at_a_sentence(first) is None
    assert cut_at_a_sentence(f"Too short. {after}") is None
    assert cut_at_a_sentence(f"{'word ' * 70}end. {after}") is None


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


def test_problems_score_full_marks_only() -> None:
    questions = list(reasoning()["test"])
    assert [question["family"] for question in questions[:5]] == list(EASY)
    for question in questions[:50]:
        assert NUMBER.fullmatch(question["answer"])
        assert marks(question, [f"I think it is {question['answer']}."]) == {"acc": 1.0}
        assert marks(question, [f"{question['answer']}7"]) == {"acc": 0.0}
        assert marks(question, ["none"]) == {"acc": 0.0}


def test_an_answer_that_the_package_cannot_read_is_wrong() -> None:
    problem = {"family": "prime_factorization", "answer": "2 × 3", "item": '{"metadata": {"number": 6}}'}
    assert marks(problem, ["The answer is 2"]) == {"acc": 0.0}  # its scorer raises ValueError
