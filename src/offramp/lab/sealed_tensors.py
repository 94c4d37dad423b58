"""A file of tensors with a header and the SHA-256 of both: whole, or the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.errors import DamagedFileError
from offramp.files import canonical_json, parse_json, write_atomically
from offramp.tracing.heads_arrays import seal_of

HEADER = "offramp_training"
SEAL = "sha256"


def write_sealed(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both in one step (see `offramp.files.write_atomically`). header: as JSON has it."""
    from safetensors.torch import save_file

    kept = {SEAL: _seal(header, tensors), **header}
    metadata = {HEADER: canonical_json(kept)}
    write_atomically(
        path, lambda temporary: save_file(dict(tensors), temporary, metadata=metadata), apart=True
    )


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Header and tensors that were written, on the processor; None where there is no file.

    Raises DamagedFileError if its bytes changed.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[HEADER])
            # Copied: what is computed with must lie as freshly made tensors do, or last digits may differ.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        seal = header.pop(SEAL)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "it is not what offramp writes") from error
    if seal != _seal(header, tensors):
        raise _damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    return header, tensors


def _seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return seal_of(header, {name: one.numpy() for name, one in tensors.items()})


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"the checkpoint {path.name} is damaged: {why}",
        where=str(path),
        fix="remove it: the same command trains again from the start",
    )
