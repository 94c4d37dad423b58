"""Where a training stands, in one file that is whole or the one before it: from there it goes on alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.kit.sealed_tensors import SealedTensors
from offramp.training.divergence import Precision
from offramp.training.evaluation import Evaluation

FIRST, SECOND, BEST = "first", "second", "best"
"""Moments of the gradient, and the weights of the least held-out loss."""

VOCABULARY = "vocabulary"


@dataclass(frozen=True)
class Settings:
    """What was decided before the first step, minutes by timing this machine, and holds from then on.

    every: steps from one evaluation to the next. threads, device: the order of sums depends on them.
    """

    steps: int
    every: int
    precision: Precision
    threads: int
    device: str


@dataclass(frozen=True)
class Evaluated:
    """Held-out figures after so many steps, of every exit. seconds: of training until then."""

    step: int
    seconds: float
    exits: tuple[Evaluation, ...]


@dataclass
class Weights:
    """One exit's: what is trained, AdamW's moments of it, and the best so far with its held-out loss."""

    now: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    best: dict[str, Tensor]
    best_loss: float

    @classmethod
    def of(cls, initial: Mapping[str, Tensor]) -> Weights:
        """Before the first step."""
        zeros = [{name: torch.zeros_like(one) for name, one in initial.items()} for _ in range(2)]
        copies = [{name: one.clone() for name, one in initial.items()} for _ in range(2)]
        return cls(copies[0], zeros[0], zeros[1], copies[1], float("inf"))


@dataclass(kw_only=True)
class Steps:
    """How far a training is.

    stale: evaluations since any exit was at its best. stopped: why no further step is taken, "" while there
    are some. seconds: of training so far.
    """

    step: int = 0
    stale: int = 0
    stopped: str = ""
    seconds: float = 0.0
    history: list[Evaluated] = field(default_factory=list)


@dataclass
class Progress(Steps):
    """Where a training stands. vocabulary: int64 tokens of the loss, None for all."""

    settings: Settings
    weights: list[Weights]
    vocabulary: Tensor | None


@dataclass
class _Header(Steps):
    """Of a `Progress`, all that is not a tensor. key: of the training. best_loss: in hexadecimal; it may be
    infinite."""

    key: str
    settings: Settings
    best_loss: Sequence[str]


FILE = SealedTensors(_Header, "offramp_training", "the checkpoint {name} is damaged")


def write_checkpoint(path: Path, progress: Progress, key: str) -> None:
    """Write it in one step (see `offramp.files.write_atomically`). key: of the training it belongs to."""
    tensors: dict[str, Tensor] = {}
    for place, weights in enumerate(progress.weights):
        for part, arrays in (
            ("now", weights.now),
            (FIRST, weights.first),
            (SECOND, weights.second),
            (BEST, weights.best),
        ):
            tensors |= {f"{place}.{part}.{name}": one.detach().cpu() for name, one in arrays.items()}
    if progress.vocabulary is not None:
        tensors[VOCABULARY] = progress.vocabulary.cpu()
    header = _Header(
        key,
        progress.settings,
        [weights.best_loss.hex() for weights in progress.weights],
        **_steps(progress),
    )
    FILE.write(path, header, {name: one.numpy() for name, one in tensors.items()})


def read_checkpoint(path: Path, key: str, device: torch.device) -> Progress | None:
    """The progress that was written, its tensors on a device; None if there is none of this training.

    Raises DamagedFileError if its bytes changed.
    """
    if not path.is_file():
        return None
    fix = "remove it: the same command trains again from the start"
    header, arrays = FILE.read(path, fix)
    if header.key != key:
        return None
    # Copied: what is computed with must lie as freshly made tensors do, or last digits may differ.
    tensors = {name: torch.from_numpy(array).clone() for name, array in arrays.items()}
    try:
        losses = [float.fromhex(loss) for loss in header.best_loss]
    except (ValueError, OverflowError) as error:  # sealed, but by another program
        raise FILE.foreign(path, error, fix) from error
    weights = []
    for place, loss in enumerate(losses):
        parts = [_under(tensors, f"{place}.{part}.", device) for part in ("now", FIRST, SECOND, BEST)]
        weights.append(Weights(parts[0], parts[1], parts[2], parts[3], loss))
    return Progress(
        settings=header.settings,
        weights=weights,
        vocabulary=tensors[VOCABULARY].to(device) if VOCABULARY in tensors else None,
        **_steps(header),
    )


def _steps(of: Steps) -> dict[str, Any]:
    """How far a training is, by name."""
    return {one.name: getattr(of, one.name) for one in fields(Steps)}


def _under(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one.to(device)
        for name, one in sorted(tensors.items())
        if name.startswith(prefix)
    }
