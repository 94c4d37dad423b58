"""Required against used depth: read off the model exactly, a slope that is found, or why there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import offramp
from command_line import run_offramp
from lab_recipes import tiny
from offramp.errors import InputError
from offramp.lab.required_depth import Answers, answers_of, required_depth
from offramp.lab.text.folder import LabText
from offramp.lab.training.train import train


@pytest.fixture(scope="module")
def folder(lab_text: LabText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of training, with a context that holds whole documents."""
    folder = tmp_path_factory.mktemp("depth") / "model"
    train(tiny(lab_text, context=256, batch=2, tokens=4 * 512, checkpoints=1), folder)
    return folder


def test_what_a_model_answers_is_read_off_it_exactly(lab_text: LabText, folder: Path) -> None:
    model = offramp.load_model(folder)
    found = answers_of(model, lab_text, "report")
    problems = lab_text.problems("report")
    place = 0
    for number, problem in enumerate(problems):
        whole = model.tokenizer(problem.document.text, return_offsets_mapping=True)
        for answer in problem.answers:
            # The token that holds the answer's letter: in so small a vocabulary a space may be one itself.
            covering = (begin <= answer.start + 1 < end for begin, end in whole["offset_mapping"])
            known = next(number for number, holds in enumerate(covering) if holds)
            ids, token = whole["input_ids"][:known], whole["input_ids"][known]
            if known >= 256:  # the model's context ends before
                continue
            hidden = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
            with torch.no_grad():
                said = [int(model.hf.lm_head(model.hf.model.norm(hidden[1][0, -1])).argmax())]
                said.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
            assert found.document[place] == number
            assert found.steps[place] == answer.steps
            assert found.right[place] == (said[1] == token)
            assert found.exit[place] == (1 if said[0] == said[1] else 2)
            place += 1
    assert place == len(found.steps) > 100
    assert set(found.form.tolist()) == {0, 1}


def answers(slope: float, right: float = 0.9, documents: int = 60, seed: int = 0) -> Answers:
    """Of a model whose exits grow by so much a step, with other levels for both forms and for documents."""
    generator = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), 18)
    form, steps = document % 2, np.tile(1 + np.arange(18) % 6, documents)
    level = generator.normal(0, 1, documents)[document]
    exits = 3 + 2 * form + slope * steps + level + generator.normal(0, 0.5, len(steps))
    return Answers(
        document, form, steps, generator.random(len(steps)) < right, np.rint(exits).astype(np.int64)
    )


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
    data = answers(0.7)
    columns = np.stack([data.steps, data.form == 0, data.form == 1], axis=1)[data.right].astype(np.float64)
    expected = np.linalg.lstsq(columns, data.exit[data.right].astype(np.float64), rcond=None)[0]
    assert required_depth(data).slope == pytest.approx(expected[0])


def test_only_steps_that_are_mostly_right_tell_anything() -> None:
    data = answers(0.7, right=1.0)
    guessing = (data.steps > 3) | (data.form == 1)
    few = Answers(data.document, data.form, data.steps, data.right & ~guessing, data.exit)
    found = required_depth(few)
    assert [(row.form, row.steps) for row in found.rows if row.counts] == [("lookup", k) for k in (1, 2, 3)]
    kept = few.right
    line = np.polyfit(data.steps[kept], data.exit[kept], 1)
    assert found.slope == pytest.approx(line[0])
    assert required_depth(Answers(*(column[:0] for column in vars(data).values()))).untold == (
        "no question of the text ends within the model's context"
    )
    fewer = Answers(data.document, data.form, data.steps, few.right & (data.steps < 3), data.exit)
    assert required_depth(fewer).slope is None
    assert "fewer than 3 numbers of steps" in required_depth(fewer).untold


def test_the_command_says_it_and_refuses_a_tokenizer_of_another_text(
    lab_text: LabText, folder: Path, tiny_model: Path
) -> None:
    outcome = run_offramp("lab", "depth", folder, lab_text.folder, "--device", "cpu", "--json").require(0)
    assert len(outcome.json["rows"]) == 12
    assert outcome.json["slope"] is None
    assert "cannot be told" in outcome.err
    assert (
        "no part 'test'"
        in run_offramp("lab", "depth", folder, lab_text.folder, "--part", "test").require(2).err
    )
    begun = folder.with_name("begun")
    shutil.copytree(folder, begun)
    (begun / "training.json").rename(begun / "checkpoint.safetensors")
    assert "has not ended" in run_offramp("lab", "depth", begun, lab_text.folder).require(2).err
    grown = offramp.load_model(folder)
    grown.tokenizer.add_tokens(["new"])  # learned from the same works, as its config says
    for model in (offramp.load_model(tiny_model), grown):
        with pytest.raises(InputError, match="another tokenizer than the text"):
            answers_of(model, lab_text, "validation")
