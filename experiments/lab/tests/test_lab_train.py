"""Training: ordinary models, the same to the bit also after kills, and what ends otherwise."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lab_worlds import going_on, tiny, tiny_kind
from safetensors.torch import load_file

import offramp
from offramp import InputError
from offramp_lab import train as training
from offramp_lab.batches import Batches, HeldOut, generated_starts
from offramp_lab.objectives import text_loss
from offramp_lab.recipes import Reading
from offramp_lab.state_space import made_fast, scan
from offramp_lab.text import GENERATED, NATURAL_TOKENS, LabText
from offramp_lab.train import make_optimiser, read, read_record, start_of, take_step, train


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folder(lab_text: LabText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    train(tiny(layers=3), lab_text, folder)
    return folder


def test_it_learns_and_leaves_ordinary_models(folder: Path, lab_text: LabText) -> None:
    record = read_record(folder, "")
    assert (record["step"], record["stopped"], record["text"]) == (
        19,
        "the steps are done",
        lab_text.fingerprint,
    )
    assert [one["step"] for one in record["history"]] == [4, 9, 19]
    losses = [one["natural"] for one in record["history"]]
    assert losses[0] < math.log(300) * 1.05
    assert losses == sorted(losses, reverse=True)
    assert {path.name for path in folder.parent.iterdir()} == {"model", "model@4", "model@9"}
    for path in folder.parent.iterdir():
        model = offramp.load_model(path)  # finds its exits and checks them against its own logits
        assert (len(model.stack), model.stack.largest_difference, model.context_length) == (3, 0.0, 32)
        assert offramp.trace(model, "prose:short", 8, progress=False).request["model"]["trained_on"] == {
            "a workload": ["a document"]
        }
    changed = folder.parent / "changed"
    changed.mkdir()
    for path in (folder.parent / "model@4").iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    (changed / "model.safetensors").write_bytes(weights(folder))
    with pytest.raises(offramp.OfframpError, match="not what the training left"):
        offramp.load_model(changed)


def test_it_is_what_a_bare_loop_gives(folder: Path, lab_text: LabText) -> None:
    recipe = tiny(layers=3)
    torch.manual_seed(recipe.seed)
    model = recipe.make_model(300).train()
    matrices = [one for one in model.parameters() if one.dim() == 2]
    norms = [one for one in model.parameters() if one.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}]
    groups.append({"params": norms, "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False)
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


def recipes(folder: Path) -> dict[str, Reading]:
    arms = ("continued", "early_exit_loss", "tuned")
    return {
        "dense": tiny(),
        "mixture": tiny_kind("mixture"),
        "mamba2": tiny_kind("mamba2"),
        **{arm: going_on(folder, arm) for arm in arms},
    }


@pytest.mark.parametrize("which", ["dense", "mixture", "mamba2", "continued", "early_exit_loss", "tuned"])
def test_killed_again_and_again_it_ends_in_the_same_weights(
    which: str, folder: Path, lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes(folder)[which]
    record = train(recipe, lab_text, tmp_path / "whole")
    real, calls = training.take_step, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "take_step", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, lab_text, tmp_path / "killed")
        assert not (tmp_path / "killed").exists()
    again = train(recipe, lab_text, tmp_path / "killed")
    assert len(calls) == recipe.steps + 2, "no step is taken twice"
    assert again["model"] == record["model"]
    for path in tmp_path.glob("whole*"):
        assert weights(path) == weights(tmp_path / path.name.replace("whole", "killed"))
    assert not [*tmp_path.glob("*.checkpoint"), *tmp_path.glob("*.making")]
    model = offramp.load_model(tmp_path / "killed")
    assert model.stack.largest_difference == 0.0


def test_going_on_is_what_the_same_loop_gives(lab_text: LabText, folder: Path, tmp_path: Path) -> None:
    recipe = going_on(folder, "continued")
    train(recipe, lab_text, tmp_path / "model")
    model = start_of(folder).train()
    optimiser = make_optimiser(model)
    loss_of = text_loss(model, Batches.of(lab_text, 32, 4, recipe.seed))
    for step in range(recipe.steps):
        assert take_step(model, optimiser, loss_of, recipe, step) is not None
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(bool((found[name] == weight).all()) for name, weight in model.named_parameters())


def test_another_training_or_base_is_refused(lab_text: LabText, folder: Path, tmp_path: Path) -> None:
    before = weights(folder)
    assert train(tiny(layers=3), lab_text, folder)["step"] == 19, "it has ended"
    assert weights(folder) == before
    with pytest.raises(InputError, match=r"another training: rate \(0.005, now 0.001\)"):
        train(tiny(layers=3, rate=1e-3), lab_text, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no training of the lab has ended there"):
        train(tiny(), lab_text, tmp_path / "mine")
    with pytest.raises(InputError, match="one step takes 100000"):
        train(tiny(batch=100_000), lab_text, tmp_path / "large")
    with pytest.raises(InputError, match="no training of the lab has ended there"):
        train(going_on(tmp_path / "mine", "tuned"), lab_text, tmp_path / "on")
    with pytest.raises(InputError, match="cannot be gone on from") as refused:
        train(going_on(folder, "tuned", context=16), lab_text, tmp_path / "on")
    assert "write context = 32" in str(refused.value)
    train(going_on(folder, "continued", tokens=128), lab_text, tmp_path / "once")
    with pytest.raises(InputError, match="cannot be gone on from"):
        train(going_on(tmp_path / "once", "continued"), lab_text, tmp_path / "twice")
    assert not (tmp_path / "large").exists()


def test_a_training_that_diverges_is_kept_and_marked(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(model: Any, batches: Batches) -> Any:
        real = text_loss(model, batches)
        return lambda step: real(step) * (math.inf if step == 6 else 1.0)

    monkeypatch.setattr("offramp_lab.objectives.text_loss", overflows)
    record = train(tiny(), lab_text, tmp_path / "model")
    assert (record["diverged"], record["stopped"]) == (True, "the loss was not finite at step 7")
    assert (record["step"], [one["step"] for one in record["history"]]) == (6, [4])
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(bool(one.isfinite().all()) for one in found.values())
    monkeypatch.undo()
    monkeypatch.setattr(training, "read", lambda model, held_out: (math.nan, []))
    record = train(tiny(), lab_text, tmp_path / "other")
    assert record["stopped"] == "a held-out loss was not finite after step 4"


def test_a_pass_reads_every_sequence_once_in_an_order_of_its_own(lab_text: LabText) -> None:
    batches = Batches.of(lab_text, 32, 4, seed=5)
    count = len(batches.starts)
    read = np.concatenate([batches.sequences(step) for step in range(-(-2 * count // 4))])
    first, second = read[:count], read[count : 2 * count]
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    assert (first != second).any()
    tokens = lab_text.record["tokens"]["train"]
    generated = batches.starts >= tokens["natural"]
    assert 0 < generated.mean() <= tokens["generated"] / sum(tokens.values())
    ours = lab_text.tokens("report", GENERATED)
    assert set(generated_starts(ours, 300).tolist()) <= set(np.flatnonzero(ours == 0).tolist())


def test_held_out_figures_are_those_of_a_plain_count(folder: Path, lab_text: LabText) -> None:
    hf = offramp.load_model(folder).hf
    losses, right, asked = [], [0] * 7, [0] * 7
    held_out = HeldOut.of(lab_text, "validation", NATURAL_TOKENS, 32, 2_000)
    generated = HeldOut.of(lab_text, "validation", GENERATED, 32, 2_000)
    assert generated.steps is not None
    for sequences in (held_out.sequences, generated.sequences):
        for row, sequence in enumerate(sequences):
            with torch.no_grad():
                logits = hf(torch.from_numpy(sequence[None, :-1])).logits[0]
            if sequences is held_out.sequences:
                losses.append(float(F.cross_entropy(logits, torch.from_numpy(sequence[1:]))))
                continue
            for said, token, steps in zip(
                logits.argmax(-1), sequence[1:], generated.steps[row, 1:], strict=True
            ):
                asked[steps] += 1
                right[steps] += int(said) == token
    assert read(hf, held_out)[0] == pytest.approx(np.mean(losses), rel=1e-5)
    assert read(hf, generated)[1] == [
        hit / of if of else None for hit, of in zip(right[1:], asked[1:], strict=True)
    ]


@given(
    tokens=st.integers(1, 13),
    chunk=st.integers(1, 6),
    heads=st.integers(1, 3),
    strength=st.floats(0.0, 3.0),
    seed=st.integers(0, 2**32),
)
def test_a_scan_by_chunks_is_the_recurrence(
    tokens: int, chunk: int, heads: int, strength: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, tokens, heads, 4, generator=generator)
    decay = -strength * torch.rand(2, tokens, heads, generator=generator)
    written, read = (torch.randn(2, tokens, 5, generator=generator) for _ in range(2))
    state = torch.zeros(2, heads, 4, 5)
    for place, found in enumerate(scan(values, decay, written, read, chunk).unbind(1)):
        added = torch.einsum("bhp,bn->bhpn", values[:, place], written[:, place])
        state = decay[:, place, :, None, None].exp() * state + added
        expected = torch.einsum("bhpn,bn->bhp", state, read[:, place])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_a_state_space_in_training_is_that_of_transformers(tokens: int) -> None:
    torch.manual_seed(0)
    own = tiny_kind("mamba2").make_model(300)
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    fast = made_fast(copy.deepcopy(own))
    ids = torch.randint(0, 300, (2, tokens))
    for model in (own, fast):
        model(input_ids=ids, use_cache=False).logits.square().mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(own(input_ids=ids).logits, fast(input_ids=ids).logits)
        plain, other = (model(input_ids=ids, use_cache=False).logits for model in (own, fast))
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)
    assert tokens == 1 or bool((plain != other).any()), "another order of sums"
    for weight, its in zip(own.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, its.grad, rtol=1e-3, atol=1e-6)
