"""How exits below L are read where not by the logit lens: a lens, a network, a norm and an output head.

State h of an exit, lens, network, norm, output head, logits: each of them may be absent, and the model's own
norm and head stand for those that are. The first axis of every array is the exits; of a network or an output
head it may be 1: all exits share that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.heads.arrays import Reader, Weights, at_places, named_arrays
from offramp.kit.sealed_tensors import Arrays

LENS_ARRAYS = ("weight", "inward", "outward", "bias", "explained", "penalty")
MLP_ARRAYS = ("norm", "gate", "up", "down")
OUTPUT_ARRAYS = ("weight", "bias", "norm_weight", "norm_bias")


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Linear maps that are whole, or U V^T, a product of two narrow matrices.

    inward: V^T, float32 [..., rank, hidden], and outward: U, float32 [..., hidden, rank]; None of whole ones.
    """

    NOT_KEPT: ClassVar[tuple[str, ...]] = ("weight", "bias", "inward", "outward")

    inward: Weights | None = None
    outward: Weights | None = None

    @property
    def rank(self) -> int | None:
        """Columns of U and V; None where they are whole."""
        return None if self.inward is None else int(self.inward.shape[-2])


@dataclass(frozen=True)
class LinearLens(LowRank):
    """Per exit below L an affine map, an estimate of the last layer's output: h -> A h + b.

    A is whole, or the identity and a change of low rank: h -> h + U V^T h + b.

    weight: A, float32 [exits, hidden, hidden] (rows are outputs), None in low rank, where the first axis of
    inward and outward is the exits. bias: float32 [exits, hidden]. explained: float64 [exits], share of the
    variance of h_L explained on held-out documents. penalty: float64 [exits], the ridge penalty chosen there.
    Both are None for a lens that offramp did not fit.
    """

    weight: Weights | None
    bias: Weights
    explained: NDArray[np.float64] | None = None
    penalty: NDArray[np.float64] | None = None

    @property
    def hidden(self) -> int:
        """Numbers of a state."""
        return int(self.bias.shape[-1])

    def at(self, places: Sequence[int]) -> LinearLens:
        """Of some of its exits, in their order, without how well they were fitted."""

        def chosen(array: Weights | None) -> Weights | None:
            return None if array is None else array[list(places)]

        return LinearLens(
            weight=chosen(self.weight),
            bias=self.bias[list(places)],
            inward=chosen(self.inward),
            outward=chosen(self.outward),
        )

    def arrays(self) -> Arrays:
        """Every array under the name it has in a file."""
        return named_arrays("lens", self, LENS_ARRAYS)


Array = TypeVar("Array")


@dataclass(frozen=True)
class GatedNetwork(Generic[Array]):
    """A residual gated network: x -> x + W_down (silu(W_gate n(x)) * W_up n(x)).

    n(x) = norm * x / sqrt(mean(x^2) + epsilon): SwiGLU (arXiv 2002.05202, equation 6) behind an RMS norm
    (arXiv 1910.07467, equation 4). adds_to_normed: whether the network's output is added to n(x) instead of
    x, as Balcony's exits without attention have it.
    """

    NOT_KEPT: ClassVar[tuple[str, ...]] = MLP_ARRAYS

    norm: Array
    gate: Array
    up: Array
    down: Array
    epsilon: float = 1e-6
    adds_to_normed: bool = False


@dataclass(frozen=True)
class ExitMlp(GatedNetwork[Weights]):
    """Per exit below L a gated network, behind the lens if there is one; or one for all exits.

    x is what the lens gives, or the exit's state. Exits that share it differ by their lenses, whose biases
    are what tells it where it is.

    norm: float32 [exits, hidden]. gate, up: float32 [exits, units, hidden]. down: float32 [exits, hidden,
    units]. The first axis is 1 where all exits share it.
    """

    @property
    def units(self) -> int:
        """Of the hidden layer."""
        return int(self.gate.shape[1])

    def at(self, places: Sequence[int]) -> ExitMlp:
        """Of some of its exits, in their order."""
        arrays: dict[str, Any] = {name: at_places(getattr(self, name), places) for name in MLP_ARRAYS}
        return replace(self, **arrays)

    def arrays(self) -> Arrays:
        """Every array under the name it has in a file."""
        return named_arrays("mlp", self, MLP_ARRAYS)

    def header(self) -> dict[str, Any]:
        """All that is not an array, as JSON values."""
        normed = {"adds_to_normed": True} if self.adds_to_normed else {}
        return {"units": self.units, "epsilon": self.epsilon, **normed}


NormKind = Literal["model", "rms", "layer", "none"]

NORM_ARRAYS: dict[str, tuple[str, ...]] = {
    "model": (),
    "rms": ("norm_weight",),
    "layer": ("norm_weight", "norm_bias"),
    "none": (),
}
"""Arrays that a norm may bring with it, the first of which it must."""


