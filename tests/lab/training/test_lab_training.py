"""Training from scratch: ordinary models, the same to the bit also after kills, and what ends otherwise."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import offramp
from command_line import run_offramp, tree
from lab_recipes import tiny, write_recipe
from offramp.errors import DamagedFileError, InputError
from offramp.lab.text.folder import GENERATED_TOKENS, NATURAL_TOKENS, LabText
from offramp.lab.training import loop
from offramp.lab.training import train as training
from offramp.lab.training.architecture import Architecture, make_architecture
from offramp.lab.training.batches import Batches, HeldOut, generated_starts
from offramp.lab.training.evaluation import Evaluation
from offramp.lab.training.folder import kept_model
from offramp.lab.training.record import RECORD, Evaluated, TrainingRecord
from offramp.lab.training.train import train
from offramp.tracing.trained_model import trained_on

FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", "training.json"} | {
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "model"


@pytest.fixture(scope="module")
def record(lab_text: LabText, folder: Path) -> TrainingRecord:
    return train(tiny(lab_text), folder)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def all_weights(folder: Path) -> list[bytes]:
    """Of every model that a tiny training leaves."""
    return [weights(one) for one in (kept_model(folder, 4), kept_model(folder, 9), folder)]


def test_it_learns_and_leaves_ordinary_models(
    record: TrainingRecord, folder: Path, lab_text: LabText
) -> None:
    assert (record.step, record.tokens, record.stopped) == (19, 19 * 4 * 32, "the steps are done")
    assert [one.step for one in record.history] == [4, 9, 19]
    losses = [one.natural for one in record.history]
    assert losses[0] < math.log(300) * 1.05
    assert losses == sorted(losses, reverse=True)
    assert {path.name for path in folder.iterdir()} == FILES | {"request.json", ".lock", ".offramp.json"}
    for step, path in ((4, kept_model(folder, 4)), (9, kept_model(folder, 9)), (19, folder)):
        assert {one.name for one in path.iterdir()} >= FILES
        kept = RECORD.read(path / "training.json")
        assert (kept.step, kept.text, kept.recipe.seed) == (step, lab_text.fingerprint, 1)
        model = offramp.load_model(path)  # finds its exits and checks them against its own logits
        assert (len(model.stack), model.stack.largest_difference, model.context_length) == (2, 0.0, 32)
        assert trained_on(model).documents == kept.documents


def test_it_is_what_a_bare_loop_gives(record: TrainingRecord, folder: Path, lab_text: LabText) -> None:
    from offramp.models.lab_family import LabForCausalLM

    recipe = tiny(lab_text)
    torch.manual_seed(recipe.seed)
    model: Any = LabForCausalLM(make_architecture(recipe, 300).config()).train()
    matrices = [one for one in model.parameters() if one.dim() == 2]
    norms = [one for one in model.parameters() if one.dim() == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=False,
    )
    for step in range(recipe.steps):
        sequences = torch.from_numpy(Batches.of(lab_text, 32, 4, recipe.seed).sequences(step))
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 if step == 0 else 5e-3 * (0.55 + 0.45 * math.cos(math.pi * (step - 1) / 18))
        optimiser.zero_grad()
        logits = model(sequences[:, :-1]).logits
        F.cross_entropy(logits.reshape(-1, 300), sequences[:, 1:].reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    found = load_file(folder / "model.safetensors")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.detach(), rtol=1e-3, atol=1e-4)


class KilledError(BaseException):
    """In the place of a kill, which nothing in the way may catch."""


def killed_at(monkeypatch: pytest.MonkeyPatch, place: str, calls: int, run: Callable[[], object]) -> None:
    """Run something, and end it at the so manieth call of one of training's functions."""
    real = getattr(training, place)
    done = 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal done
        done += 1
        if done == calls:
            raise KilledError
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(training, place, counted)
        with pytest.raises(KilledError):
            run()


