"""Model objects of this process by name, so that a study, which names its models, can mean one."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from offramp.errors import ModelError

if TYPE_CHECKING:
    from offramp.models.model import Model

OBJECT = "object:"
"""In front of the name of a model object, where a model is named."""

# Objects live as long as somebody else holds them.
_objects: WeakValueDictionary[str, Model] = WeakValueDictionary()


def name_object(model: Model) -> str:
    """The name under which this process finds a model object from now on."""
    name = f"{OBJECT}{model.name}"
    _objects[name] = model
    return name


def named_object(name: str) -> Model:
    """The model object of a name. Raises ModelError if this process was given none of it."""
    model = _objects.get(name)
    if model is None:
        raise ModelError(
            f"{name} is a model object of another Python process",
            where=name,
            fix="run it there again: offramp.run(offramp.wrap(model, tokenizer), ...); finished results are "
            "read without it",
        )
    return model


def is_object(name: str) -> bool:
    """Whether a model's name means an object."""
    return name.startswith(OBJECT)
