"""Generated text says the truth: answers and steps, by a slow interpreter that reads nothing but the text."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import numpy as np

from offramp_lab.generated import MOST_STEPS, Problem, problems
from offramp_lab.text import GENERATED, LabText


def fewest(pairs: list[tuple[str, str]], start: str, goal: str) -> int:
    """Pairs of letters from one to another, whichever way round, by trying one, two, ... of them."""
    ends, steps = {start}, 0
    while goal not in ends:
        ends = {b if a == end else a for end in ends for a, b in pairs if end in (a, b)}
        steps += 1
    return steps


def interpreted(text: str) -> list[tuple[str, int]]:
    """Every line's answer and how many steps it takes."""
    first, *lines = text.splitlines()
    found = []
    if first == "modulo 10":
        for place, line in enumerate(lines):
            expression, said = line.split(" = ")
            before = [one.split(" = ")[0] for one in lines[:place]]
            assert not any(one == expression or f"({one})" in expression for one in before)
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
    pairs = [(pair[0], pair[2]) for pair in first.split()]
    arrows = dict(pairs)
    for line in lines:
        steps, question, said = line.split()
        start = reached = question.removesuffix("?")
        for _ in range(int(steps)):
            reached = arrows[reached]
        assert reached == said
        found.append((said, fewest(pairs, start, said)))
        pairs.append((start, said))  # what was answered may be a short cut
    return found


def stated(problem: Problem) -> list[tuple[str, int]]:
    text = problem.document.text
    return [(text[one.start : one.end].removeprefix(" "), one.steps) for one in problem.answers]


def test_answers_and_their_depth_are_true() -> None:
    for problem in islice(problems("train", 3), 60):
        assert interpreted(problem.document.text) == stated(problem)
        counts = Counter(one.steps for one in problem.answers)
        assert set(counts) == set(range(1, MOST_STEPS + 1))
        assert len(set(counts.values())) == 1


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
        return [one.document.text for one in islice(problems(part, seed), 10)]

    assert texts("train", 0) == texts("train", 0)
    assert not set(texts("train", 0)) & set(texts("report", 0))
    assert not set(texts("train", 0)) & set(texts("train", 1))


def test_every_answer_has_one_token_with_its_depth(lab_text: LabText) -> None:
    tokens, steps = lab_text.tokens("report", GENERATED), lab_text.steps("report")
    known = lab_text.problems("report")
    answers = [answer for problem in known for answer in stated(problem)]
    assert steps[steps > 0].tolist() == [needed for _, needed in answers]
    decode = lab_text.tokenizer.decode
    for place, (said, _) in zip(np.flatnonzero(steps), answers, strict=True):
        assert decode(tokens[place : place + 2].tolist()).strip().startswith(said)
