"""Where a training from scratch stands, in one file: from there it goes on to the same weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn, optim

from offramp.lab.sealed_tensors import read_sealed, write_sealed
from offramp.lab.training.record import Evaluated, Settings
from offramp.records.typed import from_json, to_json

KEY = "key"
WEIGHT, FIRST, SECOND = "weight", "first", "second"
MOMENTS = {FIRST: "exp_avg", SECOND: "exp_avg_sq"}
"""As AdamW names them."""


@dataclass
class Progress:
    """Where a training stands, but for its tensors.

    losses: sum of the steps' losses since the last evaluation. stopped: why no further step is taken, ""
    while there are some. seconds: of training so far.
    """

    settings: Settings
    step: int = 0
    losses: float = 0.0
    stopped: str = ""
    diverged: bool = False
    seconds: float = 0.0
    history: list[Evaluated] = field(default_factory=list)


def write_state(
    path: Path, key: str, progress: Progress, model: nn.Module, optimiser: optim.Optimizer
) -> None:
    """Write it in one step. key: of the training it belongs to."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[f"{WEIGHT}.{name}"] = weight.detach().cpu()
        for part, theirs in MOMENTS.items():
            if weight in optimiser.state:
                tensors[f"{part}.{name}"] = optimiser.state[weight][theirs].cpu()
    write_sealed(path, {KEY: key, **to_json(progress), "losses": progress.losses.hex()}, tensors)


def read_state(path: Path, key: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """Progress and tensors that were written, None if there is none of this training.

    Raises DamagedFileError if its bytes changed.
    """
    found = read_sealed(path)
    if found is None or found[0][KEY] != key:
        return None
    header, tensors = found
    header["losses"] = float.fromhex(header["losses"])
    return from_json(Progress, header), tensors


def put_state(tensors: dict[str, Tensor], step: int, model: nn.Module, optimiser: optim.Optimizer) -> None:
    """Give a model and its optimiser the tensors that were read."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[f"{WEIGHT}.{name}"])
            if f"{FIRST}.{name}" in tensors:
                moments = {
                    theirs: tensors[f"{part}.{name}"].to(weight.device) for part, theirs in MOMENTS.items()
                }
                # As AdamW makes it: its fused kernel reads the count where the weight lies.
                taken = torch.tensor(float(step), device=weight.device)
                optimiser.state[weight] = {"step": taken, **moments}
