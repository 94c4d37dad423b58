"""What is asked of a training of the model itself: which of its weights, and the terms of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import Count, NotNegative, Positive, Whole
from offramp.kit.request import Options, python_only
from offramp.training.layer_skip import (
    Curriculum,
    dropout_probabilities,
    enabled_exits,
    exit_weights,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Targets = Literal["model", "text"]

MOST_DROPPED, MOST_AHEAD = 0.5, 8


@dataclass(frozen=True)
class Regularisation(Options):
    """A training of the model's own weights so that its exits say early what it says at the end.

    The loss of a step is

        sum over exits l of e(l) (H(target, p_l) + AHEAD_SHARE * mean over k of H(token k ahead, head_lk))
        + keep * KL(original model || p_L)

    Raises InputError for what cannot be.
    """

    lora: Whole = 16
    """Rank of what is added to the layers' matrices, merged when saved; 0: all weights are trained."""
    keep: NotNegative = 1.0
    """Weight of KL(original || trained) at full depth, which keeps the output where it was; 0: LayerSkip
    alone."""
    layer_dropout: Annotated[float, Ge(0), Le(MOST_DROPPED)] = 0.1
    """Chance of the last layer to be left out at the last step, p_max; 0: none."""
    curriculum: Curriculum = "rotational"
    """Exits that a step looks at: rotational, one exit a step; gradual, deepest first; or all."""
    exit_scale: Annotated[Positive, python_only] = 1.0
    """e_scale, of the exits below L against L."""
    targets: Targets = "model"
    """What exits learn: model, the original's distribution; or text, its tokens."""
    ahead: Annotated[Count, Le(MOST_AHEAD)] = 1
    """Tokens that exits learn to predict: 1, the next; n > 1: the n - 1 behind it, too, through linear layers
    of their own that are thrown away afterwards."""

    def __post_init__(self) -> None:
        settle_fields(self, where=_option)

    def dropout(self, layers: int, step: int, steps: int) -> NDArray[np.float64]:
        """Chance of each layer to be left out at a step of so many, float64 [layers]."""
        return dropout_probabilities(layers, step, steps, self.layer_dropout)

    def weights(self, exits: Sequence[int], layers: int, step: int, steps: int) -> dict[int, float]:
        """e(l) at a step of so many: of those of the exits below L that it looks at, and of L."""
        enabled = enabled_exits(exits, layers, step, steps, self.curriculum)
        return exit_weights(enabled, layers, self.exit_scale)


def _option(name: str) -> str:
    """A field, and the option of the command that gives it."""
    return f"{name}= (--{name.replace('_', '-')})"
