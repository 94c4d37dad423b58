"""Whether exits belong to a model: the weights that their files hold of it, held against its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.importing.tensors import Tensors

RECOGNISED = "the first rows of weights that lie beside the exits: {}"
UNKNOWN = "nothing but its size"


def check_same_names(model: Model, tensors: Tensors) -> str:
    """The same as `check_same`, of files that name the weights as transformers does."""
    return check_same(model, tensors, model.hf.state_dict())


def check_same(model: Model, tensors: Tensors, weights: Mapping[str, Tensor]) -> str:
    """Refuse a model whose weights are not those that lie beside the exits.

    Of each weight its first row is compared, which training changes; in the less precise of both dtypes.
    weights: of the model, by the files' keys. Those on no device are left out, and all of a model that was
    changed after loading.

    Returns by what the model was recognised. Raises InputError.
    """
    known = {} if model.transforms else {name: own for name, own in weights.items() if not own.is_meta}
    shared = [name for name in known if name in tensors.stored]
    other = [name for name in shared if not _is_same(tensors.first_row(name), known[name])]
    if other:
        raise InputError(
            f"the exits were trained with other weights than those of {model.name}: {other[0]} differs"
            + (f", and {len(other) - 1} more of {len(shared)}" if len(other) > 1 else ""),
            where=str(tensors.where),
            fix="give the model that they were trained for with --model; if its own weights were trained on, "
            "those that lie beside the exits",
        )
    return RECOGNISED.format(len(shared)) if shared else UNKNOWN


def _is_same(stored: Tensor, own: Tensor) -> bool:
    """Whether a stored row is the first of a weight, but for a change of the dtype."""
    row = (own.detach()[:1] if own.dim() else own.detach()).cpu()
    return stored.shape == row.shape and (
        torch.equal(stored.to(row.dtype), row) or torch.equal(stored, row.to(stored.dtype))
    )
