"""Depth pruning: some decoder layers are left out, given by number or chosen by how little they do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar

from offramp.errors import InputError, ModelError
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import Count
from offramp.kit.rules import Beside, Must, OneOf, only_if, only_with

if TYPE_CHECKING:
    from offramp.models.model import Model

DEFAULT_WORKLOAD = "prose"
DEFAULT_TOKENS = 2048

MEASURES = {
    "angular": "the block of layers whose input and output are nearest in angle (arXiv 2403.17887)",
    "influence": "the layers whose input and output are most alike, one by one (ShortGPT, arXiv 2403.03853)",
}
"""What layers can be chosen by, and what is then dropped."""


of_measure = only_if(lambda given: given.trace is None, "beside trace=, whose workload it is")
"""Of what a measure is taken on."""


@dataclasses.dataclass(frozen=True)
class Prune:
    """Leave layers out: `prune:drop=21+22`, or `prune:by=angular,layers=6` to have them chosen.

    Only `drop` says what the model is: a choice by measure becomes one before it is applied, in
    `offramp.tracing.layers_to_prune.resolve`.

    Raises InputError for settings that do not go together.
    """

    name: ClassVar[str] = "prune"

    by: Annotated[str, OneOf("measure", lambda: MEASURES)] | None = None
    """One of MEASURES."""
    layers: Annotated[
        Count | None,
        only_with("by"),
        Beside(
            lambda layers, given: given.by is None or layers is not None,
            "named beside by=",
            "write prune:by={by},layers=6",
        ),
    ] = None
    """How many to leave out."""
    drop: Annotated[
        tuple[Count, ...],
        Must(lambda drop: len(set(drop)) == len(drop), "layers, each once, as in prune:drop=21+22"),
        Beside(
            lambda drop, given: bool(drop) == (given.by is None),
            "named unless by= chooses them",
            "write prune:drop=21+22, or prune:by=angular,layers=6",
        ),
    ] = ()
    """Their numbers, from 1, ascending."""
    workload: Annotated[str, of_measure] = DEFAULT_WORKLOAD
    """What `by` is measured on."""
    tokens: Annotated[Count, of_measure] = DEFAULT_TOKENS
    """Of it, that are read for that."""
    trace: Annotated[str | None, only_if(lambda given: given.by == "influence", "without by=influence")] = (
        None
    )
    """Folder of a trace of the same model that `by=influence` is read from instead."""

    def __post_init__(self) -> None:
        settle_fields(self, where=lambda name: f"{name}=")
        object.__setattr__(self, "drop", tuple(sorted(self.drop)))

    @property
    def resolved(self) -> bool:
        """Whether the layers are known by number."""
        return self.by is None

    @property
    def count(self) -> int:
        """How many layers are left out."""
        return len(self.drop) if self.layers is None else self.layers

    @property
    def text(self) -> str:
        """As written in the grammar; defaults are left out."""
        if self.by is None:
            return f"{self.name}:drop=" + "+".join(str(layer) for layer in self.drop)
        settings = [f"by={self.by}", f"layers={self.layers}"]
        settings += [f"workload={self.workload}"] * (self.workload != DEFAULT_WORKLOAD)
        settings += [f"tokens={self.tokens}"] * (self.tokens != DEFAULT_TOKENS)
        settings += [f"trace={self.trace}"] * (self.trace is not None)
        return f"{self.name}:" + ",".join(settings)

    def check(self, dtype: str | None = None) -> None:
        """Every machine can leave layers out."""

    def check_depth(self, layers: int, where: str) -> None:
        """Refuse to leave out all layers of a model, or layers that it does not have.

        layers: how many there are. where: the model, for the message. Raises InputError.
        """
        beyond = [layer for layer in self.drop if layer > layers]
        if beyond:
            raise InputError(
                f"{self.text} leaves out layer {beyond[0]}, but the model has {layers} layers",
                where=where,
                fix=f"choose among 1 to {layers}",
            )
        if self.count >= layers:
            all_of_them = "all" if self.count == layers else f"{self.count}"
            raise InputError(
                f"{self.text} leaves out {all_of_them} of the model's {layers} layers",
                where=where,
                fix=f"leave out {layers - 1} at most" if layers > 1 else "use the model as it is",
            )

    def apply(self, model: Model) -> Model:
        """The model without the layers, which are gone from `model` too.

        Its logits are bit for bit those of the whole model with these layers passing their input on.

        Raises ModelError if the layers are still to be chosen, if the model was pruned before or is streamed,
        or if its family needs all its layers; InputError if it does not have these layers.
        """
        from offramp.models.discovery import find_stack
        from offramp.models.layer_removal import keep_layers

        self._check_applicable(model)
        keep = [index for index in range(model.layers) if index + 1 not in self.drop]
        keep_layers(model.hf, model.stack, keep)
        shape = dataclasses.replace(model.shape, layers=tuple(model.shape.layers[index] for index in keep))
        identity = dataclasses.replace(model.identity, transforms=(*model.transforms, self.text))
        stack = find_stack(model.hf, name=model.name)
        return model.with_identity(identity, stack=stack, shape=shape)

    def _check_applicable(self, model: Model) -> None:
        if not self.resolved:
            raise ModelError(
                f"the layers of {self.text} are not chosen yet",
                where=model.name,
                fix="load the model with load_model(name, transforms=[...]), which measures them, "
                "or give their numbers: prune:drop=21+22",
            )
        if any(text.partition(":")[0] == self.name for text in model.transforms):
            raise ModelError(
                f"the model was pruned before: {', '.join(model.transforms)}",
                where=model.name,
                fix="give all layers in one prune:drop=..., numbered as in the whole model",
            )
        if model.streamed is not None:
            raise ModelError(
                "a model whose weights stay on disk cannot be pruned",
                where=model.name,
                fix="load it into memory",
            )
        self.check_depth(model.layers, model.name)