@dataclass(frozen=True)
class OutputHeads:
    """Per exit below L a norm and an output head that are not both the model's: h -> W norm(h) + b.

    h is what comes before: the exit's state, or what lens and network make of it. What the model does to its
    logits follows. As EE-LLM (arXiv 2312.04916: exit norm, output weights tied or untied) and others have it.

    weight: float32 [exits, vocabulary, hidden], or [1, vocabulary, hidden] of one head that all exits share
    and the model does not; None: the model's own output head. bias: float32 [exits or 1, vocabulary], None
    without one. norm: "model" (the model's own final norm), "rms" (arXiv 1910.07467, section 3), "layer"
    (arXiv 1607.06450, section 3) or "none". norm_weight, norm_bias: float32 [exits, hidden] of "rms" and
    "layer", None where there is none. epsilon: added under the root.
    """

    NOT_KEPT: ClassVar[tuple[str, ...]] = OUTPUT_ARRAYS

    weight: Weights | None
    bias: Weights | None = None
    norm: NormKind = "model"
    norm_weight: Weights | None = None
    norm_bias: Weights | None = None
    epsilon: float | None = None

    def arrays(self) -> Arrays:
        """Every array under the name it has in a file."""
        return named_arrays("output", self, OUTPUT_ARRAYS)

    def header(self) -> dict[str, Any]:
        """All that is not an array, as JSON values."""
        absent = [name for name in OUTPUT_ARRAYS if getattr(self, name) is None]
        return {"norm": self.norm, "epsilon": self.epsilon, "absent": absent}


def read_lens(reader: Reader, header: Mapping[str, Any]) -> LinearLens | None:
    """The lens that a header speaks of."""
    if not header["lens"]:
        return None
    hidden, rank = int(header["model"]["hidden_size"]), header.get("lens_rank")
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= hidden):
        raise reader.refused(f"a lens of rank {rank!r}, which is not 1 to {hidden}")
    return LinearLens(
        weight=reader.take("lens.weight", (hidden, hidden)) if rank is None else None,
        inward=None if rank is None else reader.take("lens.inward", (rank, hidden)),
        outward=None if rank is None else reader.take("lens.outward", (hidden, rank)),
        bias=reader.take("lens.bias", (hidden,)),
        explained=reader.take_if_there("lens.explained", (), np.float64),
        penalty=reader.take_if_there("lens.penalty", (), np.float64),
    )


def read_mlp(reader: Reader, header: Mapping[str, Any]) -> ExitMlp | None:
    """The networks that a header speaks of."""
    described = header.get("mlp")
    if described is None:
        return None
    hidden, units, epsilon = int(header["model"]["hidden_size"]), described["units"], described["epsilon"]
    if not (isinstance(units, int) and units >= 1):
        raise reader.refused(f"networks of {units!r} units, which is not 1 or more")
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        raise reader.refused(f"the norm's epsilon is {epsilon!r}, not a number above 0 and below 1")
    shapes = {"norm": (hidden,), "gate": (units, hidden), "up": (units, hidden), "down": (hidden, units)}
    arrays = {name: reader.take_shared(f"mlp.{name}", shape) for name, shape in shapes.items()}
    return ExitMlp(epsilon=epsilon, adds_to_normed=described.get("adds_to_normed") is True, **arrays)


def read_output(reader: Reader, header: Mapping[str, Any]) -> OutputHeads | None:
    """The norms and output heads that a header speaks of."""
    described = header.get("output")
    if described is None:
        return None
    hidden, vocabulary = (int(header["model"][name]) for name in ("hidden_size", "vocabulary_size"))
    shapes = {
        "weight": (vocabulary, hidden),
        "bias": (vocabulary,),
        "norm_weight": (hidden,),
        "norm_bias": (hidden,),
    }
    norm, epsilon = described["norm"], described["epsilon"]
    if norm not in NORM_ARRAYS:
        raise reader.refused(f"no norm {norm!r}; there are: {', '.join(NORM_ARRAYS)}")
    if NORM_ARRAYS[norm] and not (isinstance(epsilon, float) and 0 <= epsilon < 1):
        raise reader.refused(f"the norm's epsilon is {epsilon!r}, not a number from 0 up to 1")
    given = {name: shape for name, shape in shapes.items() if name not in described["absent"]}
    stray = [name for name in given if name.startswith("norm_") and name not in NORM_ARRAYS[norm]]
    if stray or ("norm_weight" in NORM_ARRAYS[norm] and "norm_weight" not in given):
        raise reader.refused(f"a {norm} norm takes {', '.join(NORM_ARRAYS[norm]) or 'no weights'}")
    if "weight" not in given and (norm == "model" or "bias" in given):
        raise reader.refused("without an output head they must bring a norm, and no bias of logits")
    arrays = {
        name: (reader.take if name.startswith("norm_") else reader.take_shared)(f"output.{name}", shape)
        for name, shape in given.items()
    }
    return OutputHeads(**{"weight": None, **arrays}, norm=norm, epsilon=epsilon)
