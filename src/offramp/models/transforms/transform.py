"""What every transform is, and the transforms by name; their one grammar, for CLI and Python.

int8
int4:group=32
prune:by=angular,layers=6
prune:drop=20+21
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from offramp.errors import InputError, ModelError, OfframpError
from offramp.kit.contract import hold
from offramp.kit.rules import suggest
from offramp.plug_ins import FIX, Known, asking, load_plug_in, refused, unfit

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


LONGEST_NUMBER = 9
"""Digits of a number at most: far more than layers, tokens or weights in a group."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a transform."""

    name: str
    read: Callable[[str], Any]
    """From its text to the value; raises ValueError for a text that does not fit."""
    wanted: str
    """What it takes, in words."""
    default: Any = None
    """The value if it is left out."""
    required: bool = False
    """It must be given."""

    @property
    def shown(self) -> str:
        """The option with its default, for lists: "group=32", or "drop=…" if it has none."""
        empty = self.default is None or self.default == ()
        return f"{self.name}=…" if empty else f"{self.name}={text_of(self.default)}"


def options_of(kind: type[Any]) -> tuple[Option, ...]:
    """The options of a transform's class: its dataclass fields, read by their types.

    Types: str, int, bool, and tuples of whole numbers, each also `| None`. Raises TypeError for a class that
    is no dataclass or has a field of another type.
    """
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is no dataclass")
    hints = typing.get_type_hints(kind)
    return tuple(_option(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def text_of(value: Any) -> str:
    """The value of an option as the grammar writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
    kinds = [kind for kind in _alternatives(hint) if kind is not types.NoneType]
    known = READERS.get(kinds[0]) if len(kinds) == 1 else None
    if known is None:
        raise TypeError(f"the field {field.name} has the type {hint}, which no text is read as")
    read, wanted = known
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None if field.default is dataclasses.MISSING else field.default
    return Option(field.name, read, wanted, default, required)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.get_args(hint)
    return (hint,)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
        raise ValueError(text)
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(_whole(item) for item in text.split("+"))


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "a word"),
    int: (_whole, "a whole number"),
    bool: (_truth, "true or false"),
    tuple[int, ...]: (_wholes, 'whole numbers joined by "+", as in 20+21'),
}
"""Readers by the type of the field, and what they take."""


CONTRACT = f"{FIX} (see offramp.testing.check_transform)"
ENTRY_POINT_GROUP = "offramp.transforms"
PARTS = ("name", "text", "check", "apply")
BUILT_IN = {
    "int8": "offramp.models.transforms.quantise:Int8",
    "int4": "offramp.models.transforms.quantise:Int4",
    "prune": "offramp.models.transforms.prune:Prune",
}


@dataclass(frozen=True)
class TransformDescription:
    """One line of `offramp list transforms`."""

    name: str
    """As written, with every option and its default."""
    description: str


def _load(point: EntryPoint) -> type[Transform]:
    kind: type[Transform] = load_plug_in(point, _is_transform, "transform", "the class of a transform")
    try:
        options_of(kind)
    except (TypeError, NameError) as error:  # an annotation that cannot be read is none
        raise _refused(point, f"the transform {point.name!r} cannot be written as text: {error}") from error
    if kind.name != point.name:
        raise _refused(point, f"the transform of the entry point {point.name!r} calls itself {kind.name!r}")
    return kind


def _is_transform(found: object) -> bool:
    return isinstance(found, type) and all(hasattr(found, part) for part in PARTS)


def _refused(point: EntryPoint, what: str) -> OfframpError:
    return refused(point, what, fix=CONTRACT)


TRANSFORMS: Known[type[Transform]] = Known(
    ENTRY_POINT_GROUP,
    {name: partial(_load, EntryPoint(name, value, ENTRY_POINT_GROUP)) for name, value in BUILT_IN.items()},
    _load,
)
"""Classes of transforms by name; a class is imported when it is looked up, and then kept to its rules.

A package adds one by pointing an entry point of the group "offramp.transforms", with the transform's name, at
a frozen dataclass that fits `Transform`. Looking one up raises InputError for a plug-in that cannot be
imported, is no such class, or bears another name."""


def apply_transform(transform: Transform, model: Model) -> Model:
    """The model that a transform makes of this one, which is used up.

    Raises what the transform refuses, and InputError for one of others that fails, or gives none that works.
    """
    from offramp.models.conditioned import probing

    with probing(model.hf):
        return transform.apply(model)


def _shown(transform: Transform) -> str:
    return f"the transform {transform.name}"


def _fit(transform: Transform, name: str, answer: Any, *given: Any, **named: Any) -> Any:
    """The answer of others' transform. Raises InputError for what is no model, or one without exact exits."""
    if name == "apply":
        from offramp.models.discovery import find_stack
        from offramp.models.model import Model

        if not isinstance(answer, Model):
            what = f"{_shown(transform)} gives an object of type {type(answer).__name__}, not a Model"
            raise unfit(transform, what, fix=CONTRACT)
        if answer.streamed is None:
            try:
                layers = find_stack(answer.hf, name=answer.shown_name).layers
            except ModelError as error:
                what = f"{_shown(transform)} breaks the model: {error.what}"
                raise unfit(transform, what, fix=CONTRACT) from error
            if layers != answer.stack.layers:
                what = (
                    f"{_shown(transform)}: its stack does not hold the layers that the transformed model runs"
                )
                raise unfit(transform, what, fix=CONTRACT)
    return answer


def describe_transforms() -> tuple[TransformDescription, ...]:
    """Every transform that can be used, those of plug-ins included; nothing that it needs is imported."""
    described = []
    for name, kind in TRANSFORMS.usable().items():
        options = ",".join(option.shown for option in options_of(kind))
        first_line = (kind.__doc__ or "").strip().splitlines()[0]
        described.append(TransformDescription(f"{name}:{options}" if options else name, first_line))
    return tuple(described)


QUANTISATION = {
    "falcon": "its layers multiply with their weights themselves, in ways that quantised ones do not allow",
    "gpt2": "its matrices are convolutions, and linear modules alone are quantised",
    "mixtral": "most of its weights are stacked experts, and linear modules alone are quantised",
}
PRUNING = {
    "gemma3n_text": "its layers take embeddings of their own, by number",
    "zamba2": "its layers share weights",
    "zaya": "its layers compute something else when they move up",
}
UNFIT: Mapping[str, Mapping[str, str]] = {"int8": QUANTISATION, "int4": QUANTISATION, "prune": PRUNING}
"""Why a family is refused, by the name of the transform and the model type in the config."""


def why_unfit(transform: Transform, model_type: str | None) -> str | None:
    """Why a transform cannot be applied to a family; None if nothing is known against it."""
    return UNFIT.get(transform.name, {}).get(model_type or "")


def parse_transform(text: str) -> Transform:
    """The transform that a text describes; its own `text` is read back as an equal one.

    Raises InputError with a caret under the character at fault: an unknown name (with near matches), an
    option that is unknown, missing, given twice or does not fit.
    """
    name, colon, settings = text.partition(":")
    if name not in TRANSFORMS:
        raise _fault(text, 0, f"unknown transform {name!r}", _suggest(name, TRANSFORMS))
    kind = TRANSFORMS[name]
    options = {option.name: option for option in options_of(kind)}
    given = dict(_given(text, len(name) + 1, settings, name, options)) if colon else {}
    for option in options.values():
        if option.required and option.name not in given:
            what = f"{name} needs {option.name}="
            raise _fault(text, len(text), what, f"add {option.name}=, {option.wanted}")
    try:
        with asking(kind, f"the transform {name}"):
            transform: Transform = kind(**given)
        require_distinct((transform,))
    except InputError as error:
        raise InputError(
            error.what, where=f"{text}, {error.where}" if error.where else text, fix=error.fix
        ) from error
    return transform


def parse_transforms(texts: Iterable[str]) -> tuple[Transform, ...]:
    """The transforms that several texts describe, in the order in which they are applied.

    Raises InputError as `parse_transform` does, and for two of the same name.
    """
    transforms = tuple(parse_transform(text) for text in texts)
    require_distinct(transforms)
    return transforms


def require_distinct(transforms: Iterable[Transform]) -> None:
    """Refuse two transforms of one name, and others' that give the text of another. Raises InputError.

    Those of others are held to the contract from here on.
    """
    first: dict[str, str] = {}
    for transform in transforms:
        hold(type(transform), Transform, _shown, fix=CONTRACT, fit=_fit)
        if str(transform.text).partition(":")[0] != transform.name:
            what = f"{_shown(transform)}: its text {transform.text!r} does not begin with its name"
            raise unfit(transform, what, fix=CONTRACT)
        if transform.name in first:
            raise InputError(
                f"the transform {transform.name} is given twice",
                where=f"{first[transform.name]}, {transform.text}",
                fix="leave out one of them",
            )
        first[transform.name] = transform.text


def _given(
    text: str, start: int, settings: str, name: str, options: dict[str, Option]
) -> Iterator[tuple[str, Any]]:
    """Option and value of each setting. start: characters before the settings."""
    seen: set[str] = set()
    for setting in settings.split(","):
        key, equals, value = setting.partition("=")
        if key not in options:
            what = f"{name} has no option {key!r}" if key else f"an option of {name} is missing here"
            raise _fault(text, start, what, _suggest(key, options, name))
        if key in seen:
            raise _fault(text, start, f"{key} is given twice", "give it once")
        if not value:
            wanted = options[key].wanted
            raise _fault(text, start + len(key + equals), f"{key} has no value", f"write {key}= and {wanted}")
        try:
            yield key, options[key].read(value)
        except ValueError as error:
            what = f"{key}={value} does not fit"
            raise _fault(text, start + len(key) + 1, what, f"give {options[key].wanted}") from error
        seen.add(key)
        start += len(setting) + 1


def _suggest(name: str, known: Iterable[str], alone: str = "") -> str:
    """What to write instead of an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    return suggest(name, names) if names else f"write {alone} alone"


def _fault(text: str, offset: int, what: str, fix: str) -> InputError:
    return InputError(what, where=f"\n  {text}\n  {' ' * offset}^", fix=fix)
