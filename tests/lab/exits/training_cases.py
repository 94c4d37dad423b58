"""What tests of trainings share: two trainings held against each other to the last bit."""

from __future__ import annotations

import numpy as np

from offramp.lab.exits.train import TrainedExits


def arrays(one: TrainedExits) -> dict[str, np.ndarray]:
    return one.heads.arrays()


def assert_same(one: TrainedExits, other: TrainedExits) -> None:
    """To the last bit."""
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert one.heads.fingerprint == other.heads.fingerprint
