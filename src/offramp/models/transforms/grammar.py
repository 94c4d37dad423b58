"""The one grammar of transforms, for CLI and Python: `name:option=value,option=value`.

int8
int4:group=32
prune:by=angular,layers=6
prune:drop=20+21
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from offramp.errors import InputError
from offramp.kit.rules import suggest
from offramp.models.transforms.transform import TRANSFORMS, Option, Transform, options_of
from offramp.plug_ins import asking


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
    """Refuse two transforms of one name. Raises InputError."""
    first: dict[str, str] = {}
    for transform in transforms:
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
