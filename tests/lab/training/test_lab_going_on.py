"""Going on from a small model: from its weights, with the loss that is asked for, and from nothing else."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import offramp
from command_line import run_offramp
from lab_recipes import going_on, tiny, tiny_kind
from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.lab.exits.layer_skip import dropout_probabilities, exit_weights
from offramp.lab.text.folder import LabText
from offramp.lab.training import train as training
from offramp.lab.training.batches import Batches
from offramp.lab.training.early_exit import LAYER_SKIP, early_exit_loss
from offramp.lab.training.going_on import read_base, start_of
from offramp.lab.training.kinds import architecture_of
from offramp.lab.training.loop import make_optimiser, take_step, text_loss
from offramp.lab.training.record import RECORD
from offramp.lab.training.train import train

ARMS = ("continued", "early_exit_loss", "tuned")


@pytest.fixture(scope="module")
def base(lab_text: LabText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "base"
    train(tiny(lab_text, layers=4, checkpoints=1), folder)
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_it_starts_at_the_base_and_ends_in_the_same_weights_after_a_kill(
    lab_text: LabText, base: Path, tmp_path: Path, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = going_on(lab_text, base, arm)
    record = train(recipe, tmp_path / "whole")
    assert RECORD.read(tmp_path / "whole" / "training.json") == record
    assert (record.recipe, record.step, record.stopped) == (recipe, 8, "the steps are done")
    assert record.parameters == RECORD.read(base / "training.json").parameters
    model = offramp.load_model(tmp_path / "whole")
    assert (len(model.stack), model.stack.largest_difference) == (4, 0.0)
    before, after = (load_file(one / "model.safetensors") for one in (base, tmp_path / "whole"))
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 8 * 1e-3 * 1.1, "AdamW moves a weight by no more than the rate a step"

    real, calls = training.take_step, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(training, "WRITING_SHARE", math.inf)
    monkeypatch.setattr(training, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed")
    assert train(recipe, tmp_path / "killed").model == record.model
    assert len(calls) == 8 + 1


def test_what_is_only_trained_on_is_what_the_same_loop_gives(
    lab_text: LabText, base: Path, tmp_path: Path
) -> None:
    recipe = going_on(lab_text, base, "continued")
    train(recipe, tmp_path / "model")
    model = start_of(base).train()
    optimiser = make_optimiser(model)
    loss_of = text_loss(model, Batches.of(lab_text, 32, 4, recipe.seed))
    for step in range(recipe.steps):
        assert take_step(model, optimiser, loss_of, recipe, step) is not None
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(bool((found[name] == weight).all()) for name, weight in model.named_parameters())


@pytest.mark.parametrize("step", [1, 7])
def test_the_loss_of_early_exits_is_that_of_a_plain_count(lab_text: LabText, base: Path, step: int) -> None:
    recipe = going_on(lab_text, base, "early_exit_loss")
    batches = Batches.of(lab_text, 32, 4, recipe.seed)
    model = start_of(base)
    loss = early_exit_loss(model, batches, recipe)(step)
    assert model.training
    enabled = (2, 3)[step % 2]
    weights = exit_weights((enabled,), 4, 1.0)
    drawn = np.random.default_rng((recipe.seed, step)).random((4, 4))
    left_out = drawn < dropout_probabilities(4, step, 8, LAYER_SKIP.layer_dropout)
    inner, expected = model.model, 0.0
    sequences = torch.from_numpy(batches.sequences(step))
    for sequence, without in zip(sequences, left_out, strict=True):
        hidden = inner.embed_tokens(sequence[None, :-1])
        turned = inner.rotary_emb(hidden, torch.arange(32)[None])
        for place, layer in enumerate(inner.layers, start=1):
            if not without[place - 1]:
                hidden = layer(hidden, position_embeddings=turned)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            if place in weights:
                logits = model.lm_head(inner.norm(hidden))[0]
                expected += weights[place] * float(F.cross_entropy(logits, sequence[1:]).detach()) / 4
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.model.embed_tokens.weight.grad.abs().max() > 0


def test_layers_are_left_out_towards_the_end(lab_text: LabText, base: Path, monkeypatch: Any) -> None:
    """With a chance of one half of the last layer at the last step, and none at the first."""
    seen: list[set[int]] = []
    real = early_exit_loss.__globals__["run_layers"]

    def run(stack: Any, ids: Any, wanted: Any, left_out: set[int]) -> Any:
        seen.append(left_out)
        return real(stack, ids, wanted, left_out)

    monkeypatch.setattr("offramp.lab.training.early_exit.run_layers", run)
    half = dataclasses.replace(LAYER_SKIP, layer_dropout=0.5)
    monkeypatch.setattr("offramp.lab.training.early_exit.LAYER_SKIP", half)
    recipe = going_on(lab_text, base, "early_exit_loss", batch=32, tokens=8 * 32 * 32)
    loss_of = early_exit_loss(start_of(base), Batches.of(lab_text, 32, 32, recipe.seed), recipe)
    loss_of(0)
    assert not any(seen)
    loss_of(7)
    assert 8 < sum(4 in one for one in seen[32:]) < 24
    assert not any(1 in one for one in seen)


def test_a_base_that_cannot_be_gone_on_from_is_refused(lab_text: LabText, base: Path, tmp_path: Path) -> None:
    def refused(folder: Path, arm: str = "continued", **more: Any) -> str:
        with pytest.raises(InputError) as error:
            read_base(going_on(lab_text, folder, arm, **more), lab_text)
        assert str(error.value.where) == f"from: {folder}"
        return str(error.value)

    assert "no training has ended there" in refused(tmp_path / "nothing")
    assert "trained on 32 tokens at once, and now on 16" in refused(base, context=16)
    train(tiny(lab_text, layers=2, checkpoints=1, tokens=128), tmp_path / "shallow")
    assert "2 layers has no exit with a weight" in refused(tmp_path / "shallow", "early_exit_loss")
    shutil.copytree(base, tmp_path / "other")
    (tmp_path / "other" / "training.json").write_text("[" * 100_000)
    with pytest.raises(DamagedFileError, match=r"training\.json of a training is damaged") as damaged:
        read_base(going_on(lab_text, tmp_path / "other", "continued"), lab_text)
    assert "from: " in damaged.value.where
    assert "or name another" in damaged.value.fix
    record = RECORD.read(base / "training.json")
    for change, what in (
        ({"text": "0" * 64}, "on another text"),
        ({"diverged": True, "stopped": "the loss was not finite at step 3"}, "diverged: the loss was not"),
        ({"recipe": going_on(lab_text, base, "tuned")}, "itself goes on from another"),
    ):
        RECORD.write(tmp_path / "other" / "training.json", type(record)(**{**vars(record), **change}))
        assert what in refused(tmp_path / "other")
    changed = type(record)(**{**vars(record), "model": "0" * 64})
    RECORD.write(tmp_path / "other" / "training.json", changed)
    with pytest.raises(ModelError, match="not what the training left"):
        read_base(going_on(lab_text, tmp_path / "other", "continued"), lab_text)


def test_the_base_is_part_of_what_makes_a_training_another(
    lab_text: LabText, base: Path, tmp_path: Path
) -> None:
    recipe = going_on(lab_text, base, "continued")
    record = train(recipe, tmp_path / "model")
    shutil.copytree(base, tmp_path / "moved")
    moved = going_on(lab_text, tmp_path / "moved", "continued")
    assert train(moved, tmp_path / "model") == record, "the same model at another place"
    train(tiny(lab_text, layers=4, checkpoints=1, seed=2), tmp_path / "other")
    with pytest.raises(InputError, match=r"another training: base \("):
        train(going_on(lab_text, tmp_path / "other", "continued"), tmp_path / "model")
    with pytest.raises(InputError, match=r"another training: recipe.arm \(continued, now tuned\)"):
        train(going_on(lab_text, base, "tuned"), tmp_path / "model")


def test_models_of_other_kinds_are_gone_on_from_as_well(lab_text: LabText, tmp_path: Path) -> None:
    for kind in ("mixture", "mamba2"):
        recipe = tiny_kind(lab_text, kind, layers=3, tokens=128, checkpoints=1)
        train(recipe, tmp_path / kind)
        model = start_of(tmp_path / kind)
        found = architecture_of(recipe, 300)
        assert sum(one.numel() for one in model.parameters()) == found.parameters
        record = train(going_on(lab_text, tmp_path / kind, "early_exit_loss"), tmp_path / f"{kind}-on")
        assert (record.step, record.diverged) == (8, False)


def test_the_command_goes_on_from_what_the_recipe_names(
    lab_text: LabText, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    lines = [f'text = "{lab_text.folder}"', f'from = "{base}"', 'arm = "continued"', "tokens = 256"]
    path.write_text("\n".join([*lines, "seed = 3", "context = 32", "batch = 4", "checkpoints = 1", ""]))
    done = run_offramp("lab", "train", path, "-o", tmp_path / "model", "--device", "cpu", "--json").require(0)
    assert done.json["step"] == 2
    path.write_text(path.read_text().replace("continued", "frozen"))
    err = run_offramp("lab", "train", path, "-o", tmp_path / "model").require(2).err
    assert "line 3" in err
    assert "choose one of: continued, early_exit_loss, tuned" in err
    path.write_text(path.read_text().replace('"frozen"', '"tuned"') + "layers = 3\n")
    assert "no entry 'layers'" in run_offramp("lab", "train", path, "-o", tmp_path / "model").require(2).err
