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

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.costs.token import TokenCosts
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.parts import Classifier, ExitReading, Weights
from offramp.models.shape import ModelShape
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import exit_costs
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.threshold import Threshold, signal_needs
from offramp.policies.signals import SIGNALS
from offramp.tracing.fitting.classifiers import RAREST_CLASS, gains_surely
from offramp.tracing.trace import Trace
from offramp.training.loop import (
    Descent,
    LossOf,
    OnStep,
    Parameters,
    Problem,
    Progress,
    TrainingLoop,
    unheard,
)
from offramp.training.record import GATE, Evaluation, GateCourse, Judged, Settings
from offramp.training.request import Effort
from offramp.tuning.floor import Floor
from offramp.tuning.pool import Pool, ScoredPolicy
from offramp.tuning.pricing import Pricing
from offramp.tuning.search import add_per_exit
from offramp.tuning.threshold_family import ThresholdFamily, add_thresholds

NETWORK = ("weights", "biases")
"""Of a classifier, what is trained of each layer."""

HALF = 0.5
"""The threshold at which gates are meant to decide."""

PASSES = 40
"""Over the rows to learn from, however many there are: as many steps on fewer rows learn these by heart."""
FEWEST_STEPS, MOST_STEPS = 100, 2000
BATCH = 1024
RATE = 5e-4
WEIGHT_DECAY = 0.1

FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.2
"""Of the sigmoid, falling geometrically, so that what is trained comes to be what is decided: 0 or 1.

A straight-through estimator (arXiv 1308.3432, section 2.3) and Gumbel noise (arXiv 1611.01144) stand in for
an expectation that cannot be taken. Here a token has one outcome more than there are exits: it is exact.
"""

DUAL_RATE = 0.2
"""By how much ln lambda moves in an evaluation at most, however many steps lie between two of them."""

SUREST = 1e-6
"""How near to 0 or 1 a threshold may lie that a gate's logits are moved by."""


@dataclass(frozen=True)
class GatePrices:
    """Seconds of one token, checks included."""

    leave: NDArray[np.float64]
    """[exits]"""
    stay: float
    """Of a token that reaches L."""
    plain: float
    """Of the full model without a check."""

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
    """Tokens to train gates on, or to choose or judge by."""

    states: Tensor
    """Float32 [exits, rows, hidden]."""
    agrees: Tensor
    """Bool [exits, rows]."""
    document: NDArray[np.int64]
    """[rows]"""

    def __len__(self) -> int:
        return len(self.document)

    def of_documents(self, chosen: NDArray[np.bool_]) -> GateRows:
        """The rows of some documents: bool [documents]."""
        rows = np.flatnonzero(chosen[self.document])
        places = torch.from_numpy(rows)
        return GateRows(self.states[:, places], self.agrees[:, places], self.document[rows])


@dataclass(frozen=True)
class AtFloor:
    """Gates with one threshold for all exits: the fastest that keeps the floor."""

    threshold: float
    seconds: float
    """Of a token."""


FindFloor = Callable[[NDArray[np.float32]], AtFloor | None]
"""Of probabilities, float32 [rows, exits]; None where no threshold that lets one leave keeps the floor."""


def steps_of(rows: int) -> int:
    """Steps of a training on so many rows: PASSES over them, within bounds."""
    return min(MOST_STEPS, max(FEWEST_STEPS, round(PASSES * rows / BATCH)))


@dataclass(frozen=True)
class HardDecisions:
    """What gates decide on the documents apart."""

    at_floor: AtFloor | None
    disagreement: float
    """Hard, at HALF."""
    surest: float
    """The largest logit."""


