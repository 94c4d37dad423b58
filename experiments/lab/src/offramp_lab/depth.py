"""Required against used depth: the steps that an answer takes, and the layer from which a model has it.

Answers come from generated text (`offramp_lab.generated`). Used depth is the *saturation exit*, from which on
all say what the last one says. Only answers that the model has right tell anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from offramp import InputError, Model
from offramp_lab.generated import FORMS, MOST_STEPS
from offramp_lab.sources import Part
from offramp_lab.text import LabText, encoded_problems

RIGHT_SHARE, FEWEST_STEPS, FEWEST_ANSWERS = 0.5, 3, 20
"""Steps count of which at least half of 20 answers or more are right; a form needs three such to tell."""

FEWEST_DOCUMENTS, DRAWS = 20, 1000


@dataclass(frozen=True)
class RequiredDepth:
    """slope: layers that one step more takes, within forms; low, high: 95 %, documents drawn again.

    table: for each form and number of steps how many answers there are, the share that is right, the mean
    saturation exit of the right ones, and whether it counts. untold: why there is no slope, "" if there is.
    """

    table: pd.DataFrame
    slope: float | None
    low: float | None
    high: float | None
    untold: str


def has_tokenizer_of(model: Model, text: LabText) -> bool:
    """Whether a model reads a text's tokens."""
    if model.has_no_tokenizer:
        return False
    return bool(model.tokenizer.get_vocab() == text.tokenizer.get_vocab())


def answers_of(model: Model, text: LabText, part: Part) -> pd.DataFrame:
    """What a model says to the questions in a part's generated documents, each with all before it in sight.

    A row an answer: document and form, from 0; the steps it takes; whether it is right; and the exit, 1 .. L,
    from which on it is said. A document that is longer than the model's context is cut there. Raises
    InputError for a model that has another tokenizer than the text.
    """
    if not has_tokenizer_of(model, text):
        raise InputError(
            "the model has another tokenizer than the text",
            where=f"{model.name} and {text.folder}",
            fix="give a model of offramp-lab train and the text that it was trained on",
        )
    asked = text.problems(part)
    frames = []
    for number, (problem, ids, steps) in enumerate(
        zip(asked, *encoded_problems(text.tokenizer, asked), strict=True)
    ):
        form = next(place for place, form in enumerate(FORMS) if f"-{form}-" in problem.document.id)
        places = np.flatnonzero(steps[: model.context_length])
        tokens = _said_at_exits(model, ids[: model.context_length].astype(np.int64), places - 1)
        agrees = np.logical_and.accumulate((tokens == tokens[-1])[::-1], axis=0)
        exits = len(tokens) + 1 - agrees.sum(0)
        right = tokens[-1] == ids[places]
        frames.append({"steps": steps[places].astype(np.int64), "right": right, "exit": exits})
        frames[-1] |= {"document": np.full(len(places), number), "form": np.full(len(places), form)}
    return pd.concat(map(pd.DataFrame, frames), ignore_index=True)


def _said_at_exits(model: Model, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What every exit says at some positions: int64 [exits, rows]."""
    said: list[NDArray[np.int64]] = []

    def read(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        logits = model.stack.readout(after[:, torch.from_numpy(rows)])
        said.append(logits[0].argmax(-1).cpu().numpy())

    model.stack.capture(torch.from_numpy(ids)[None], read)
    return np.stack(said)


def required_depth(answers: pd.DataFrame, seed: int = 0) -> RequiredDepth:
    """Exits by steps, and the slope of the ones on the others over right answers, within forms."""
    cells = pd.MultiIndex.from_product([range(len(FORMS)), range(1, MOST_STEPS + 1)], names=["form", "steps"])
    by_cell = answers.groupby(["form", "steps"])["right"]
    table = pd.DataFrame({"answers": by_cell.size(), "right": by_cell.mean()}).reindex(cells, fill_value=0)
    table["exit"] = answers[answers["right"]].groupby(["form", "steps"])["exit"].mean()
    table["counts"] = (table["answers"] >= FEWEST_ANSWERS) & (table["right"] >= RIGHT_SHARE)
    telling = table[table["counts"] & (table.groupby("form")["counts"].transform("sum") >= FEWEST_STEPS)]
    if telling.empty:
        why = f"fewer than {FEWEST_STEPS} numbers of steps have half of their answers right"
        if answers.empty:
            why = "no question of the text ends within the model's context"
        return RequiredDepth(table.reset_index(), None, None, None, why)
    in_telling = pd.MultiIndex.from_frame(answers[["form", "steps"]]).isin(telling.index)
    documents = np.unique(answers["document"])
    sums = _sums(answers[answers["right"] & in_telling], documents)
    slope = _slope(sums.sum(0))
    low = high = None
    if len(documents) >= FEWEST_DOCUMENTS:
        draws = np.random.default_rng(seed).integers(len(documents), size=(DRAWS, len(documents)))
        drawn = [_slope(sums[draw].sum(0)) for draw in draws]
        if np.isfinite(drawn).all():
            low, high = (float(limit) for limit in np.quantile(drawn, (0.025, 0.975)))
    return RequiredDepth(table.reset_index(), slope, low, high, "")


def _sums(answers: pd.DataFrame, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of answers, steps, exits, squared steps and products: float64 [documents, forms, 5]."""
    steps, exits = (answers[name].to_numpy(np.float64) for name in ("steps", "exit"))
    parts = np.stack([np.ones(len(steps)), steps, exits, steps**2, steps * exits], axis=1)
    found = np.zeros((len(documents), len(FORMS), 5))
    np.add.at(found, (np.searchsorted(documents, answers["document"]), answers["form"]), parts)
    return found


def _slope(sums: NDArray[np.float64]) -> float:
    """Least squares with a level of its own for each form. sums: [forms, 5]; NaN if steps do not vary."""
    count, steps, exits, squares, products = sums[sums[:, 0] > 0].T
    spread = (squares - steps**2 / count).sum()
    return float((products - steps * exits / count).sum() / spread) if spread > 0 else float("nan")
