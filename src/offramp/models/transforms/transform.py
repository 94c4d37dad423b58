"""What every transform is: a change to a loaded model that gives another model, named in its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from offramp.models.model import Model


class Transform(Protocol):
    """A change to a model at load.

    name: what the grammar calls it ("int8", "prune"). `text` is canonical: two transforms that give the same
    model have the same text, which stands in the model's identity.
    """

    name: ClassVar[str]

    @property
    def text(self) -> str:
        """As written in the grammar, with everything that changes the result."""

    def check(self, dtype: str | None = None) -> None:
        """Raise InputError if this machine cannot do it (a library or kernel is missing).

        Called before a model is loaded. dtype: that it will be loaded in, None if that is not known yet.
        """

    def apply(self, model: Model) -> Model:
        """The transformed model; the given one is used up (its modules are changed in place).

        Of a model whose layers stay on disk, `Model.streamed` must be another, which changes each layer as it
        is read; the modules themselves hold no weights.

        Raises ModelError if the model cannot be transformed so.
        """
