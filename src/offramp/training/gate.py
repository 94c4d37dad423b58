"""Gates: what tokens cost and lose that leave by them, and networks that are trained for the least of it.

A token goes through the exits in order. At exit e it leaves with probability g_e, given that it came there,
and costs what a replay charges for that: the layers up to e, keys and values of the others, the checks so
far, the exit's head. Over the networks of all exits together, so that one learns to wait for a later one,
minimised is

    E[seconds] / plain seconds + lambda (E[disagreement] - (1 - floor)),   lambda >= 0 by dual ascent.

The networks learn on some documents; lambda, and the threshold in the end, follow others, where the decisions
themselves are counted, hard ones: with constraints on the same rows a network that has learned these by heart
meets them there and nowhere else (two datasets: arXiv 1807.00028; not differentiable in the dual alone: arXiv
1804.06500).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.costs.token import TokenCosts
from offramp.heads.parts import Classifier, Weights
from offramp.policies.policy_cost import exit_costs
from offramp.policies.rules.threshold import signal_needs
from offramp.policies.signals import SIGNALS

GATE = "gate"
"""The fact, and the signal."""

HALF = 0.5
"""The threshold at which gates are meant to decide."""

PASSES = 40
"""Over the rows to learn from, however many there are: as many steps on fewer rows learn these by heart."""
FEWEST_STEPS, MOST_STEPS = 100, 2000
EVALUATIONS = 20
"""Of lambda, by DUAL_RATE each: as far as it can move, however many steps there are."""
BATCH = 1024
RATE = 5e-4
WEIGHT_DECAY = 0.1

FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.2
"""Of the sigmoid, falling geometrically, so that what is trained comes to be what is decided: 0 or 1.

A straight-through estimator (arXiv 1308.3432, section 2.3) and Gumbel noise (arXiv 1611.01144) stand in for
an expectation that cannot be taken. Here a token has one outcome more than there are exits: it is exact.
"""

DUAL_RATE = 0.2
"""By how much ln lambda moves in an evaluation at most."""

SUREST = 1e-6
"""How near to 0 or 1 a threshold may lie that a gate's logits are moved by."""


@dataclass(frozen=True)
class GatePrices:
    """Seconds of one token, checks included. leave: float64 [exits]; stay: of a token that reaches L.

    plain: of the full model without a check.
    """

    leave: NDArray[np.float64]
    stay: float
    plain: float

    @classmethod
    def of(cls, costs: TokenCosts, exits: Sequence[int], signal: str = GATE) -> GatePrices:
        """Those that a replay charges for a threshold of the signal at these exits, ascending, below L."""
        per_exit = exit_costs(costs, signal_needs(SIGNALS[signal], tuple(exits))) / costs.batch
        places = np.array(exits, dtype=np.int64) - 1
        return cls(per_exit[places], float(per_exit[-1]), costs.plain / costs.batch)


@dataclass(frozen=True)
class Outcome:
    """Of each token, [rows]: expected seconds, and the probability that its output is another."""

    seconds: Tensor
    disagreement: Tensor


def expected_outcome(leaving: Tensor, agrees: Tensor, prices: GatePrices) -> Outcome:
    """What tokens cost and lose that leave by chance.

    leaving: probability of leaving at each exit of a token that came there, [exits, rows]. agrees: bool
    [exits, rows], whether the exit's best token is the full model's.
    """
    # From the last exit backwards: what becomes of a token that has come to an exit.
    seconds = torch.full_like(leaving[0], prices.stay)
    lost = torch.zeros_like(leaving[0])
    for exit in range(len(leaving) - 1, -1, -1):
        leaves = leaving[exit]
        seconds = leaves * float(prices.leave[exit]) + (1.0 - leaves) * seconds
        lost = leaves * (~agrees[exit]).to(leaves.dtype) + (1.0 - leaves) * lost
    return Outcome(seconds, lost)


def lagrangian(
    logits: Tensor, agrees: Tensor, prices: GatePrices, temperature: float, multiplier: float
) -> Tensor:
    """What is minimised, a scalar in tokens of the full model; the floor itself, a constant, left out.

    logits: [exits, rows]. multiplier: lambda, in tokens of the full model per unit of disagreement.
    """
    outcome = expected_outcome(torch.sigmoid(logits / temperature), agrees, prices)
    return outcome.seconds.mean() / prices.plain + multiplier * outcome.disagreement.mean()


@dataclass(frozen=True)
class GateRows:
    """Tokens to train gates on, or to choose or judge by.

    states: float32 [exits, rows, hidden]. agrees: bool [exits, rows]. document: int64 [rows].
    """

    states: Tensor
    agrees: Tensor
    document: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.document)

    def of_documents(self, chosen: NDArray[np.bool_]) -> GateRows:
        """The rows of some documents: bool [documents]."""
        rows = np.flatnonzero(chosen[self.document])
        places = torch.from_numpy(rows)
        return GateRows(self.states[:, places], self.agrees[:, places], self.document[rows])


