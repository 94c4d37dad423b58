"""Where a model comes from: a checkpoint folder that is ready to load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offramp.models.identity import ModelIdentity


@dataclass(frozen=True)
class Source:
    """A checkpoint folder in safetensors, ready to load, and who it is."""

    name: str
    folder: Path
    identity: ModelIdentity