@dataclass
class GateProblem(Problem):
    """The networks of all exits as one part, their axis first: one hidden layer of ReLU, and one logit.

    Each evaluation is a step of the dual ascent: it says how dear disagreement is until the next one.
    """

    fit: GateRows
    """Rows that the networks learn from."""
    apart: GateRows
    """Rows of other documents, which lambda follows."""
    prices: GatePrices
    risk: float
    """1 - floor."""
    start: Classifier[Weights]
    """Networks that say whether an exit agrees, not far from a gate: begun with random ones, gates ended
    slower at the same floor on other documents."""
    at_floor: FindFloor
    """Of probabilities of the rows apart."""
    seed: int
    decided: list[HardDecisions] = field(default_factory=list)
    """By evaluation."""

    device = torch.device("cpu")
    descent = Descent(
        lambda step, steps: RATE * (1.0 - step / steps),
        moments=(0.9, 0.999),
        weight_decay=WEIGHT_DECAY,
        undecayed=("biases",),
        clipped_norm=math.inf,
        fused=False,
        patience=None,
    )

    def initial(self) -> list[dict[str, Tensor]]:
        """Those to start from: "weights.0", "biases.0", ..."""
        return [
            {
                f"{name}.{layer}": torch.tensor(array)
                for name in NETWORK
                for layer, array in enumerate(getattr(self.start, name))
            }
        ]

    def losses(self, settings: Settings, vocabulary: Tensor | None) -> Callable[[int], LossOf]:
        """The Lagrangian of some rows, a scalar."""
        generator, steps = torch.Generator().manual_seed(self.seed), settings.steps

        def losses_of(step: int) -> LossOf:
            places = torch.randint(len(self.fit), (BATCH,), generator=generator)
            cooling = (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** (step / steps)
            multiplier = self.multiplier(len(self.decided))

            def loss_of(part: int, parameters: Parameters) -> Tensor:
                logits, agrees = (
                    self.logits(parameters, self.fit.states[:, places]),
                    self.fit.agrees[:, places],
                )
                return lagrangian(logits, agrees, self.prices, FIRST_TEMPERATURE * cooling, multiplier)

            return loss_of

        return losses_of

    def logits(self, parameters: Parameters, states: Tensor) -> Tensor:
        """Logits, [exits, rows], of states [exits, rows, hidden]."""
        mean, scale = self._spread
        weights, biases = ([parameters[f"{name}.{layer}"] for layer in range(2)] for name in NETWORK)
        inner = torch.baddbmm(biases[0][:, None], (states - mean) / scale, weights[0]).relu()
        return torch.baddbmm(biases[1][:, None], inner, weights[1])[..., 0]

    @functools.cached_property
    def _spread(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of the features, [exits, 1, hidden] each."""
        return torch.tensor(self.start.mean)[:, None], torch.tensor(self.start.scale)[:, None]

    def multiplier(self, evaluations: int) -> float:
        """Lambda after so many evaluations."""
        found = 1.0
        for decided in self.decided[:evaluations]:
            beyond = (decided.disagreement - self.risk) / self.risk
            found *= math.exp(DUAL_RATE * min(1.0, max(-1.0, beyond)))
        return found

    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """Seconds of a token on the documents apart, at the floor, for a loss; agreement at HALF."""
        decided = self.decide(parts[0])
        self.decided.append(decided)
        return [Evaluation(self.seconds(decided), agreement=1.0 - decided.disagreement, leaving=())]

    @torch.no_grad()
    def decide(self, parameters: Parameters) -> HardDecisions:
        """What the gates decide on the documents apart."""
        logits = self.logits(parameters, self.apart.states)
        hard = expected_outcome((logits >= 0).double(), self.apart.agrees, self.prices)
        return HardDecisions(
            self.at_floor(torch.sigmoid(logits).t().contiguous().numpy()),
            float(hard.disagreement.mean()),
            float(logits.max()),
        )

    def seconds(self, decided: HardDecisions) -> float:
        """Of a token, with the threshold that keeps the floor, if there is one."""
        return self.prices.stay if decided.at_floor is None else decided.at_floor.seconds

    def in_words(self, evaluations: Sequence[Evaluation]) -> str:
        """For a progress bar."""
        saved = 1.0 - evaluations[0].loss / self.prices.plain
        return f"{100 * saved:.1f} % of the time saved at the floor"

    def trained(self, parameters: Parameters, moved_by: float) -> Classifier[Weights]:
        """The trained networks, every logit moved by a number; what was judged is of those to start from."""
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in parameters.items()}
        arrays["biases.1"] += np.float32(moved_by)
        weights, biases = (tuple(arrays[f"{name}.{layer}"] for layer in range(2)) for name in NETWORK)
        return replace(self.start, weights=weights, biases=biases)


def learn_gates(
    problem: GateProblem, *, steps: int | None = None, on_start: Callable[[Progress], OnStep] = unheard
) -> tuple[Classifier[Weights], GateCourse]:
    """Gates for the least expected seconds with at most this disagreement, and how their training went.

    They are the last ones, their logits moved so that the threshold which keeps the floor is 0.5. Choosing
    among steps by the same documents would make them seem better there than they are. steps: by default
    `steps_of` the rows to learn from.
    """
    effort = Effort(steps=steps_of(len(problem.fit)) if steps is None else steps, precision="float32")
    progress = TrainingLoop(problem, effort, GATE).run(on_start)
    gates = progress.weights[0].now
    last = problem.decide(gates)
    moved_by = -last.surest - 1.0 if last.at_floor is None else -_logit(last.at_floor.threshold)
    return problem.trained(gates, moved_by), GateCourse(
        multiplier=problem.multiplier(len(problem.decided) - 1),
        seconds=tuple(map(problem.seconds, problem.decided)),
        disagreement=tuple(decided.disagreement for decided in problem.decided),
    )


def _logit(probability: float) -> float:
    bounded = min(1.0 - SUREST, max(SUREST, probability))
    return math.log(bounded / (1.0 - bounded))


Probabilities = NDArray[np.float32]

CHOSEN_EVERY = 3
"""Of the documents that are not held out, one of so many is for choosing."""

BELOW_RISK = (0.5, 0.75, 1.0)
"""Search risks, in allowed ones, at which the fastest thresholds are kept."""


@dataclass(frozen=True)
class GateJudge:
    """What tokens that leave by one signal cost, as a tuner charges them."""

    shape: ModelShape
    exits: tuple[int, ...]
    """Ascending, below L."""
    heads: Mapping[str, Any]
    """As a trace's request describes them, empty without any."""
    position: float
    """At which tokens are charged."""
    floor: Floor
    pricing: Callable[[Trace], Pricing]
    """Prices of a token of a trace."""

    def trace(self, rows: GateRows, probabilities: Probabilities, signal: str) -> Trace:
        """The rows as a trace of one signal, [rows, exits]; its tokens are 0 where they agree."""
        last = np.ones((len(rows), 1), dtype=np.float32)
        wrong = (~rows.agrees.t().numpy()).astype(np.int32)
        _, document = np.unique(rows.document, return_inverse=True)
        return Trace.from_facts(
            {
                "top1": np.hstack([wrong, np.zeros_like(last, dtype=np.int32)]),
                signal: np.hstack([probabilities, last]),
            },
            document=document.astype(np.int32),
            shape=self.shape,
            exits=np.array([*self.exits, len(self.shape.layers)], dtype=np.int64),
            position=np.full(len(rows), round(self.position), dtype=np.int32),
            provenance={"request": {"heads": dict(self.heads)}},
        )

    def pool(self, rows: GateRows, probabilities: Probabilities, signal: str) -> Pool:
        """The rows, ready to be searched."""
        trace = self.trace(rows, probabilities, signal)
        return Pool(trace, self.floor, self.pricing(trace))

    def prices(self, rows: GateRows) -> GatePrices:
        """Prices of leaving at each exit by its gate, and of staying."""
        nothing = np.zeros((len(rows), len(self.exits)), dtype=np.float32)
        return GatePrices.of(self.pricing(self.trace(rows, nothing, GATE)).costs, self.exits)

    def at_floor(self, rows: GateRows) -> Callable[[Probabilities], AtFloor | None]:
        """Finds the fastest threshold, one for all exits, that keeps the floor for gates on these rows."""

        def found(probabilities: Probabilities) -> AtFloor | None:
            pool = self.pool(rows, probabilities, GATE)
            best = ThresholdFamily(pool, SIGNALS[GATE], [self.floor.risk]).try_set(self.exits)
            if best is None:
                return None
            assert isinstance(best.policy, Threshold), "that is what the family makes"
            return AtFloor(best.policy.value, best.cost)

        return found

    def fastest(self, rows: GateRows, probabilities: Probabilities, signal: str) -> ExitPolicy:
        """The fastest thresholds of a signal at the floor: on every set of exits, alike or one per exit."""
        pool = self.pool(rows, probabilities, signal)
        risk = self.floor.risk
        families = add_thresholds(pool, [SIGNALS[signal]], [risk * share for share in BELOW_RISK])
        add_per_exit(pool, families, risk)
        best: ScoredPolicy | None = pool.fastest(risk)
        return Never() if best is None or best.cost >= pool.pricing.plain else best.policy

    def judged(self, rows: GateRows, probabilities: Probabilities, signal: str, policy: ExitPolicy) -> Judged:
        """What a policy of the signal saves and keeps on rows; agreement is the mean over documents."""
        pool = self.pool(rows, probabilities, signal)
        scored = pool.score(signal, policy)
        plain = pool.pricing.plain
        return Judged(str(policy), 1.0 - scored.risk, scored.cost, 1.0 - scored.cost / plain)


def probabilities_of(classifier: Classifier[Weights], rows: GateRows) -> Probabilities:
    """What the classifiers of all exits say, as a trace and a decoder read them: float32 [rows, exits]."""
    device = torch.device("cpu")
    columns = [classifier.at(place, device)(rows.states[place]) for place in range(len(rows.states))]
    return torch.stack(columns, dim=1).numpy()


def judged_gates(
    gates: Classifier[Weights], multiplier: float, rows: GateRows, prices: GatePrices
) -> Classifier[Weights]:
    """The gates with what held-out rows say of them, exit by exit.

    multiplier: the training's lambda. auroc: of agreement. better_than_chance: whether tokens that leave
    there save more than they lose, at that lambda, by more than chance does in one of twenty.
    """
    from sklearn.metrics import roc_auc_score

    probabilities, agrees = probabilities_of(gates, rows), rows.agrees.numpy()
    arrives = np.ones(len(rows), dtype=np.bool_)
    auroc, better = list[float](), list[bool]()
    for place, leave in enumerate(prices.leave):
        right = int(agrees[place].sum())
        told_apart = min(right, len(rows) - right) >= RAREST_CLASS
        auroc.append(float(roc_auc_score(agrees[place], probabilities[:, place])) if told_apart else math.nan)
        leaves = arrives & (probabilities[:, place] >= HALF)
        gain = (prices.stay - float(leave)) / prices.plain - multiplier * ~agrees[place]
        better.append(gains_surely(np.where(leaves, gain, 0.0), rows.document))
        arrives &= ~leaves
    return replace(gates, auroc=np.array(auroc), better_than_chance=np.array(better))


def chosen_apart(groups: NDArray[np.int64], held_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Documents to choose by: bool [documents], of those that are not held out, one group of so many.

    groups: int64 [documents], see `offramp.workloads.shared_text.text_groups`.
    """
    free = np.unique(groups[~held_out])
    found: NDArray[np.bool_] = np.isin(groups, free[1::CHOSEN_EVERY]) & ~held_out
    return found


SHUT = -20.0
"""The logit of a gate that lets no token leave."""


def reading_at(heads: ExitHeads, exits: Sequence[int]) -> ExitReading[Weights]:
    """What some exits are read through."""
    places = [heads.exits.index(exit) for exit in exits]
    lens, mlp = heads.lens, heads.mlp
    return ExitReading(
        None if lens is None else lens.chosen(places), None if mlp is None else mlp.chosen(places)
    )


def spread(gates: Classifier[Weights], exits: Sequence[int], every: Sequence[int]) -> Classifier[Weights]:
    """Gates of some exits as those of every exit of some heads: at the others no token leaves."""
    if tuple(exits) == tuple(every):
        return gates
    places = [list(every).index(exit) for exit in exits]

    def of(array: NDArray[Any], elsewhere: float) -> NDArray[Any]:
        whole = np.full((len(every), *array.shape[1:]), elsewhere, dtype=array.dtype)
        whole[places] = array
        return whole

    return Classifier(
        mean=of(gates.mean, 0.0),
        scale=of(gates.scale, 1.0),
        weights=tuple(of(array, 0.0) for array in gates.weights),
        biases=(of(gates.biases[0], 0.0), of(gates.biases[1], SHUT)),
        auroc=of(gates.auroc, math.nan),
        base_rate=of(gates.base_rate, 0.0),
        better_than_chance=of(gates.better_than_chance, False),
    )
