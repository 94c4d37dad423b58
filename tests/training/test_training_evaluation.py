"""What is said of an exit on held-out tokens, against every threshold tried and logits written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tracing_models import tiny_llama

from offramp.training.divergence import Evaluator, leaving_shares
from offramp.training.record import FLOORS


def shares_by_trying(confidence: np.ndarray, agrees: np.ndarray, floors: tuple[float, ...]) -> list[float]:
    """The largest share that leaves at any threshold whose agreement, those that stay included, suffices."""
    found = []
    for floor in floors:
        best = 0.0
        for threshold in np.unique(confidence):
            leaves = confidence >= threshold
            if np.where(leaves, agrees, True).mean() >= floor - 1e-9:
                best = max(best, float(leaves.mean()))
        found.append(best)
    return found


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_shares_are_those_of_the_best_threshold(levels: int) -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        confidence = (generator.integers(levels, size=80) / levels).astype(np.float32)
        agrees = generator.random(80) < 0.5 + confidence / 2
        assert leaving_shares(confidence, agrees) == pytest.approx(
            shares_by_trying(confidence, agrees, FLOORS)
        )
    everything = leaving_shares(np.zeros(5, np.float32), np.ones(5, np.bool_))
    assert everything == (1.0,) * len(FLOORS)
    assert leaving_shares(np.zeros(5, np.float32), np.zeros(5, np.bool_)) == (0.0,) * len(FLOORS)


def test_an_evaluation_is_that_of_logits_written_out() -> None:
    model = tiny_llama()
    states = torch.randn(50, 3, 32, generator=torch.Generator().manual_seed(0))
    halved, same = Evaluator(model, states).evaluate([lambda hidden: hidden / 2 + 1, lambda hidden: hidden])
    logits = model.stack.readout((states[:, 0] / 2 + 1)[None])[0].double()
    final = model.stack.readout(states[None, :, 2])[0].double()
    p, q = final.softmax(-1), logits.softmax(-1)
    agrees = logits.argmax(-1) == final.argmax(-1)
    assert halved.loss == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert halved.agreement == float(agrees.double().mean())
    assert halved.leaving == pytest.approx(
        shares_by_trying(q.amax(-1).float().numpy(), agrees.numpy(), FLOORS)
    )
    assert same.loss != halved.loss
