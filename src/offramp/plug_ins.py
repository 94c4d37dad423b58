"""What other packages add: objects that their entry points name, found, loaded and asked in one place.

One that is broken stops nobody who does not ask for it, and whatever it does wrong bears its name.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from offramp.errors import InputError, OfframpError, raise_if_out_of_memory, words_of

FIX = "mend or uninstall the package that brings it"
OWN = "offramp"

Thing = TypeVar("Thing")

_loaded: dict[int, tuple[object, EntryPoint]] = {}
"""What was loaded, by its id, and where from. It is held, so that nothing else takes its id."""


def plug_ins(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name; nothing is imported."""
    return {point.name: point for point in entry_points(group=group)}


class Known(Mapping[str, Thing], Generic[Thing]):
    """Things by name: offramp's own, and those of plug-ins, each of which is loaded when it is looked up.

    group: of the entry points, whose names are those of the things. built_in: what gives one of offramp's
    own, by name. load: the thing of an entry point, checked; it raises OfframpError.
    """

    def __init__(
        self, group: str, built_in: Mapping[str, Callable[[], Thing]], load: Callable[[EntryPoint], Thing]
    ) -> None:
        self.group = group
        self._built_in = built_in
        self._load = load

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        return plug_ins(self.group)

    def __getitem__(self, name: str) -> Thing:
        if name in self._built_in:
            return self._built_in[name]()
        return self._load(self._points[name])

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._points

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from (name for name in self._points if name not in self._built_in)

    def __len__(self) -> int:
        return len({*self._built_in, *self._points})

    def usable(self) -> dict[str, Thing]:
        """All that can be used, by name."""
        broken = self.broken()
        return {name: self[name] for name in self if name not in broken}

    def broken(self) -> dict[str, OfframpError]:
        """Why each of the others cannot: a plug-in that does not load, or has a name that is taken."""
        errors = {}
        for name, point in self._points.items():
            if name in self._built_in:
                errors[name] = refused(point, f"{name!r} is the name of one of offramp's own")
                continue
            try:
                self._load(point)
            except OfframpError as error:
                errors[name] = error
        return errors


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
    done = "loaded"
    try:
        found = point.load()
        done = "read"
        usable = fits(found)
    except BaseException as error:  # others' code runs when it is imported or read, and may raise anything
        if not isinstance(error, Exception) and (
            isinstance(error, KeyboardInterrupt) or _is_own(type(error))
        ):
            raise  # what stops the command
        raise_if_out_of_memory(error)
        raise refused(point, f"a {what} plug-in cannot be {done}: {_said(error)}", kind) from error
    if not usable:
        is_class = isinstance(found, type)
        shown = f"the class {found.__name__}" if is_class else f"of type {type(found).__name__}"
        raise refused(point, f"a {what} plug-in is {shown}, not {wanted}", kind)
    if not (isinstance(found, type) and _is_own(found)):  # such as a built-in policy by another name
        _loaded[id(found)] = found, point
    return found


def refused(
    point: EntryPoint, what: str, kind: type[OfframpError] = InputError, fix: str = FIX
) -> OfframpError:
    """The error for a plug-in, with its entry point."""
    return kind(what, where=_place(point), fix=fix)


def is_foreign(thing: object) -> bool:
    """Whether a class or an object is not offramp's: a plug-in, or of a class of others."""
    kind = thing if isinstance(thing, type) else type(thing)
    return _point_of(thing) is not None or not _is_own(kind)


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == OWN


def origin_of(thing: object) -> str:
    """Where an object comes from that others made, in words: its entry point, or its class."""
    point = _point_of(thing)
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}" if point is None else _place(point)


def _point_of(thing: object) -> EntryPoint | None:
    """The entry point by which an object, or its class, was loaded."""
    for one in (thing, type(thing)):
        found, point = _loaded.get(id(one), (None, None))
        if found is one:
            return point
    return None


@contextmanager
def asking(thing: object, what: str, kind: type[OfframpError] = InputError) -> Iterator[None]:
    """Let whatever others' code raises within the block be an error that names it.

    thing: whose code it is; what offramp's own raises is left as it is. what: it is, in words ("the policy
    mine"). An error of offramp's is let through, with the name added, and so is what stops the command.
    Raises an error of that kind for any other, `sys.exit()` among them.
    """
    if not is_foreign(thing):
        yield
        return
    try:
        yield
    except OfframpError as error:
        origin = origin_of(thing)
        if origin not in error.where:
            error.where = f"{error.where}, {origin}" if error.where else origin
        raise
    except BaseException as error:  # others' code may raise anything
        if isinstance(error, KeyboardInterrupt) or _is_own(type(error)):
            raise
        raise_if_out_of_memory(error)
        raise kind(
            f"{what} failed: {_said(error)}", where=f"{_line_of(error)}, {origin_of(thing)}", fix=FIX
        ) from error


def unfit(thing: object, what: str, kind: type[OfframpError] = InputError, fix: str = FIX) -> OfframpError:
    """The error for an answer of others' code that cannot be used. what: that is wrong with it."""
    return kind(what, where=origin_of(thing), fix=fix)


def _place(point: EntryPoint) -> str:
    return f"entry point {point.name} = {point.value} in the group {point.group}"


def _said(error: BaseException) -> str:
    plain = isinstance(error, ImportError | AttributeError)
    return words_of(error) if plain else f"{type(error).__name__}: {words_of(error)}"


def _line_of(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"
