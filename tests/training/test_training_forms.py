"""Forms of trained exits against plain references: lenses of low rank, one network that all exits share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_train import interrupted, trained
from tracing_models import tiny_llama
from training_cases import arrays, assert_same

from offramp.heads.file import read_heads
from offramp.training.divergence import TrainingHead
from offramp.training.lens_and_block import (
    RidgeStart,
    TrainedReadings,
    exits_of,
    initial_lens,
    prepared,
    reading_of,
)
from offramp.training.recipe import Recipe
from offramp.training.states import CachedStates
from offramp.training.train import TrainedExits

HIDDEN = 10


@pytest.fixture(scope="module")
def start() -> RidgeStart:
    """Of states that are spread far in some directions, and hardly in others."""
    generator = np.random.default_rng(0)
    root = generator.normal(size=(HIDDEN, HIDDEN)) * np.logspace(-2, 1, HIDDEN)
    weight = generator.normal(size=(HIDDEN, HIDDEN)).astype(np.float32)
    bias, mean = generator.normal(size=HIDDEN).astype(np.float32), generator.normal(size=HIDDEN)
    return RidgeStart(weight, bias, mean, root @ root.T)


def dense(lens: dict[str, torch.Tensor]) -> np.ndarray:
    """I + U V^T."""
    return np.asarray(np.eye(HIDDEN) + lens["outward"].double().numpy() @ lens["inward"].double().numpy())


@pytest.mark.parametrize("rank", [1, 4])
def test_a_lens_of_low_rank_starts_as_the_best_on_the_states(start: RidgeStart, rank: int) -> None:
    """By a dense square root of the covariance: what is left are the singular values beyond the rank."""
    lens = initial_lens(start, rank)
    assert lens["inward"].shape == (rank, HIDDEN)
    change = start.weight.astype(float) - np.eye(HIDDEN)
    values, vectors = np.linalg.eigh(start.covariance)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    singular = np.linalg.svd(change @ root, compute_uv=False)

    def left(weight: np.ndarray) -> float:
        return float(np.linalg.norm((start.weight - weight) @ root) ** 2)

    found = left(dense(lens))
    assert found == pytest.approx((singular[rank:] ** 2).sum(), rel=1e-4)
    u, s, vt = np.linalg.svd(change)
    nearest = np.eye(HIDDEN) + u[:, :rank] * s[:rank] @ vt[:rank]
    assert found < 0.9 * left(nearest), "nearest to the change itself, but not on the states"
    # It gives the same of the mean state, and both factors are of one size.
    expected = start.weight @ start.mean + start.bias
    np.testing.assert_allclose(dense(lens) @ start.mean + lens["bias"].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(lens["inward"].norm(dim=1), lens["outward"].norm(dim=0), rtol=1e-5)


def test_a_lens_of_low_rank_computes_as_the_dense_one(start: RidgeStart) -> None:
    lens, rows = initial_lens(start, 4), torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    whole = {"weight": torch.from_numpy(dense(lens)).float(), "bias": lens["bias"]}
    torch.testing.assert_close(prepared(lens)(rows), prepared(whole)(rows))
    read = reading_of([lens], shared=False).at(0, rows.device)
    assert torch.equal(read(rows), prepared(lens)(rows))
    by_hand = rows.double().numpy() @ start.weight.astype(float).T + start.bias
    np.testing.assert_allclose(prepared(initial_lens(start))(rows).numpy(), by_hand, rtol=1e-4, atol=1e-5)


def objective(*, shared: bool) -> TrainedReadings:
    """Exits 1 and 2 of a tiny model, on random states."""
    model = tiny_llama()
    states = torch.randn(300, 3, model.shape.hidden_size, generator=torch.Generator().manual_seed(1))
    recipe = Recipe(
        kind="block",
        at=(1, 2),
        tokens=300,
        steps=1,
        seed=0,
        units=6,
        loss_vocabulary=0,
        batch=20,
        precision="float32",
        shared=shared,
    )
    return TrainedReadings(model, recipe, CachedStates((1, 2, 3), states[:200], states[200:], 0.0))


def test_the_loss_of_a_shared_network_is_the_mean_over_exits() -> None:
    """Loss and gradients against those of each exit with a copy of the network of its own."""
    one = objective(shared=True)
    own, head = replace_recipe(one, shared=False), TrainingHead(one.model, "float32")
    (part,) = one.initial()
    # As started the network lets nothing through, and most gradients are zero.
    part["down"] = 0.1 * torch.randn(part["down"].shape, generator=torch.Generator().manual_seed(2))
    part = {name: tensor.clone().requires_grad_() for name, tensor in part.items()}
    found = one.losses_of(0, 1, head)(0, part)
    found.backward()
    losses, total = [], dict.fromkeys(("norm", "gate", "up", "down"), 0.0)
    for place, copied in enumerate(exits_of(part, 2)):
        copied = {name: tensor.detach().clone().requires_grad_() for name, tensor in copied.items()}
        loss = own.losses_of(0, 1, head)(place, copied)
        loss.backward()
        losses.append(loss.item())
        for name in ("weight", "bias"):
            torch.testing.assert_close(part[f"{place}.{name}"].grad, copied[name].grad / 2)
        total = {name: before + copied[name].grad / 2 for name, before in total.items()}
    assert found.item() == pytest.approx(np.mean(losses))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    for name, gradient in total.items():
        torch.testing.assert_close(part[name].grad, gradient)


def replace_recipe(one: TrainedReadings, *, shared: bool) -> TrainedReadings:
    return TrainedReadings(one.model, replace(one.recipe, shared=shared), one.states)


@pytest.fixture(scope="module")
def shared() -> TrainedExits:
    return trained(kind="block", shared=True, rank=8)


def test_a_shared_network_is_kept_once_and_chosen_by_the_mean_loss(
    shared: TrainedExits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: array.shape for name, array in arrays(shared).items()}
    hidden = sizes["lens.bias"][1]
    assert sizes["lens.inward"] == (2, 8, hidden)
    assert sizes["mlp.gate"] == (1, shared.heads.mlp.units, hidden)
    assert "lens.weight" not in sizes
    record = shared.record
    for raw, one in zip(record.logit_lens, record.trained, strict=True):
        assert one.loss < raw.loss
    means = [np.mean([one.loss for one in evaluated.exits]) for evaluated in record.history]
    assert np.mean([one.loss for one in record.trained]) == pytest.approx(min(means), rel=1e-5)
    interrupted(tmp_path, monkeypatch, kind="block", shared=True, rank=8)
    again = trained(kind="block", shared=True, rank=8, output=tmp_path)
    assert_same(again, shared)
    assert read_heads(tmp_path).fingerprint == shared.heads.fingerprint


def test_a_network_that_one_exit_has_alone_is_its_own() -> None:
    alone, own = (arrays(trained(kind="block", at=[2], shared=shared, steps=5)) for shared in (True, False))
    for name, array in own.items():
        np.testing.assert_allclose(alone[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
