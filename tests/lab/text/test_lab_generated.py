"""Generated text says the truth: answers and steps, by a slow interpreter that reads nothing but the text."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np

from offramp.lab.text.folder import GENERATED_TOKENS, LabText
from offramp.lab.text.generated import MOST_STEPS, Problem, problems


def walk(arrows: dict[str, str], start: str, goal: str) -> int:
    """Arrows from one letter to another, one by one."""
    steps = 0
    while start != goal or steps == 0:
        start, steps = arrows[start], steps + 1
    return steps


def interpreted(text: str) -> list[tuple[str, int]]:
    """Every line's answer and how many steps it takes."""
    first, *lines = text.splitlines()
    found = []
    if first == "modulo 10":
        for line in lines:
            expression, said = line.split(" = ")
            value, operations = expression, 0
            while match := re.search(
                r"\((\d[+\-*]\d)\)|^(\d[+\-*]\d)$", value
            ):  # the innermost, then outwards
                inner = match[1] or match[2]
                value = value.replace(match[0], str(eval(inner) % 10), 1)
                operations += 1
            assert value == said, line
            found.append((said, operations))
        return found
    arrows = dict(pair.split(">") for pair in first.split())
    back = {goal: start for start, goal in arrows.items()}
    for line in lines:
        _, question, said = line.split()
        start = question.removesuffix("?")
        forward = walk(arrows, start, said)
        assert forward <= walk(back, start, said), "backwards would be shorter"
        found.append((said, forward))
    return found


def stated(problem: Problem) -> list[tuple[str, int]]:
    text = problem.document.text
    return [(text[one.start : one.end].removeprefix(" "), one.steps) for one in problem.answers]


def test_answers_and_their_depth_are_true() -> None:
    seen = set()
    for problem in islice(problems("train", 3), 60):
        assert interpreted(problem.document.text) == stated(problem)
        seen.update(one.steps for one in problem.answers)
    assert seen == set(range(1, MOST_STEPS + 1))


def test_every_digit_of_an_expression_decides_its_answer() -> None:
    (problem,) = islice(problems("train", 0), 1, 2)
    line = max(problem.document.text.splitlines(), key=len)
    expression = line.split(" = ")[0]
    first = re.search(r"\d", expression)
    assert first is not None
    answers = {
        eval(expression[: first.start()] + str(digit) + expression[first.end() :]) % 10 for digit in range(10)
    }
    assert len(answers) == 10


def test_the_same_seed_gives_the_same_and_parts_differ() -> None:
    def texts(part: str, seed: int) -> list[str]:
        return [one.document.text for one in islice(problems(part, seed), 10)]  # type: ignore[arg-type]

    assert texts("train", 0) == texts("train", 0)
    assert not set(texts("train", 0)) & set(texts("report", 0))
    assert not set(texts("train", 0)) & set(texts("train", 1))


def test_every_answer_has_one_token_with_its_depth(lab_text: LabText) -> None:
    tokens, steps = lab_text.tokens("report", GENERATED_TOKENS), lab_text.steps("report")
    known = lab_text.problems("report")
    answers = [answer for problem in known for answer in stated(problem)]
    assert steps[steps > 0].tolist() == [needed for _, needed in answers]
    decode = lab_text.tokenizer.decode
    for place, (said, _) in zip(np.flatnonzero(steps), answers, strict=True):
        assert decode(tokens[place : place + 2].tolist()).strip().startswith(said)
