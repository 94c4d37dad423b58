"""Parts of exit heads: what an exit is read through and judged by, in a file, in training and at work.

State h of an exit, lens, network, norm, output head, logits: each of them may be absent, and the model's own
norm and head stand for those that are. Classifiers look at the state or the logits; K,V maps say what skipped
layers are given.

A part is one class. As heads hold it, its arrays are numpy's, with the exits for a first axis, which is 1
where all exits share a network or an output head. One exit's part, by `at`, holds tensors on a device: what
training optimises, and what traces and decoding call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.kit.sealed_tensors import Arrays

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Weights = NDArray[np.float32]
Array = TypeVar("Array")
"""numpy's, of some exits, or a tensor, of one."""


@dataclass(frozen=True, kw_only=True)
class HeadPart(Generic[Array]):
    """Arrays by the names that they have in a file behind PREFIX; those that may be absent are then None."""

    PREFIX: ClassVar[str]
    AXES: ClassVar[Mapping[str, str]]
    """The axes of one exit's array by its name: h for numbers of a hidden state, r for a rank, u for units of
    a network, v for the vocabulary, l for deeper layers."""
    JUDGED: ClassVar[tuple[str, ...]] = ()
    """Float64 arrays that say how well a part was fitted; None where that is not known."""

    def arrays(self, prefix: str | None = None) -> Arrays:
        """Every array under the name it has in a file. prefix: in the place of PREFIX."""
        names = (*self.AXES, *self.JUDGED)
        return {f"{prefix or self.PREFIX}.{name}": array for name, array in self.given(names).items()}

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of some arrays that are there, by name."""
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def tensors(self, place: int, device: torch.device) -> dict[str, Any]:
        """One exit's arrays as tensors, by name; what all exits share is in one place."""
        return {
            name: tensor_of(array[place if len(array) > 1 else 0]).to(device)
            for name, array in self.given(self.AXES).items()
        }

    def chosen(self: Part, places: Sequence[int]) -> Part:
        """Of some exits, in their order, without how well they were fitted; what is shared stays so."""
        arrays = self.given(self.AXES).items()
        some: dict[str, Any] = {name: a[list(places)] if len(a) > 1 else a for name, a in arrays}
        return replace(self, **some, **dict.fromkeys(self.JUDGED))


Part = TypeVar("Part", bound=HeadPart[Any])


