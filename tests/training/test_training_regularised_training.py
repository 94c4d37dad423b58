"""Training a model itself: what comes of it is a model folder, the same each time; refused and stopped."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from training_cases import assert_same, regularised

import offramp
from command_line import tree
from offramp.decoding.openings import further_documents, prompts_of
from offramp.errors import DiskFullError, InputError
from offramp.models.model import Model
from offramp.tracing.trace import heads_documents
from offramp.training import folder as folders
from offramp.training import loop
from offramp.training import regularised as problem
from offramp.training.loop import Steps
from offramp.training.record import RECORD, spent_before
from offramp.training.train import TrainedExits, train_exits
from tiny_models import write_llama

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "request.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("regularised") / "base", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def model(base: Path) -> Model:
    return offramp.load_model(base)


@pytest.fixture(scope="module")
def trained(base: Path, model: Model) -> TrainedExits:
    return regularised(model, base.with_name("trained"), asked={"targets": "text", "keep": 0.3}, steps=20)


def test_exits_learn_and_the_record_says_what_became_of_the_output(trained: TrainedExits) -> None:
    record = trained.record
    assert record.places == ("2", "3", "full depth")
    for before, after in zip(record.before[:-1], record.trained[:-1], strict=True):
        assert after.nll is not None
        assert before.nll is not None
        assert after.nll < before.nll
        assert after.bits_per_byte is not None
        assert len(after.leaving) == len(record.floors)
    start, end = record.before[-1], record.trained[-1]
    assert (start.loss, start.agreement, start.reference_agreement) == (0.0, 1.0, 1.0)
    assert end.agreement == 1.0
    assert end.loss > 0
    assert len(record.history) == 21
    assert len(record.history[0].exits) == 3
    assert [len(ids) for ids in record.documents.values()] == [record.rows.documents]
    assert len(record.texts) == record.rows.documents
    assert RECORD.read(Path(str(trained.folder)) / "training.json") == record
    assert "full depth: 1.00" in repr(trained)


def test_what_comes_of_it_is_a_model(trained: TrainedExits, base: Path, model: Model) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert trained.folder is not None
    assert tree(trained.folder).keys() == FILES
    hf = AutoModelForCausalLM.from_pretrained(trained.folder)
    loaded = offramp.load_model(trained.folder)
    assert loaded.identity.fingerprint == trained.record.heads != model.identity.fingerprint
    assert loaded.identity.tokenizer == model.identity.tokenizer
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits, before = hf(ids).logits, model.hf(ids).logits
    assert torch.equal(loaded.hf(ids).logits, logits)
    assert not torch.allclose(logits, before, atol=1e-3)
    with safe_open(trained.folder / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys(), "tied weights are stored once"  # noqa: SIM118
    assert hf.lm_head.weight.data_ptr() == hf.model.embed_tokens.weight.data_ptr()
    assert AutoTokenizer.from_pretrained(trained.folder)("the cat") == model.tokenizer("the cat")
    out = offramp.generate(loaded, "the cat", policy="static:exit=2", max_new_tokens=3)
    assert out.exits[1:].tolist() == [2] * (len(out.exits) - 1)
    again = offramp.trace(loaded, f"jsonl:{base.with_name('texts.jsonl')}#text", tokens=60, progress=False)
    assert again.exits.tolist() == [1, 2, 3, 4]


def test_the_model_at_hand_stays_as_it_is(trained: TrainedExits, base: Path, model: Model) -> None:
    fresh = offramp.load_model(base)
    for (name, one), (_, other) in zip(model.hf.named_parameters(), fresh.hf.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert model.hf.config.to_dict() == fresh.hf.config.to_dict()


def test_a_finished_training_is_read_and_has_no_heads(trained: TrainedExits, model: Model) -> None:
    assert trained.folder is not None
    again = regularised(model, trained.folder, asked={"targets": "text", "keep": 0.3}, steps=20)
    assert again.record == trained.record
    with pytest.raises(InputError, match="there are no heads"):
        _ = again.heads


def test_one_that_was_killed_before_it_cleared_away_is_read(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offramp.training.train.clear_working_files", killed)
        patch.setattr("offramp.training.job.clear_working_files", killed, raising=False)
        with pytest.raises(KeyboardInterrupt):
            regularised(model, tmp_path, steps=2)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"where it stood")
    offramp.load_model(tmp_path)
    monkeypatch.setattr(Steps, "step", killed)  # nothing is trained again
    assert regularised(model, tmp_path, steps=2).record.steps == 2
    assert tree(tmp_path).keys() == FILES


def test_exits_of_a_trained_model_took_what_the_model_took_too(
    trained: TrainedExits, base: Path, tmp_path: Path
) -> None:
    """Once, however many trainings lie between; of other weights than the record's no figure."""
    loaded = offramp.load_model(str(trained.folder))
    texts = f"jsonl:{base.with_name('texts.jsonl')}#text"
    given: dict[str, Any] = {"kind": "lens", "at": "2", "steps": 2, "tokens": 1500, "progress": False}
    lens = train_exits(loaded, texts, **given, classifiers=False, kv_maps=False, output=tmp_path)
    assert lens.record.earlier == trained.record.own
    assert lens.record.own.seconds > 0
    assert spent_before(loaded, tmp_path, lens.heads) == lens.record.own + trained.record.own
    changed = dataclasses.replace(loaded.identity, weights="0" * 64)
    assert spent_before(loaded.with_identity(changed), None, None) is None
    int8 = dataclasses.replace(loaded.identity, transforms=("int8",))
    assert spent_before(loaded.with_identity(int8), None, None) == trained.record.own