def test_killed_again_and_again_it_ends_in_the_same_weights(
    record: TrainingRecord, folder: Path, lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(training, "WRITING_SHARE", math.inf)  # a state is written after every step
    other, finished = tmp_path / "model", offramp.load_model(folder)

    def run() -> TrainingRecord:
        return train(tiny(lab_text), other)

    # Between steps; before a model is kept, and its record; before a state is written; at the last model.
    kills = (("take_step", 3), ("put_model", 1), ("write_state", 1), ("take_step", 8), ("put_model", 1))
    for place, calls in kills:
        killed_at(monkeypatch, place, calls, run)
        assert not (other / "training.json").exists()
        assert finished.source is not None
        unfinished = dataclasses.replace(finished, source=dataclasses.replace(finished.source, folder=other))
        with pytest.raises(InputError, match="training of this model has not ended"):
            trained_on(unfinished)
    assert run().history == tuple(
        dataclasses.replace(one, seconds=other_one.seconds)
        for one, other_one in zip(record.history, RECORD.read(other / "training.json").history, strict=True)
    )
    assert all_weights(other) == all_weights(folder)
    assert not (other / "checkpoint.safetensors").exists()
    leftovers = (
        "checkpoint.safetensors",
        ".writing-17-model.safetensors",
    )  # of kills after the record, and while a file was written
    for name in leftovers:
        (other / name).touch()
    assert run() == RECORD.read(other / "training.json")
    assert not any((other / name).exists() for name in leftovers)


def test_weights_are_readable_by_whom_other_files_are(record: TrainingRecord, folder: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {modes["config.json"]}


def test_a_state_that_was_changed_is_not_gone_on_with(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "model"
    killed_at(monkeypatch, "take_step", 6, lambda: train(tiny(lab_text), other))
    state = other / "checkpoint.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedFileError, match=r"the checkpoint checkpoint\.safetensors is damaged"):
        train(tiny(lab_text), other)


def test_a_training_that_diverges_is_kept_and_marked(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = loop.next_token_loss, []

    def overflows(model: Any, sequences: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return real(model, sequences) * (math.inf if len(steps) == 7 else 1.0)

    monkeypatch.setattr(loop, "next_token_loss", overflows)
    record = train(tiny(lab_text), tmp_path / "model")
    assert record.diverged
    assert record.stopped == "the loss was not finite at step 7"
    assert (record.step, [one.step for one in record.history]) == (6, [4])
    assert RECORD.read(tmp_path / "model" / "training.json") == record
    assert all(
        bool(one.isfinite().all()) for one in load_file(tmp_path / "model" / "model.safetensors").values()
    )
    monkeypatch.undo()
    assert train(tiny(lab_text), tmp_path / "model") == record, "it has ended"


def test_a_held_out_loss_that_is_not_finite_is_divergence_too(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Evaluation.evaluate

    def overflows(self: Evaluation, model: Any, **about: Any) -> Evaluated:
        found = real(self, model, **about)
        return dataclasses.replace(found, natural=math.nan) if about["step"] == 2 else found

    monkeypatch.setattr(Evaluation, "evaluate", overflows)
    record = train(tiny(lab_text, tokens=4 * 128, checkpoints=3), tmp_path / "model")
    assert record.diverged
    assert record.stopped == "a held-out loss was not finite after step 2"
    assert (record.step, [one.step for one in record.history]) == (2, [1])
    assert RECORD.read(tmp_path / "model" / "training.json") == record
    assert not kept_model(tmp_path / "model", 2).exists()


def test_libraries_do_not_warn_of_what_nobody_can_act_on(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Architecture.make_model

    def warning(self: Architecture) -> Any:
        # As at its import, which comes with that of a model's class.
        logging.getLogger("torchao").warning("Failed to load kernels.so: no such kernel")
        logging.getLogger("torchao").warning("news of the library")
        return real(self)

    monkeypatch.setattr(Architecture, "make_model", warning)
    monkeypatch.setattr(logging.getLogger("torchao"), "filters", [])  # those that other tests left
    train(tiny(lab_text, tokens=128, checkpoints=1), tmp_path / "model")
    assert "no such kernel" not in caplog.text
    assert "news of the library" in caplog.text


def test_the_command_trains_says_it_again_and_refuses_another(
    record: TrainingRecord, folder: Path, lab_text: LabText, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", lab_text)
    before = weights(folder)
    outcome = run_offramp("lab", "train", recipe, "-o", folder, "--device", "cpu", "--json").require(0)
    assert outcome.json["history"][-1]["natural"] == record.history[-1].natural
    assert outcome.json["parameters"] == record.parameters
    assert "19" in outcome.err
    assert "held out" in outcome.err
    assert "it had ended before, and is left as it is" in outcome.err
    assert "no longer there" not in outcome.err
    assert weights(folder) == before
    moved = tmp_path / "moved"  # alone, without the models of earlier steps
    shutil.copytree(folder, moved)
    outcome = run_offramp("lab", "train", recipe, "-o", moved, "--device", "cpu").require(0)
    assert "no longer there: moved@4, moved@9; --overwrite trains all again" in outcome.out
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x7f\x7f\x7f\x7f")
    refused = run_offramp("lab", "train", recipe, "-o", moved, "--device", "cpu").require(2).err
    assert "the model is not what the training left" in refused
    shutil.copytree(kept_model(folder, 9), moved, dirs_exist_ok=True)  # another model of this training
    refused = run_offramp("lab", "train", recipe, "-o", moved, "--device", "cpu").require(2).err
    assert "of another training than its folder" in refused
    write_recipe(recipe, lab_text, rate=1e-3)
    refused = run_offramp("lab", "train", recipe, "-o", folder, "--device", "cpu").require(2).err
    assert "the folder holds another training: recipe.rate (0.005, now 0.001)" in refused
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused = run_offramp("lab", "train", recipe, "-o", tmp_path / "mine", "--overwrite").require(2).err
    assert "holds something else: thesis.txt" in refused


def test_what_is_refused_is_refused_before_anything_is_written(
    record: TrainingRecord, folder: Path, lab_text: LabText, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="one step takes 100000"):
        train(tiny(lab_text, batch=100_000), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "model@9").mkdir()
    (tmp_path / "model@9" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"the model of an earlier step is kept: thesis\.txt"):
        train(tiny(lab_text), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert train(tiny(lab_text), folder) == record, "its own models are where they are"


def test_overwriting_leaves_nothing_of_the_training_before(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"tokens": 3 * 128, "checkpoints": 2}
    train(tiny(lab_text, **short), tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "model@mine")  # a training of its own
    another = tiny(lab_text, **{**short, "tokens": 4 * 128})

    def run() -> TrainingRecord:
        return train(another, tmp_path / "model", overwrite=True)

    before = tree(tmp_path)
    for place, calls in (("take_step", 2), ("put_beside", 1)):
        killed_at(monkeypatch, place, calls, run)
        assert {name: content for name, content in tree(tmp_path).items() if "new/" not in name} == before
    other = run()
    assert other.step == 4
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model@2", "model@mine"}


def test_a_pass_reads_every_sequence_once_in_an_order_of_its_own(lab_text: LabText) -> None:
    batches = Batches.of(lab_text, 32, 4, seed=5)
    count = len(batches.starts)
    steps = -(-2 * count // 4)
    read = np.concatenate([batches.sequences(step) for step in range(steps)])
    first, second = read[:count], read[count : 2 * count]
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    assert (first != second).any()
    assert sorted(map(bytes, first)) == sorted(
        bytes(batches.tokens[start : start + 33].astype(np.int64)) for start in batches.starts
    )


def test_no_more_is_read_of_generated_text_than_its_share(lab_text: LabText) -> None:
    tokens = lab_text.record.tokens["train"]
    batches = Batches.of(lab_text, 400, 1, seed=0)
    generated = batches.starts >= tokens["natural"]
    every = generated_starts(lab_text.tokens("train", GENERATED_TOKENS), 400)
    assert 0 < generated.sum() < len(every)
    assert generated.mean() <= tokens["generated"] / sum(tokens.values())


def test_generated_documents_are_read_from_their_beginning(lab_text: LabText) -> None:
    tokens = lab_text.tokens("report", GENERATED_TOKENS)
    starts = generated_starts(tokens, 300)
    begins = np.flatnonzero(tokens == 0)
    assert set(starts.tolist()) <= set(begins.tolist())
    ends = np.append(begins[1:], len(tokens))
    within = [
        any(start <= begin and end <= start + 300 for start in starts)
        for begin, end in zip(begins, ends, strict=True)
        if end - begin <= 300 and end <= starts[-1] + 300
    ]
    assert all(within)
    assert len(within) > 10


def test_held_out_figures_are_those_of_a_plain_count(
    record: TrainingRecord, folder: Path, lab_text: LabText
) -> None:
    hf = offramp.load_model(folder).hf
    found = Evaluation(lab_text, 32).evaluate(hf, step=19, tokens=1, seconds=0.0, trained=1.0)
    losses, right, asked = [], [0] * 7, [0] * 7
    held_out = HeldOut.of(lab_text, "validation", NATURAL_TOKENS, 32, 65_536)
    generated = HeldOut.of(lab_text, "validation", GENERATED_TOKENS, 32, 16_384)
    assert generated.steps is not None
    for sequence in held_out.sequences.tolist():
        with torch.no_grad():
            logits = hf(torch.tensor([sequence[:-1]])).logits[0]
        for row, token in zip(logits, sequence[1:], strict=True):
            losses.append(-float(torch.log_softmax(row, 0)[token]))
    for sequence, steps in zip(generated.sequences.tolist(), generated.steps.tolist(), strict=True):
        with torch.no_grad():
            said = hf(torch.tensor([sequence[:-1]])).logits[0].argmax(-1).tolist()
        for token, one, needed in zip(said, sequence[1:], steps[1:], strict=True):
            asked[needed] += 1
            right[needed] += token == one
    assert found.natural == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.accuracy == tuple(
        one / of if of else None for one, of in zip(right[1:], asked[1:], strict=True)
    )
    assert record.history[-1].natural == pytest.approx(found.natural, rel=1e-6)
