"""What other packages add: objects that their entry points name, found and checked in one way."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from offramp.errors import InputError, OfframpError

FIX = "mend or uninstall the package that brings it"


def plug_ins(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name; nothing is imported."""
    return {point.name: point for point in entry_points(group=group)}


def load_plug_in(
    point: EntryPoint,
    fits: Callable[[Any], bool],
    what: str,
    wanted: str,
    kind: type[OfframpError] = InputError,
) -> Any:
    """The object that an entry point names.

    fits: whether an object can be used. what, wanted: the plug-in and the object in words ("workload", "a
    WorkloadSource"). Raises an error of this kind for one that cannot be imported or does not fit.
    """
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise refused(point, f"a {what} plug-in cannot be loaded: {error}", kind) from error
    if not fits(found):
        is_class = isinstance(found, type)
        shown = f"the class {found.__name__}" if is_class else f"of type {type(found).__name__}"
        raise refused(point, f"a {what} plug-in is {shown}, not {wanted}", kind)
    return found


def refused(
    point: EntryPoint, what: str, kind: type[OfframpError] = InputError, fix: str = FIX
) -> OfframpError:
    """The error for a plug-in, with its entry point."""
    return kind(what, where=f"entry point {point.name} = {point.value} in the group {point.group}", fix=fix)
