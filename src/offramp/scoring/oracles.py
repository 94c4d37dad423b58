"""The exits that an all-knowing policy would choose: bounds that no policy reaches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Skips = NDArray[np.float64]


def first_match(agreement: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Column of the first exit that agrees with the full model: bool [tokens, exits] -> int64 [tokens].

    It overstates savings: a later exit may disagree again. The last exit always agrees.
    """
    return np.asarray(np.argmax(agreement, axis=1), dtype=np.int64)


def saturation(agreement: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Column of the first exit from which on all exits agree: bool [tokens, exits] -> int64 [tokens]."""
    disagrees_from_the_end = ~agreement[:, ::-1]
    last_disagreement = np.argmax(disagrees_from_the_end, axis=1)
    always = ~disagrees_from_the_end.any(axis=1)
    return np.where(always, 0, agreement.shape[1] - last_disagreement).astype(np.int64)


def skip_ratio(columns: NDArray[np.int64], exits: NDArray[np.int64], layers: int) -> Skips:
    """Share of decoder layers that a token skips, (L - l) / L: columns int64 [tokens] -> float64 [tokens]."""
    return np.asarray((1.0 - exits / layers)[columns])
