"""Which floors so many documents could certify at all."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.tuning.bounds import settle
from offramp.tuning.certifiable import BESIDE_CERTIFYING, certifiable_floors, certifiable_words, documents_for

FLOORS = (0.99, 0.95, 0.9)


@pytest.mark.parametrize(
    ("documents", "floors", "said"),
    [
        (10, (), "can never certify 90 % (25 needed), 95 % (48) or 99 % (234)"),
        (29, (0.9,), "can at best certify 90 % (25 needed), never 95 % (48 needed) or 99 % (234)"),
        (60, (0.95, 0.9), "can at best certify 90 % (25 needed) and 95 % (48), never 99 % (234 needed)"),
        (500, FLOORS, "can at best certify 90 % (25 needed), 95 % (48) and 99 % (234)"),
    ],
)
def test_what_a_text_could_certify(documents: int, floors: tuple[float, ...], said: str) -> None:
    assert certifiable_floors(documents, FLOORS, 0.1) == floors
    assert certifiable_words(documents, FLOORS, 0.1) == said


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("delta", [0.1, 0.1 / 3])
def test_so_many_certify_and_one_less_does_not(floor: float, delta: float) -> None:
    enough = documents_for(floor, delta) - BESIDE_CERTIFYING
    for count in (enough, enough - 1):
        settled = settle(np.zeros(count), 1.0 - floor, delta, count)
        assert (settled is not None and settled.outcome == "certified") == (count == enough)
