"""The transforms that are known by name: the built-in ones and those of plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint

from offramp.errors import OfframpError
from offramp.models.transforms.options import options_of
from offramp.models.transforms.transform import Transform
from offramp.plug_ins import FIX, load_plug_in, plug_ins, refused

ENTRY_POINT_GROUP = "offramp.transforms"
PARTS = ("name", "text", "check", "apply")
BUILT_IN = {
    "int8": "offramp.models.transforms.quantise:Int8",
    "int4": "offramp.models.transforms.quantise:Int4",
    "prune": "offramp.models.transforms.prune:Prune",
}


@dataclass(frozen=True)
class TransformDescription:
    """One line of `offramp list transforms`. name: as written, with every option and its default."""

    name: str
    description: str


class Transforms(Mapping[str, type[Transform]]):
    """Classes of transforms by name; a class is imported when it is looked up, and then kept to its rules.

    A package adds one by pointing an entry point of the group "offramp.transforms", whose name is the
    transform's, at a frozen dataclass that fits `offramp.models.transforms.transform.Transform`.

    Looking one up raises InputError for a plug-in that cannot be imported, is no such class, or bears
    another name; iterating, for one that takes the name of a built-in transform.
    """

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points = {name: EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in BUILT_IN.items()}
        for point in plug_ins(ENTRY_POINT_GROUP).values():
            if points.get(point.name, point) != point:
                raise _refused(point, f"two transforms are called {point.name!r}")
            points[point.name] = point
        return points

    def __getitem__(self, name: str) -> type[Transform]:
        return _load(self._points[name])

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)


TRANSFORMS = Transforms()


def describe_transforms() -> tuple[TransformDescription, ...]:
    """Every known transform, those of plug-ins included; nothing that it needs is imported.

    Raises InputError naming a plug-in that cannot be used.
    """
    described = []
    for name, kind in TRANSFORMS.items():
        options = ",".join(option.shown for option in options_of(kind))
        first_line = (kind.__doc__ or "").strip().splitlines()[0]
        described.append(TransformDescription(f"{name}:{options}" if options else name, first_line))
    return tuple(described)


def _load(point: EntryPoint) -> type[Transform]:
    kind: type[Transform] = load_plug_in(point, _is_transform, "transform", "the class of a transform")
    try:
        options_of(kind)
    except TypeError as error:
        raise _refused(point, f"the transform {point.name!r} cannot be written as text: {error}") from error
    if kind.name != point.name:
        raise _refused(point, f"the transform of the entry point {point.name!r} calls itself {kind.name!r}")
    return kind


def _is_transform(found: object) -> bool:
    return isinstance(found, type) and all(hasattr(found, part) for part in PARTS)


def _refused(point: EntryPoint, what: str) -> OfframpError:
    return refused(point, what, fix=f"{FIX} (see offramp.testing.check_transform)")