def tensor_of(array: NDArray[Any]) -> Tensor:
    """The array as a tensor; read-only memory is copied, since torch cannot promise to leave it alone."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def stacked(parts: Sequence[Part]) -> Part:
    """Parts of one exit each, of tensors or arrays, as one of all these exits; settings are the first's."""

    def together(values: Sequence[Any]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(together(of_layer) for of_layer in zip(*values, strict=True))
        if hasattr(values[0], "detach"):
            return np.stack([value.detach().float().cpu().numpy() for value in values])
        return np.stack(values) if hasattr(values[0], "shape") else values[0]

    names = [field.name for field in fields(parts[0])]
    return replace(parts[0], **{name: together([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True)
class LowRank(HeadPart[Array]):
    """Linear maps that are whole, or U V^T, a product of two narrow matrices.

    inward: V^T [..., rank, hidden], and outward: U [..., hidden, rank]; None of whole ones.
    """

    inward: Array | None = None
    outward: Array | None = None

    @property
    def rank(self) -> int | None:
        """Columns of U and V; None where they are whole."""
        inward: Any = self.inward
        return None if inward is None else int(inward.shape[-2])


@dataclass(frozen=True, kw_only=True)
class Lens(LowRank[Array]):
    """Per exit below L an affine map, an estimate of the last layer's output: h -> A h + b.

    A is whole, or the identity and a change of low rank: h -> h + U V^T h + b (tuned lens, arXiv 2303.08112,
    section 3).

    weight: A, float32 [exits, hidden, hidden] (rows are outputs), None in low rank. bias: float32
    [exits, hidden]. explained: float64 [exits], share of the variance of h_L explained on held-out documents.
    penalty: float64 [exits], the ridge penalty chosen there. Both are None for a lens that was not fitted.
    """

    PREFIX: ClassVar[str] = "lens"
    AXES: ClassVar[Mapping[str, str]] = {"weight": "hh", "inward": "rh", "outward": "hr", "bias": "h"}
    JUDGED: ClassVar[tuple[str, ...]] = ("explained", "penalty")
    NOT_KEPT: ClassVar[tuple[str, ...]] = tuple(AXES)

    bias: Array
    weight: Array | None = None
    explained: NDArray[np.float64] | None = None
    penalty: NDArray[np.float64] | None = None

    def at(self: Lens[Weights], place: int, device: torch.device) -> Lens[Tensor]:
        """One exit's."""
        return Lens(**self.tensors(place, device))

    def __call__(self: Lens[Tensor], rows: Tensor) -> Tensor:
        """Of rows [rows, features] in float32."""
        if self.weight is not None:
            return self.bias.addmm(rows, self.weight.t())
        assert self.inward is not None, "a lens is whole or has both factors"
        assert self.outward is not None, "a lens is whole or has both factors"
        return (rows + self.bias).addmm(rows @ self.inward.t(), self.outward.t())


@dataclass(frozen=True, kw_only=True)
class GatedNetwork(HeadPart[Array]):
    """A residual gated network per exit, or one for all: x -> x + W_down (silu(W_gate n(x)) * W_up n(x)).

    n(x) = norm * x / sqrt(mean(x^2) + epsilon): SwiGLU (arXiv 2002.05202, equation 6) behind an RMS norm
    (arXiv 1910.07467, equation 4). x is what the lens gives, or the exit's state. Exits that share it differ
    by their lenses, whose biases are what tells it where it is.

    norm: float32 [exits, hidden]. gate, up: float32 [exits, units, hidden]. down: float32 [exits, hidden,
    units]. adds_to_normed: whether the network's output is added to n(x) instead of x, as Balcony's exits
    without attention have it.
    """

    PREFIX: ClassVar[str] = "mlp"
    AXES: ClassVar[Mapping[str, str]] = {"norm": "h", "gate": "uh", "up": "uh", "down": "hu"}
    NOT_KEPT: ClassVar[tuple[str, ...]] = tuple(AXES)

    norm: Array
    gate: Array
    up: Array
    down: Array
    epsilon: float = 1e-6
    adds_to_normed: bool = False

    @property
    def units(self) -> int:
        """Of the hidden layer."""
        gate: Any = self.gate
        return int(gate.shape[-2])

    def header(self) -> dict[str, Any]:
        """All that is not an array, as JSON values."""
        normed = {"adds_to_normed": True} if self.adds_to_normed else {}
        return {"units": self.units, "epsilon": self.epsilon, **normed}

    def at(self: GatedNetwork[Weights], place: int, device: torch.device) -> GatedNetwork[Tensor]:
        """One exit's."""
        tensors = self.tensors(place, device)
        return GatedNetwork(**tensors, epsilon=self.epsilon, adds_to_normed=self.adds_to_normed)

    def __call__(self: GatedNetwork[Tensor], rows: Tensor) -> Tensor:
        """Of rows [rows, features] in float32."""
        from torch.nn import functional

        normed = functional.rms_norm(rows, rows.shape[-1:], self.norm, self.epsilon)
        carried = normed if self.adds_to_normed else rows
        inner = functional.silu(normed @ self.gate.t()) * (normed @ self.up.t())
        return carried.addmm(inner, self.down.t())


@dataclass(frozen=True)
class ExitReading(Generic[Array]):
    """What states go through before the final norm: a lens, a network, or one after the other."""

    lens: Lens[Array] | None = None
    mlp: GatedNetwork[Array] | None = None

    def at(self: ExitReading[Weights], place: int, device: torch.device) -> ExitReading[Tensor]:
        """One exit's."""
        lens, mlp = self.lens, self.mlp
        return ExitReading(
            None if lens is None else lens.at(place, device), None if mlp is None else mlp.at(place, device)
        )

    def __call__(self: ExitReading[Tensor], rows: Tensor) -> Tensor:
        """What the final norm is given of rows [rows, features]: in their dtype, computed in float32."""
        seen = rows.float()
        if self.lens is not None:
            seen = self.lens(seen)
        if self.mlp is not None:
            seen = self.mlp(seen)
        return seen.to(rows.dtype)


NormKind = Literal["model", "rms", "layer", "none"]

NORM_ARRAYS: dict[str, tuple[str, ...]] = {
    "model": (),
    "rms": ("norm_weight",),
    "layer": ("norm_weight", "norm_bias"),
    "none": (),
}
"""Arrays that a norm may bring with it, the first of which it must."""


@dataclass(frozen=True, kw_only=True)
class OwnHead(HeadPart[Array]):
    """Per exit below L a norm and an output head that are not both the model's: h -> W norm(h) + b.

    h is what comes before: the exit's state, or what lens and network make of it. What the model does to its
    logits follows. As EE-LLM (arXiv 2312.04916: exit norm, output weights tied or untied) and others have it.

    weight: float32 [exits, vocabulary, hidden], or [1, vocabulary, hidden] of one head that all exits share
    and the model does not; None: the model's own output head. bias: float32 [exits or 1, vocabulary], None
    without one. norm: "model" (the model's own final norm), "rms" (arXiv 1910.07467, section 3), "layer"
    (arXiv 1607.06450, section 3) or "none". norm_weight, norm_bias: float32 [exits, hidden] of "rms" and
    "layer", None where there is none. epsilon: added under the root.
    """

    PREFIX: ClassVar[str] = "output"
    AXES: ClassVar[Mapping[str, str]] = {"weight": "vh", "bias": "v", "norm_weight": "h", "norm_bias": "h"}
    NOT_KEPT: ClassVar[tuple[str, ...]] = tuple(AXES)

    weight: Array | None = None
    bias: Array | None = None
    norm: NormKind = "model"
    norm_weight: Array | None = None
    norm_bias: Array | None = None
    epsilon: float | None = None

    def header(self) -> dict[str, Any]:
        """All that is not an array, as JSON values."""
        absent = [name for name in self.AXES if getattr(self, name) is None]
        return {"norm": self.norm, "epsilon": self.epsilon, "absent": absent}

    @property
    def shares_head(self: OwnHead[Weights]) -> bool:
        """Whether all exits have one output head."""
        weight, bias = self.weight, self.bias
        return weight is not None and len(weight) == 1 and (bias is None or len(bias) == 1)

    def at(self: OwnHead[Weights], place: int, device: torch.device) -> OwnHead[Tensor]:
        """One exit's."""
        return OwnHead(**self.tensors(place, device), norm=self.norm, epsilon=self.epsilon)

    def normed(self: OwnHead[Tensor], hidden: Tensor) -> Tensor:
        """Its own norm over the last axis, computed in float32 and given in the dtype of its input."""
        from torch.nn import functional

        assert self.epsilon is not None, "checked when it was read"
        wide, sizes = hidden.float(), hidden.shape[-1:]
        if self.norm == "rms":
            return functional.rms_norm(wide, sizes, self.norm_weight, self.epsilon).to(hidden.dtype)
        normed = functional.layer_norm(wide, sizes, self.norm_weight, self.norm_bias, self.epsilon)
        return normed.to(hidden.dtype)


@dataclass(frozen=True, kw_only=True)
class Classifier(HeadPart[Array]):
    """A classifier of features, one linear layer or a network with one hidden layer (ReLU).

    mean, scale: float32 [exits, features], of the standardised features (x - mean) / scale. weights: one
    array [exits, features, outputs] per layer; biases: one [exits, outputs] per layer; the last is
    the logit of the probability alone. auroc: float64 [exits], on held-out documents, NaN where a class was
    too rare. base_rate: float64 [exits], share of positive labels among the documents it was fitted on.
    better_than_chance: bool [exits], whether the log loss on held-out documents beats the base rate's by more
    than chance does in one of twenty. Where a class was too rare the weights are 0: it says the base rate.
    """

    AXES: ClassVar[Mapping[str, str]] = {"mean": "f", "scale": "f"}
    JUDGED: ClassVar[tuple[str, ...]] = ("auroc", "base_rate", "better_than_chance")
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("mean", "scale", "weights", "biases")

    mean: Array
    scale: Array
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    auroc: NDArray[np.float64]
    base_rate: NDArray[np.float64]
    better_than_chance: NDArray[np.bool_]

    def arrays(self, prefix: str | None = None) -> Arrays:
        """Those of its layers last: "correctness.weights.0"."""
        layers: dict[str, Any] = {}
        for number, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
            layers |= {f"{prefix}.weights.{number}": weights, f"{prefix}.biases.{number}": biases}
        return super().arrays(prefix) | layers

    def at(self: Classifier[Weights], place: int, device: torch.device) -> Classifier[Tensor]:
        """One exit's."""
        return Classifier(
            **self.tensors(place, device),
            weights=tuple(tensor_of(layer[place]).to(device) for layer in self.weights),
            biases=tuple(tensor_of(layer[place]).to(device) for layer in self.biases),
            auroc=self.auroc[place],
            base_rate=self.base_rate[place],
            better_than_chance=self.better_than_chance[place],
        )

    def __call__(self: Classifier[Tensor], features: Tensor) -> Tensor:
        """Probability, float32 [rows], of features [rows, features]."""
        # Not folded into the first layer: with large means that would lose digits, and so change decisions.
        values = (features.float() - self.mean) / self.scale
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = bias.addmm(values.relu() if place else values, weight)
        return values.squeeze(-1).sigmoid()


@dataclass(frozen=True, kw_only=True)
class ExitMaps(LowRank[Array]):
    """The K,V maps of one exit e < L - 1, to the output of each layer l = e + 1..L - 1: the axis "layers".

    h_l = h + D_l (h - centre) + bias_l, h being the exit's hidden state: the input of layer l + 1 but for
    what a linear map cannot say. D_l is whole, or of low rank with one V for all layers: D_l = U_l V^T.

    change: D, float32 [layers, hidden, hidden] (rows are outputs), None in low rank. inward has no
    axis of layers, outward has it first; columns stand from the most to the least that they explain. centre:
    float32 [hidden]. bias: float32 [layers, hidden]. explained: float64 [ranks, layers], share of the
    held-out variance of h_l - h, each token's over the mean square of its h, that the first columns explain:
    row r - 1 of rank r; one row where D is whole. penalty: of the ridge regression.
    """

    AXES: ClassVar[Mapping[str, str]] = {
        "centre": "h", "bias": "lh", "change": "lhh", "inward": "rh", "outward": "lhr",
    }  # fmt: skip
    READ_OFF: ClassVar[tuple[str, ...]] = ("rank", "bytes", "explained_by_all")
    NOT_KEPT: ClassVar[tuple[str, ...]] = (*AXES, "explained")
    JUDGED: ClassVar[tuple[str, ...]] = ("explained",)

    centre: Array
    bias: Array
    explained: NDArray[np.float64]
    penalty: float
    change: Array | None = None

    @property
    def explained_by_all(self) -> NDArray[np.float64]:
        """What all columns explain of each layer: float64 [layers]."""
        shares: NDArray[np.float64] = self.explained[-1]
        return shares

    @property
    def bytes(self) -> int:
        """Of all that is needed to apply the maps."""
        return sum(array.nbytes for array in self.given(self.AXES).values())

    def truncated(self: ExitMaps[Weights], rank: int) -> ExitMaps[Weights]:
        """The first `rank` columns, or all there are if they are fewer.

        Raises InputError for maps that are whole, whose columns have no order, or a rank below 1.
        """
        if self.inward is None or self.outward is None:
            raise InputError(
                "K,V maps that are whole have no columns to leave out",
                where="K,V maps",
                fix="fit them in low rank, up to the hidden size: --kv-rank N",
            )
        if rank < 1:
            raise InputError(f"K,V maps of rank {rank} are not possible", fix="give 1 or more")
        return replace(
            self,
            inward=self.inward[:rank],
            outward=self.outward[..., :rank],
            explained=self.explained[:rank],
        )

    def on(self: ExitMaps[Weights], device: torch.device) -> ExitMaps[Tensor]:
        """On a device; nothing is copied if it is the one where the arrays lie."""
        tensors: dict[str, Any] = self.given(self.AXES)
        return ExitMaps(
            **{name: tensor_of(array).to(device) for name, array in tensors.items()},
            explained=self.explained,
            penalty=self.penalty,
        )

    def __call__(self: ExitMaps[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        """The output of each deeper layer [rows, hidden] for rows [rows, hidden], float32.

        All layers are one product, or one behind V.
        """
        values, deeper = rows - self.centre, self.change
        if self.inward is not None:
            values, deeper = values @ self.inward.t(), self.outward
        assert deeper is not None, "maps are whole or have both factors"
        changes = self.bias.flatten().addmm(values, deeper.reshape(-1, deeper.shape[-1]).t())
        states = changes.view(len(rows), -1, rows.shape[-1]).transpose(0, 1) + rows
        return states.contiguous().unbind()


ELEMENT_BYTES = 4
"""Maps are kept in float32."""


def map_elements(hidden: int, layers: int, rank: int | None) -> int:
    """Numbers of one exit's maps to so many layers; rank None: whole."""
    each = hidden * hidden if rank is None else hidden * rank
    shared = 0 if rank is None else hidden * rank
    return shared + layers * (each + hidden)
