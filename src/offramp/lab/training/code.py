"""The source that decides what a training gives, so that one in a folder outlives changes to all else."""

from __future__ import annotations

from offramp.files import source_fingerprint

COMMON = (
    "lab/training/architecture.py",
    "lab/training/batches.py",
    "lab/training/evaluation.py",
    "lab/training/loop.py",
    "lab/training/state.py",
    "lab/text/folder.py",
    "lab/sealed_tensors.py",
    "models/lab_family.py",
)
OF_KINDS = ("lab/training/kinds.py", "lab/training/objective.py", "lab/training/state_space.py")
GOING_ON = (
    "lab/training/going_on.py",
    "lab/training/early_exit.py",
    "lab/training/instructions.py",
    "lab/exits/layer_pass.py",
    "lab/exits/layer_skip.py",
    "lab/exits/regularisation.py",
)
CODE = {
    "dense": COMMON,
    "mixture": (*COMMON, *OF_KINDS),
    "mamba2": (*COMMON, *OF_KINDS),
    "continued": (*COMMON, *OF_KINDS, *GOING_ON),
}
"""By the kind of a recipe."""


def training_code(kind: str) -> str:
    """Fingerprint of the source that decides the weights, and the losses beside them."""
    return source_fingerprint(*CODE[kind])
