"""Required against used depth: the steps that an answer takes, and the layer from which a model has it.

Answers come from generated text (`offramp.lab.text.generated`). Used depth is the *saturation exit*, from
which on all say what the last one says. Only answers that the model has right tell anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.lab.text.folder import LabText
from offramp.lab.text.generated import FORMS, MOST_STEPS, Form, Problem
from offramp.lab.text.tokenizer import encoded_problems
from offramp.lab.text.work import Part
from offramp.models.model import Model

RIGHT_SHARE, FEWEST_STEPS, FEWEST_ANSWERS = 0.5, 3, 20
"""Steps count of which at least half of 20 answers or more are right; a form needs three such to tell."""

FEWEST_DOCUMENTS, DRAWS = 20, 1000


@dataclass(frozen=True)
class Answers:
    """What a model said to every question. Arrays [answers]: document and form, from 0; steps; whether it is
    right; and the exit, 1 .. L, from which on it is said."""

    document: NDArray[np.int64]
    form: NDArray[np.int64]
    steps: NDArray[np.int64]
    right: NDArray[np.bool_]
    exit: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Answers of one form that take so many steps. exit: mean saturation exit of the right ones, if any."""

    form: Form
    steps: int
    answers: int
    right: float
    exit: float | None
    counts: bool


@dataclass(frozen=True)
class RequiredDepth:
    """slope: layers that one step more takes, within forms; low, high: 95 %, documents drawn again.

    untold: why there is no slope, "" if there is one.
    """

    rows: tuple[Row, ...]
    slope: float | None
    low: float | None
    high: float | None
    untold: str


def has_tokenizer_of(model: Model, text: LabText) -> bool:
    """Whether a model reads a text's tokens."""
    if model.has_no_tokenizer:
        return False
    return bool(model.tokenizer.get_vocab() == text.tokenizer.get_vocab())


def answers_of(model: Model, text: LabText, part: Part) -> Answers:
    """Let a model answer the questions in a part's generated documents, each with all before it in sight.

    A document that is longer than the model's context is cut there. Raises InputError for a model that has
    another tokenizer than the text.
    """
    if not has_tokenizer_of(model, text):
        raise InputError(
            "the model has another tokenizer than the text",
            where=f"{model.name} and {text.folder}",
            fix="give a model of offramp lab train and the text that it was trained on",
        )
    return _gathered(_answered(model, text.tokenizer, text.problems(part)))


def _answered(
    model: Model, tokenizer: object, problems: Sequence[Problem]
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]]:
    """Of each document its number, its form, and of its answers steps, right and exit."""
    all_ids, all_steps = encoded_problems(tokenizer, problems)
    for number, (problem, ids, steps) in enumerate(zip(problems, all_ids, all_steps, strict=True)):
        form = next(place for place, form in enumerate(FORMS) if f"-{form}-" in problem.document.id)
        places = np.flatnonzero(steps[: model.context_length])
        tokens = _said_at_exits(model, ids[: model.context_length].astype(np.int64), places - 1)
        agrees = np.logical_and.accumulate((tokens == tokens[-1])[::-1], axis=0)
        exits = len(tokens) + 1 - agrees.sum(0)
        yield number, form, steps[places].astype(np.int64), tokens[-1] == ids[places], exits


def _said_at_exits(model: Model, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What every exit says at some positions: int64 [exits, rows]."""
    said: list[NDArray[np.int64]] = []

    def read(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        logits = model.stack.readout(after[:, torch.from_numpy(rows)])
        said.append(logits[0].argmax(-1).cpu().numpy())

    model.stack.capture(torch.from_numpy(ids)[None], read)
    return np.stack(said)


def _gathered(
    found: Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]],
) -> Answers:
    documents, forms, steps, right, exits = zip(*found, strict=True)
    counts = [len(one) for one in steps]
    return Answers(
        np.repeat(documents, counts),
        np.repeat(forms, counts),
        np.concatenate(steps),
        np.concatenate(right),
        np.concatenate(exits),
    )


def required_depth(answers: Answers, seed: int = 0) -> RequiredDepth:
    """Exits by steps, and the slope of the ones on the others over right answers, within forms."""
    rows = tuple(
        _row(answers, place, form, steps)
        for place, form in enumerate(FORMS)
        for steps in range(1, MOST_STEPS + 1)
    )
    telling = {form: [row.steps for row in rows if row.form == form and row.counts] for form in FORMS}
    telling = {form: steps for form, steps in telling.items() if len(steps) >= FEWEST_STEPS}
    if not telling:
        why = f"fewer than {FEWEST_STEPS} numbers of steps have half of their answers right"
        if not len(answers.right):
            why = "no question of the text ends within the model's context"
        return RequiredDepth(rows, None, None, None, why)
    kept = answers.right & np.logical_or.reduce(
        [
            (answers.form == FORMS.index(form)) & np.isin(answers.steps, steps)
            for form, steps in telling.items()
        ]
    )
    documents = np.unique(answers.document)
    sums = _sums(answers, kept, documents)
    slope = float(_slope(sums.sum(0)))
    low = high = None
    if len(documents) >= FEWEST_DOCUMENTS:
        draws = np.random.default_rng(seed).integers(len(documents), size=(DRAWS, len(documents)))
        drawn = [_slope(sums[draw].sum(0)) for draw in draws]
        if np.isfinite(drawn).all():
            low, high = (float(limit) for limit in np.quantile(drawn, (0.025, 0.975)))
    return RequiredDepth(rows, slope, low, high, "")


def _row(answers: Answers, place: int, form: Form, steps: int) -> Row:
    asked = (answers.form == place) & (answers.steps == steps)
    right = asked & answers.right
    share = float(right.sum() / asked.sum()) if asked.any() else 0.0
    exit = float(answers.exit[right].mean()) if right.any() else None
    counts = bool(asked.sum() >= FEWEST_ANSWERS and share >= RIGHT_SHARE)
    return Row(form, steps, int(asked.sum()), share, exit, counts)


def _sums(answers: Answers, kept: NDArray[np.bool_], documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of answers, steps, exits, squared steps and products: float64 [documents, forms, 5]."""
    steps, exits = answers.steps.astype(np.float64), answers.exit.astype(np.float64)
    parts = np.stack([np.ones(len(steps)), steps, exits, steps**2, steps * exits], axis=1)
    found = np.zeros((len(documents), len(FORMS), 5))
    np.add.at(found, (np.searchsorted(documents, answers.document[kept]), answers.form[kept]), parts[kept])
    return found


def _slope(sums: NDArray[np.float64]) -> float:
    """Least squares with a level of its own for each form. sums: [forms, 5]; NaN if steps do not vary."""
    count, steps, exits, squares, products = sums[sums[:, 0] > 0].T
    spread = (squares - steps**2 / count).sum()
    return float((products - steps * exits / count).sum() / spread) if spread > 0 else float("nan")
