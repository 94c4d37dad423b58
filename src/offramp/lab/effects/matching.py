"""Which runs count, and what they are compared at: docs/lab/preregistered.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.lab.effects.factors import Signs
from offramp.lab.effects.runs import ARMS, GATE, MOST_ABOVE, Run, Values


@dataclass(frozen=True)
class Block:
    """Runs that are compared, and what they are compared at.

    loss: the largest last loss of the runs that count, measured or not. runs: those of them that were
    measured. matched, last: float64 [runs, endpoints], at that loss and after the last step. not_measured: by
    name what runs lack that others have. below: runs at or below that loss from their first model on, which
    is taken as it is.
    """

    endpoints: tuple[str, ...]
    runs: tuple[Run, ...]
    loss: float
    matched: Values
    last: Values
    not_measured: Mapping[str, str]
    below: tuple[str, ...] = ()

    @property
    def losses(self) -> Values:
        """After the last step, float64 [runs]."""
        return np.array([run.losses[-1] for run in self.runs])

    @property
    def signs(self) -> Signs:
        """Levels of dense runs, int64 [runs, factors]."""
        return np.array([run.signs for run in self.runs], dtype=np.int64)


def left_out(runs: Sequence[Run]) -> dict[str, str]:
    """The runs of a whole study that do not count, by name with the reason."""
    found = {run.name: "it diverged" for run in runs if run.diverged}
    found |= {run.name: "a loss is not finite" for run in runs if not np.isfinite(run.losses).all()}
    longest: dict[tuple[str, str], int] = {}
    for run in runs:
        longest[run.block, run.arm] = max(run.steps[-1], longest.get((run.block, run.arm), 0))
    alike: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if not np.isfinite(run.losses).all():
            continue
        if run.steps[-1] < (steps := longest[run.block, run.arm]):
            found[run.name] = f"it ends after step {run.steps[-1]:,} of {steps:,}"
        elif run.block not in (GATE, "6"):  # sizes differ there, and losses with them
            together = "1" if run.block == "2" else run.block
            alike.setdefault((together, run.arm if run.block in ARMS else run.kind), []).append(run)
    for group in alike.values():
        median = float(np.median([run.losses[-1] for run in group]))
        for run in group:
            if (above := float(run.losses[-1]) - median) > MOST_ABOVE:
                found[run.name] = f"its last loss is {above:.2f} nat above the median"
    return found


def make_block(runs: Sequence[Run], endpoints: Sequence[str], *, last: bool = True) -> Block | None:
    """Runs at the loss that all of them reach; None if none of them was measured.

    runs: those that count. endpoints: of which those that no run has are left out. last: whether endpoints
    are needed after the last step too.
    """
    if not runs:
        return None
    loss = max(float(run.losses[-1]) for run in runs)
    at = np.array([[at_loss(run.losses, run.at(name), loss) for name in endpoints] for run in runs])
    after = np.array([[run.at(name)[-1] for name in endpoints] for run in runs])
    there = np.isfinite(at) & (np.isfinite(after) if last else True)
    kept = there.any(axis=0)
    whole = there[:, kept].all(axis=1)
    if not (kept.any() and whole.any()):
        return None
    names = [name for name, one in zip(endpoints, kept, strict=True) if one]
    lacking = {
        run.name: ", ".join(name for name, one in zip(names, row, strict=True) if not one)
        for run, row in zip(runs, there[:, kept], strict=True)
    }
    counted = [run for run, one in zip(runs, whole, strict=True) if one]
    return Block(
        endpoints=tuple(names),
        runs=tuple(counted),
        loss=loss,
        matched=at[whole][:, kept],
        last=after[whole][:, kept],
        not_measured={name: what for name, what in lacking.items() if what},
        below=tuple(run.name for run in counted if (run.losses <= loss).all()),
    )


def at_loss(losses: Values, values: Values, loss: float) -> float:
    """A value at a validation loss, between two kept models in proportion to their losses.

    Between the first model from which on no loss is above it and the one before; where that is the first of
    all, its own. losses, values: float64 [models]. The last loss may not be above.
    """
    above = np.flatnonzero(losses > loss)
    after = int(above[-1]) + 1 if len(above) else 0
    if after == 0 or losses[after] == loss:
        return float(values[after])
    before = after - 1
    share = (losses[before] - loss) / (losses[before] - losses[after])
    return float(values[before] + share * (values[after] - values[before]))
