"""Required against used depth: read off the model exactly, a slope that is found, or why there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lab_worlds import tiny

import offramp
from offramp_lab.depth import answers_of, required_depth
from offramp_lab.text import LabText
from offramp_lab.train import train


def test_answers_and_their_exits_are_what_the_model_says(lab_text: LabText, tmp_path: Path) -> None:
    train(tiny(context=256, batch=2, tokens=4 * 512, checkpoints=1), lab_text, tmp_path / "model")
    model = offramp.load_model(tmp_path / "model")
    found = answers_of(model, lab_text, "report")
    rows = found.iterrows()
    for number, problem in enumerate(lab_text.problems("report")):
        whole = model.tokenizer(problem.document.text, return_offsets_mapping=True)
        for answer in problem.answers:
            # The token that holds the answer's letter: in so small a vocabulary a space may be one itself.
            covering = (begin <= answer.start + 1 < end for begin, end in whole["offset_mapping"])
            known = next(number for number, holds in enumerate(covering) if holds)
            ids, token = whole["input_ids"][:known], whole["input_ids"][known]
            if known >= 256:  # the model's context ends before
                continue
            with torch.no_grad():
                hidden = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
                said = [int(model.hf.lm_head(model.hf.model.norm(hidden[1][0, -1])).argmax())]
                said.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
            _, row = next(rows)
            assert (row["document"], row["steps"]) == (number, answer.steps)
            assert row["right"] == (said[1] == token)
            assert row["exit"] == (1 if said[0] == said[1] else 2)
    assert next(rows, None) is None
    assert len(found) > 100
    model.tokenizer.add_tokens(["new"])
    with pytest.raises(offramp.InputError, match="another tokenizer than the text"):
        answers_of(model, lab_text, "report")


def answers(slope: float, right: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Of a model whose exits grow by so much a step, with other levels for both forms and for documents."""
    generator = np.random.default_rng(seed)
    document = np.repeat(np.arange(60), 18)
    form, steps = document % 2, np.tile(1 + np.arange(18) % 6, 60)
    level = generator.normal(0, 1, 60)[document]
    exits = np.rint(3 + 2 * form + slope * steps + level + generator.normal(0, 0.5, len(steps)))
    known = {"document": document, "form": form, "steps": steps, "exit": exits.astype(int)}
    return pd.DataFrame({**known, "right": generator.random(len(steps)) < right})


def test_a_slope_is_found_with_its_interval() -> None:
    covered = 0
    for seed in range(40):
        found = required_depth(answers(0.7, seed=seed), seed=seed)
        assert found.slope == pytest.approx(0.7, abs=0.2)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert covered >= 33  # 38 expected; fewer than 33 of 40 by chance once in 500 at 95 %


def test_the_slope_is_least_squares_with_a_level_for_each_form() -> None:
    right = (data := answers(0.7))[data["right"]]
    columns = np.stack([right["steps"], right["form"] == 0, right["form"] == 1], axis=1).astype(float)
    expected = np.linalg.lstsq(columns, right["exit"].to_numpy(float), rcond=None)[0]
    assert required_depth(data).slope == pytest.approx(expected[0])


def test_only_steps_that_are_mostly_right_tell_anything() -> None:
    data = answers(0.7, right=1.0)
    few = data.assign(right=(data["steps"] <= 3) & (data["form"] == 0))
    found = required_depth(few)
    counts = found.table[found.table["counts"]]
    assert counts[["form", "steps"]].to_numpy().tolist() == [[0, 1], [0, 2], [0, 3]]
    kept = few[few["right"]]
    assert found.slope == pytest.approx(np.polyfit(kept["steps"], kept["exit"], 1)[0])
    assert required_depth(data[:0]).untold == "no question of the text ends within the model's context"
    fewer = required_depth(few.assign(right=few["right"] & (few["steps"] < 3)))
    assert fewer.slope is None
    assert "fewer than 3 numbers of steps" in fewer.untold