@pytest.mark.parametrize("asked", [{}, {"lora": 0, "ahead": 2, "curriculum": "gradual"}])
def test_the_same_again_and_stopped_on_the_way(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    whole = regularised(model, tmp_path / "whole", asked=asked)
    step, taken = Steps.step, []

    def ending(loop: Any, at: int) -> bool:
        if len(taken) == 7:
            raise KeyboardInterrupt
        taken.append(at)
        return step(loop, at)

    monkeypatch.setattr("offramp.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("offramp.training.loop.WRITING_SHARE", 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "step", ending)
        with pytest.raises(KeyboardInterrupt):
            regularised(model, tmp_path / "stopped", asked=asked)
    assert not (tmp_path / "stopped" / "config.json").exists(), "it is no model yet"
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "step", lambda loop, at: taken.append(at) or step(loop, at))
        gone_on = regularised(model, tmp_path / "stopped", asked=asked)
    assert taken == list(range(12))
    assert_same(gone_on, whole)


def test_no_step_better_than_none_leaves_the_original_model(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda rate, step, steps: 3.0)
    found = regularised(model, tmp_path / "worse")
    assert found.record.stopped == "no exit was better on held-out text in 8 evaluations"
    loaded = offramp.load_model(tmp_path / "worse")
    assert torch.equal(
        loaded.hf.model.layers[2].mlp.up_proj.weight, model.hf.model.layers[2].mlp.up_proj.weight
    )


def test_what_has_no_room_is_refused_before_anything_is_trained(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10_000

    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "disk_usage", lambda path: Usage)
        with pytest.raises(DiskFullError, match="checkpoint take"):
            regularised(model, tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setattr(problem, "available_memory", lambda: 10_000)
        with pytest.raises(InputError, match="of memory") as error:
            regularised(model, tmp_path / "little", asked={"lora": 0})
    assert "--lora 16" in error.value.fix
    assert not list(tmp_path.glob("*/checkpoint.safetensors"))


@pytest.mark.parametrize("at", ["weights", "tokenizer"])
def test_a_disk_that_is_full_at_the_end_leaves_no_half_model_and_is_gone_on_from(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """safetensors, which writes the weights, raises no OSError."""

    def no_weights(folder: Path, **options: Any) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def no_tokenizer(model: Model, folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder, taken = tmp_path / "full", []
    with monkeypatch.context() as patch:
        if at == "weights":
            patch.setattr(model.hf, "save_pretrained", no_weights)
        else:
            patch.setattr(folders, "_write_tokenizer", no_tokenizer)
        said = "the disk is full: 4 bytes" if at == "weights" else "the disk is full"
        with pytest.raises(DiskFullError, match=said) as error:
            regularised(model, folder, steps=2)
    assert "run the same command again" in error.value.fix
    assert tree(folder).keys() == {"checkpoint.safetensors", "request.json"}
    monkeypatch.setattr(Steps, "step", lambda *step: taken.append(step))
    assert regularised(model, folder, steps=2).record.steps == 2
    assert not taken
    assert tree(folder).keys() == FILES


@pytest.mark.parametrize("moved", [0, 1, len(FILES) - 1])
def test_overwritten_the_old_model_stays_until_the_new_one_is_whole(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    folder = tmp_path / "trained"
    regularised(model, folder, steps=2)
    before = tree(folder)
    step, replace, done = Steps.step, os.replace, []

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    def killed_late(source: Path, place: Path) -> None:
        if Path(place).parent == folder and Path(source).parent.parent.name == ".offramp-new":
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(place)
        replace(source, place)

    monkeypatch.setattr(Steps, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        regularised(model, folder, steps=2, seed=1, overwrite=True)
    assert {name: content for name, content in tree(folder).items() if "new/" not in name} == before
    monkeypatch.setattr(Steps, "step", step)
    monkeypatch.setattr(os, "replace", killed_late)
    with pytest.raises(KeyboardInterrupt):
        regularised(model, folder, steps=2, seed=1, overwrite=True)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Steps, "step", killed)  # nothing is trained again
    assert regularised(model, folder, steps=2, seed=1, overwrite=True).record.request.recipe.seed == 1
    assert tree(folder).keys() == FILES
    assert offramp.load_model(folder).identity.fingerprint == RECORD.read(folder / "training.json").heads


def test_a_finished_model_that_was_changed_is_not_given_back(model: Model, tmp_path: Path) -> None:
    regularised(model, tmp_path / "trained", steps=2)
    weights = tmp_path / "trained" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="not what the training left"):
        regularised(model, tmp_path / "trained", steps=2)
    weights.unlink()
    with pytest.raises(InputError, match="no weights"):
        regularised(model, tmp_path / "trained", steps=2)


def test_a_folder_of_a_model_is_not_written_over(model: Model, base: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(InputError, match="holds files that are not a training"):
        regularised(model, base, overwrite=True)
    assert before == {path.name: path.read_bytes() for path in base.iterdir()}
    write_texts = tmp_path / "trained"
    regularised(model, write_texts, steps=2)
    with pytest.raises(InputError, match=r"recipe\.regularisation\.lora"):
        regularised(model, write_texts, steps=2, asked={"lora": 2})
    other = regularised(model, write_texts, steps=2, asked={"lora": 2}, overwrite=True)
    assert other.record.request.recipe.regularisation is not None
    assert other.record.request.recipe.regularisation.lora == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda options: options.pop("output"), "output must be a folder, without which"),
        (lambda options: options.update(tokens=100), "one step takes"),
        (lambda options: options.update(at="1"), "exit 1 has no weight"),
        (lambda options: options.update(at="2,3", steps=1), "1 steps do not look at each of 2 exits once"),
        (lambda options: options.update(kind="lens"), "--lora means nothing with --kind lens"),
    ],
)
def test_what_does_not_fit_is_refused(
    trained: TrainedExits,
    model: Model,
    base: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    options: dict[str, Any] = {
        "kind": "regularised",
        "at": "2",
        "output": tmp_path / "out",
        "steps": 2,
        "regularisation": offramp.Regularisation(),
        "progress": False,
    }
    change(options)
    with pytest.raises(InputError, match=message):
        train_exits(model, f"jsonl:{base.with_name('texts.jsonl')}#text", **options)


def test_the_licence_goes_with_the_model(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    try:
        regularised(base, tmp_path / "out", steps=2)
        assert offramp.load_model(tmp_path / "out").identity.licence == "mit"
        assert "license" not in json.loads((tmp_path / "out" / "config.json").read_text())
    finally:
        (base / "README.md").unlink()


def test_a_model_that_is_trained_again_has_seen_what_it_saw_before(trained: TrainedExits, base: Path) -> None:
    again = regularised(Path(str(trained.folder)), base.with_name("again"), steps=2, seed=1)
    (first,), (both,) = (one.record.documents.values() for one in (trained, again))
    assert set(first) < set(both)
    assert len(again.record.texts) == len(both) > again.record.rows.documents


def test_the_chain_judges_by_the_original_and_leaves_out_what_training_saw(
    trained: TrainedExits, base: Path, model: Model
) -> None:
    workload = offramp.load_workload(f"jsonl:{base.with_name('texts.jsonl')}#text")
    loaded = offramp.load_model(str(trained.folder))
    traced = offramp.trace(loaded, workload, tokens=900, reference=model, progress=False)
    own = offramp.trace(model, workload, tokens=900, progress=False)
    assert traced.reference_top1 is not None
    assert not any("was trained" in note for note in traced.provenance["notes"])
    alone = offramp.trace(loaded, workload, tokens=40, progress=False).provenance["notes"]
    assert any(f"--reference {model.name}, and tuned with" in note for note in alone)
    assert traced.reference_top1.tolist() == own.top1[:, -1].tolist()
    seen = set(trained.record.documents[workload.fingerprint])
    assert heads_documents(traced) >= seen
    assert {one.id for one in traced.documents if one.heads_saw} == seen & {
        one.id for one in traced.documents
    }
    assert not heads_documents(own)
    free = {one.id for one in further_documents(traced.subset(np.arange(2)), workload, 0)}
    assert free
    assert not free & seen
    prompts = prompts_of(loaded, workload, 5, new_tokens=2, prompt_tokens=8)
    last = [one.id for one in reversed(workload.documents) if one.id not in seen][:5]
    texts = {one.id: one.text for one in workload.documents}
    assert prompts == [loaded.encode(texts[id])[:8] for id in last]
    card = offramp.score(traced)
    assert card.reference_agreement is not None
    kept = offramp.replay(traced, "static:exit=3").reference_agreement
    assert kept == pytest.approx(float((traced.top1[:, 2] == traced.reference_top1).mean()))
    tuned = offramp.tune(traced, floor={"reference_agreement": 0.5}, hardware="h100", delta=0.4)
    assert "original full model" in tuned.answer or "not certifiable" in tuned.answer
