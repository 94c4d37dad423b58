"""Words that are wrong, counted the slow way: what tests hold word error rates against."""

from __future__ import annotations

import functools
from collections.abc import Sequence


def wrong_words(text: str, answer: str) -> int:
    """Words to insert, leave out or replace, by the definition's recursion; words stand between spaces."""

    @functools.cache
    def edits(said: tuple[str, ...], heard: tuple[str, ...]) -> int:
        if not said or not heard:
            return len(said) + len(heard)
        if said[-1] == heard[-1]:
            return edits(said[:-1], heard[:-1])
        return 1 + min(edits(said[:-1], heard), edits(said, heard[:-1]), edits(said[:-1], heard[:-1]))

    return edits(tuple(text.split()), tuple(answer.split()))


def word_error_rate(texts: Sequence[str], answers: Sequence[str]) -> float:
    """Wrong words of all answers over the words of all texts."""
    wrong = sum(wrong_words(text, answer) for text, answer in zip(texts, answers, strict=True))
    return wrong / sum(len(text.split()) for text in texts)
