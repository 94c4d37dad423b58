"""What is asked of a training of the model itself: which of its weights, and the terms of its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.kit.arguments import settle_fields
from offramp.lab.exits.layer_skip import (
    Curriculum,
    dropout_probabilities,
    enabled_exits,
    exit_weights,
)

Targets = Literal["model", "text"]

MOST_DROPPED, MOST_AHEAD = 0.5, 8


@dataclass(frozen=True)
class Regularisation:
    """A training of the model's own weights so that its exits say early what it says at the end.

    The loss of a step is

        sum over exits l of e(l) (H(target, p_l) + AHEAD_SHARE * mean over k of H(token k ahead, head_lk))
        + keep * KL(original model || p_L)

    lora: rank of what is added to each matrix of the layers, merged when saved; 0: all weights are trained.
    keep: weight of the term that keeps the full-depth output where it was; 0: LayerSkip alone.
    layer_dropout: p_max, the chance of the last layer to be left out at the last step; 0: none.
    curriculum: which exits a step looks at. exit_scale: e_scale, of the exits below L against L.
    targets: what exits learn to say, the original model's distribution or the tokens of the text.
    ahead: tokens that each exit predicts: 1, the next alone; n > 1: the n - 1 behind it, too, through
    linear layers of its own that are thrown away afterwards.

    Raises InputError for what cannot be.
    """

    lora: int = 16
    keep: float = 1.0
    layer_dropout: float = 0.1
    curriculum: Curriculum = "rotational"
    exit_scale: float = 1.0
    targets: Targets = "model"
    ahead: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        settle_fields(self, where=_option)
        self._require_sense()

    def _require_sense(self) -> None:
        _require(self.lora >= 0, f"a rank of {self.lora} cannot be", "lora", "give 16, or 0 for all weights")
        _require(
            0 <= self.keep < math.inf,
            f"the model's own output cannot be kept with a weight of {self.keep:g}",
            "keep",
            "give 1, or 0 to let it go",
        )
        _require(
            0 <= self.layer_dropout <= MOST_DROPPED,
            f"layers cannot be left out with a chance of {self.layer_dropout:g}",
            "layer_dropout",
            f"give 0.1; {MOST_DROPPED:g} at most",
        )
        _require(
            0 < self.exit_scale < math.inf,
            f"exits cannot weigh {self.exit_scale:g}",
            "exit_scale",
            "give a number above 0, such as 1",
        )
        _require(
            1 <= self.ahead <= MOST_AHEAD,
            f"{self.ahead} tokens cannot be predicted at once",
            "ahead",
            f"give 1 to {MOST_AHEAD}",
        )

    def dropout(self, layers: int, step: int, steps: int) -> NDArray[np.float64]:
        """Chance of each layer to be left out at a step of so many, float64 [layers]."""
        return dropout_probabilities(layers, step, steps, self.layer_dropout)

    def weights(self, exits: Sequence[int], layers: int, step: int, steps: int) -> dict[int, float]:
        """e(l) at a step of so many: of those of the exits below L that it looks at, and of L."""
        enabled = enabled_exits(exits, layers, step, steps, self.curriculum)
        return exit_weights(enabled, layers, self.exit_scale)


def _require(holds: bool, what: str, name: str, fix: str) -> None:
    if not holds:
        raise InputError(what, where=_option(name), fix=fix)


def _option(name: str) -> str:
    """A field, and the option of the command that gives it."""
    return f"{name}= (--{name.replace('_', '-')})"
