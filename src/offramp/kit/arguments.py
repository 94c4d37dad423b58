"""What people give to the public functions, held against the annotations: a wrong type is named at once."""

from __future__ import annotations

import builtins
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from offramp.errors import InputError
from offramp.kit.numbers import WORDS, is_limit, shown_number, within

P = ParamSpec("P")
Returned = TypeVar("Returned")

SHOWN = 60
"""Characters that a message repeats of what was given."""


class _Unfit(Exception):
    """A value is not what an annotation says."""


class _Outside(_Unfit):
    """A number is not within the limits of its annotation. The message says what it must be."""


class _Elsewhere:
    """A class that is imported for type checkers only: whatever is no plain value may be of it."""


class _Names(dict[str, Any]):
    """The names that an annotation uses, without importing what its module does not."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        super().__init__(vars(builtins) | dict(module))

    def __missing__(self, name: str) -> type[_Elsewhere]:
        if name.startswith("__"):  # looked for by debuggers
            raise KeyError(name)
        return _Elsewhere


def checked(function: Callable[P, Returned]) -> Callable[P, Returned]:
    """The same function, which refuses arguments that are not what its annotations say.

    Whole numbers of any kind become Python's, and so do other numbers. A sequence may be anything that gives
    elements, but no text.

    A request's call (`offramp.kit.request.as_call`) is given back, as the request does this itself, and so is
    a function that is checked already.

    Raises InputError that names the argument, what was given, and what it may be.
    """
    if hasattr(function, "request") or hasattr(function, "checked"):
        return function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Returned:
        try:
            given = inspect.signature(function).bind(*args, **kwargs)
        except TypeError:  # names that there are not: Python says it best
            return function(*args, **kwargs)
        for name, (wanted, hint) in _hints(function).items():
            if name in given.arguments:
                given.arguments[name] = settled(name, given.arguments[name], hint, wanted)
        return function(*given.args, **given.kwargs)

    call.checked = True  # type: ignore[attr-defined]
    return call


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, tuple[str, Any]]:
    """Each annotation in words and read; they are texts in every module here.

    Without the model that a function asks for itself: it says more of an object that was not wrapped.
    """
    inner = inspect.unwrap(function)
    found = {}
    for name, parameter in inspect.signature(inner).parameters.items():
        said = parameter.annotation
        known = said == "str | Model" or (said == "Model" and inner is not function)
        if isinstance(said, str) and not known and parameter.kind is not parameter.VAR_KEYWORD:
            hint = evaluated(said, inner.__globals__)
            words = str(hint) if isinstance(hint, types.UnionType) and "|" not in said else said
            many = parameter.kind is parameter.VAR_POSITIONAL
            found[name] = (words, types.GenericAlias(tuple, (hint, ...)) if many else hint)
    return found


def evaluated(annotation: str, module: Mapping[str, Any]) -> Any:
    """The annotation of a module's name, read, without importing what the module does not."""
    names = _Names(module)
    return eval(annotation, names, names)  # globals, too: a lambda in it reads them when it is called


def settled(name: str, value: Any, hint: Any, said: str) -> Any:
    """The value of an argument as what its annotation says. hint, said: that, read, and in words.

    Raises InputError.
    """
    try:
        return _fitting(value, hint)
    except _Outside as outside:
        raise InputError(
            f"{name.replace('_', ' ')} must be {outside}, not {shown_number(value)}",
            where=f"{name}= (--{name.replace('_', '-')})",
            fix=f"give a number that is {outside}",
        ) from None
    except _Unfit:
        raise _refused(name, value, in_words(said)) from None


def in_words(annotation: str) -> str:
    """An annotation without the packages of its names."""
    plain = re.sub(r"\w[\w.]*\.(?=\w)", "", annotation)
    return re.sub(r"\w+", lambda word: WORDS.get(word[0], word[0]), plain).replace(" | ", " or ")


def _fitting(value: Any, hint: Any) -> Any:
    """The value, if it is what an annotation says. Raises _Unfit."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        fitting = _fitting(value, parts[0])
        if outside := within(fitting, [mark for mark in parts[1:] if is_limit(mark)]):
            raise _Outside(outside)
        return fitting
    if origin in (types.UnionType, typing.Union):
        why = _Unfit()
        for part in parts:
            try:
                return _fitting(value, part)
            except _Unfit as unfit:
                why = unfit if isinstance(unfit, _Outside) else why
        raise why
    if origin is typing.Literal:
        if not isinstance(value, tuple(map(type, parts))) or value not in parts:
            raise _Unfit
        return value
    if hint in PLAIN:
        return PLAIN[hint](value)
    kind = origin or hint
    if kind is Mapping and isinstance(value, Mapping):
        return {key: _fitting(each, parts[-1]) for key, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, Iterable) and kind is not Mapping and parts:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            raise _Unfit
        listed = isinstance(value, list | tuple) or parts[0] in PLAIN
        return tuple(_fitting(one, parts[0]) for one in value) if listed else value
    if kind is _Elsewhere or getattr(kind, "_is_protocol", False):
        plain = type(value).__module__ == "builtins" or isinstance(value, PathLike)
        if plain and not callable(value):
            raise _Unfit
    elif isinstance(kind, type) and kind is not Any and not isinstance(value, kind):
        raise _Unfit
    return value


def _whole(value: Any) -> int:
    """Any whole number as Python's, those of numpy and torch among them; no bool is one."""
    if isinstance(value, bool):
        raise _Unfit
    try:
        return operator.index(value)
    except TypeError as error:
        raise _Unfit from error


def _number(value: Any) -> int | float:
    if isinstance(value, bool):
        raise _Unfit
    if isinstance(value, int | float):
        return value
    if isinstance(value, Real):
        return float(value)
    raise _Unfit


def _truth(value: Any) -> Any:
    """A bool of Python or of numpy, which is not imported for it."""
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and value.dtype == "bool"):
        return value
    raise _Unfit


def _only(*kinds: Any) -> Callable[[Any], Any]:
    """What takes values of these kinds as they are, and nothing else."""

    def read(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise _Unfit
        return value

    return read


PLAIN: Mapping[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    str: _only(str),
    bool: _truth,
    Path: _only(PathLike),
    types.NoneType: _only(types.NoneType),
}
"""By annotation, what reads a value of it."""


def _refused(name: str, value: Any, wanted: str) -> InputError:
    shown = repr(value) if value is None else f"{type(value).__name__} {value!r}"
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return InputError(f"{name} cannot be {shown}", where=f"{name}=", fix=f"give {wanted}")