class Gates(nn.Module):
    """The networks of all exits as one, the exits' axis first: an `Classifier` that can be trained.

    One hidden layer of ReLU and one logit, of standardised features.
    """

    def __init__(self, start: Classifier[Weights]) -> None:
        super().__init__()
        self.mean, self.scale = (torch.tensor(array)[:, None] for array in (start.mean, start.scale))
        self.weights = nn.ParameterList([nn.Parameter(torch.tensor(one)) for one in start.weights])
        self.biases = nn.ParameterList([nn.Parameter(torch.tensor(one)[:, None]) for one in start.biases])

    def forward(self, states: Tensor) -> Tensor:
        """Logits, [exits, rows], of states [exits, rows, hidden]."""
        values = (states - self.mean) / self.scale
        values = torch.baddbmm(self.biases[0], values, self.weights[0]).relu()
        return torch.baddbmm(self.biases[1], values, self.weights[1])[..., 0]

    def classifier(self, like: Classifier[Weights], moved_by: float) -> Classifier[Weights]:
        """The trained networks, every logit moved by a number; what was judged is of the given one."""
        biases = [bias.detach()[:, 0].numpy().copy() for bias in self.biases]
        biases[-1] += np.float32(moved_by)
        return replace(
            like,
            weights=tuple(weight.detach().numpy().copy() for weight in self.weights),
            biases=tuple(biases),
        )


@dataclass(frozen=True)
class AtFloor:
    """Gates with one threshold for all exits: the fastest that keeps the floor. seconds: of a token."""

    threshold: float
    seconds: float


FindFloor = Callable[[NDArray[np.float32]], AtFloor | None]
"""Of probabilities, float32 [rows, exits]; None where no threshold that lets one leave keeps the floor."""


@dataclass(frozen=True)
class GateFit:
    """Trained gates, and how that went.

    gates: the last ones, their logits moved so that the threshold which keeps the floor is 0.5. Choosing
    among steps by the same documents would make them seem better there than they are. multiplier: lambda in
    the end. seconds: float64 [evaluations], of a token on the documents apart, at the floor. disagreement:
    float64 [evaluations], there, hard at 0.5, before anything is moved.
    """

    gates: Classifier[Weights]
    multiplier: float
    seconds: NDArray[np.float64]
    disagreement: NDArray[np.float64]


def steps_of(rows: int) -> int:
    """Steps of a training on so many rows: PASSES over them, within bounds."""
    return min(MOST_STEPS, max(FEWEST_STEPS, round(PASSES * rows / BATCH)))


def learn_gates(
    fit: GateRows,
    apart: GateRows,
    prices: GatePrices,
    risk: float,
    start: Classifier[Weights],
    at_floor: FindFloor,
    *,
    seed: int,
    steps: int | None = None,
) -> GateFit:
    """Gates for the least expected seconds with at most this disagreement.

    fit: rows that the networks learn from. apart: of other documents, by which lambda and the step are
    chosen. risk: 1 - floor. start: networks that say whether an exit agrees, not far from a gate: begun with
    random ones, gates ended slower at the same floor on other documents. at_floor: of probabilities of the
    rows apart. steps: by default `steps_of` the rows to learn from.
    """
    steps = steps_of(len(fit)) if steps is None else steps
    every = -(-steps // EVALUATIONS)
    gates = Gates(start)
    groups: list[dict[str, Any]] = [
        {"params": [*gates.weights]},
        {"params": [*gates.biases], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    multiplier, seconds, disagreement = 1.0, list[float](), list[float]()
    for step in range(steps):
        if step % every == 0:
            decided = _decided(gates, apart, prices, at_floor)
            seconds.append(prices.stay if decided.at_floor is None else decided.at_floor.seconds)
            disagreement.append(decided.disagreement)
            beyond = (decided.disagreement - risk) / risk
            multiplier *= math.exp(DUAL_RATE * min(1.0, max(-1.0, beyond)))
        done = step / steps
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1.0 - done)
        temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** done
        places = torch.randint(len(fit), (BATCH,), generator=generator)
        optimiser.zero_grad()
        with torch.enable_grad():
            logits, agrees = gates(fit.states[:, places]), fit.agrees[:, places]
            loss = lagrangian(logits, agrees, prices, temperature, multiplier)
        torch.autograd.backward(loss)
        optimiser.step()
    last = _decided(gates, apart, prices, at_floor)
    found = last.at_floor
    moved_by = -last.surest - 1.0 if found is None else -_logit(found.threshold)
    return GateFit(
        gates.classifier(start, moved_by),
        multiplier,
        np.array([*seconds, prices.stay if found is None else found.seconds]),
        np.array([*disagreement, last.disagreement]),
    )


@dataclass(frozen=True)
class _Decided:
    """What gates decide on the documents apart. disagreement: hard, at HALF. surest: the largest logit."""

    at_floor: AtFloor | None
    disagreement: float
    surest: float


@torch.no_grad()
def _decided(gates: Gates, apart: GateRows, prices: GatePrices, at_floor: FindFloor) -> _Decided:
    logits = gates(apart.states)
    hard = expected_outcome((logits >= 0).double(), apart.agrees, prices)
    return _Decided(
        at_floor(torch.sigmoid(logits).t().contiguous().numpy()),
        float(hard.disagreement.mean()),
        float(logits.max()),
    )


def _logit(probability: float) -> float:
    bounded = min(1.0 - SUREST, max(SUREST, probability))
    return math.log(bounded / (1.0 - bounded))
