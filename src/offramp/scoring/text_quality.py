"""Answers held against the texts that were to be written: words that are wrong, or answers that match."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.defaults import DRAWS, SEED
from offramp.kit.given import Kind
from offramp.kit.numbers import Whole
from offramp.scoring.estimate import Estimate, document_bootstrap

Measure = Literal["word error rate", "exact match"]

COUNTER = "jiwer"
"""The package that words are counted with."""

NOT_COUNTED = "it takes the package jiwer: pip install 'offramp[speech]', then the same command again"


@dataclass(frozen=True)
class WrittenAnswer:
    """What was written of one document."""

    text: str
    """Without special tokens."""
    cut: bool
    """Whether it ran into its length limit, without an end token."""


@dataclass(frozen=True)
class Normaliser:
    """What becomes of a text before its words are compared."""

    name: str
    """For people, a phrase."""
    apply: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """The words with one space between them."""
        return " ".join(self.apply(text).split())


@dataclass(frozen=True, kw_only=True)
class TextQuality:
    """The full model's answers and a policy's to the same documents, against the texts to be written.

    "word error rate": words to insert, leave out or replace, of all documents, over the words of the texts
    (Levenshtein 1966; above 1 where more is written than was said). "exact match": share of answers that are
    the text, but for space around them. Intervals: 95 % bootstrap over documents.
    """

    measure: Measure
    normaliser: str | None
    """Of the words, in a phrase; None where answers are compared as they are."""
    full: Estimate
    """The full model's."""
    policy: Estimate
    difference: Estimate
    """The policy's less the full model's, paired by document."""
    documents: Whole
    new_tokens: Whole
    """Of an answer, at most."""
    full_cut: Whole
    """Answers that ran into that limit."""
    policy_cut: Whole


def measure_of(kind: Kind) -> Measure:
    """What answers are judged by, by what the model reads: of speech the words are counted."""
    return "word error rate" if kind == "audio" else "exact match"


def counter_version() -> str | None:
    """The version of the package that counts words, None where it is not installed."""
    try:
        return importlib.metadata.version(COUNTER)
    except importlib.metadata.PackageNotFoundError:
        return None


def not_counted(kind: Kind, new_tokens: int) -> TextQuality | None:
    """The record that says what to install to judge answers to what is read; None where nothing is missing.

    new_tokens: of an answer, at most.
    """
    measure = measure_of(kind)
    if measure == "exact match" or counter_version() is not None:
        return None
    unknown: Estimate = Estimate(None, undefined=NOT_COUNTED)
    return TextQuality(
        measure=measure,
        normaliser=None,
        full=unknown,
        policy=unknown,
        difference=unknown,
        documents=0,
        new_tokens=new_tokens,
        full_cut=0,
        policy_cut=0,
    )


def text_quality(
    measure: Measure,
    texts: Sequence[str],
    full: Sequence[WrittenAnswer],
    policy: Sequence[WrittenAnswer],
    *,
    normaliser: Normaliser,
    new_tokens: int,
    seed: int = SEED,
) -> TextQuality:
    """The full model's and a policy's answers against the texts of the same documents, at least one.

    normaliser: of words. new_tokens: of an answer, at most. seed: of the bootstrap.

    Without a word in any text a word error rate is undefined. Raises ModuleNotFoundError where `not_counted`
    would have said so.
    """
    count = _exact if measure == "exact match" else _wrong_words
    sums, units = np.empty((2, len(texts))), np.empty(len(texts))
    for side, answers in enumerate((full, policy)):
        for place, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            sums[side, place], units[place] = count(text, answer.text, normaliser)
    estimates = _paired(sums, units, seed)
    return TextQuality(
        measure=measure,
        normaliser=None if measure == "exact match" else normaliser.name,
        full=estimates[0],
        policy=estimates[1],
        difference=estimates[2],
        documents=len(texts),
        new_tokens=new_tokens,
        full_cut=sum(answer.cut for answer in full),
        policy_cut=sum(answer.cut for answer in policy),
    )


def _paired(
    sums: NDArray[np.float64], units: NDArray[np.float64], seed: int
) -> tuple[Estimate, Estimate, Estimate]:
    """Two means over documents and the second less the first: sums [2, documents] over units [documents]."""
    if not units.any():
        unknown: Estimate = Estimate(None, undefined="no text has a word")
        return unknown, unknown, unknown
    bootstrap = document_bootstrap(len(units), draws=DRAWS, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of texts without a word
        first, second = (bootstrap.means(side, units) for side in sums)
        difference = second - first
    return bootstrap.estimate(first), bootstrap.estimate(second), bootstrap.estimate(difference)


def _exact(text: str, answer: str, normaliser: Normaliser) -> tuple[float, float]:
    """1 for an answer that is the text, of 1."""
    return float(answer.strip() == text.strip()), 1.0


def _wrong_words(text: str, answer: str, normaliser: Normaliser) -> tuple[float, float]:
    """Words that are wrong in an answer, and the words of the text."""
    import jiwer

    counted = jiwer.process_words(normaliser(text), normaliser(answer))
    wrong = counted.substitutions + counted.deletions + counted.insertions
    return float(wrong), float(counted.hits + counted.substitutions + counted.deletions)
