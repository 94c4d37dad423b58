"""What people give to functions and dataclasses, held against annotations: a wrong type is named at once."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import inspect
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from offramp.errors import InputError, OfframpError
from offramp.kit.numbers import LIMITS
from offramp.kit.rules import SHOWN, Must, is_beside, is_rule, nearest, refusal, refusal_beside

P = ParamSpec("P")
Returned = TypeVar("Returned")


class _Unfit(Exception):
    """A value is not what an annotation says."""


class _Refused(_Unfit):
    """A value of the right type is not within the limits of its annotation, or not what else it says."""

    def __init__(self, value: Any, rules: tuple[Any, ...]) -> None:
        self.value = value
        self.rules = rules


class _Unread(type):
    """Classes of which whatever an annotation names or subscripts is the same."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, parts: object) -> Any:
        return cls


class _Elsewhere(metaclass=_Unread):
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
    """The same function, or method, which refuses arguments that are not what its annotations say.

    Whole numbers of any kind become Python's, and so do other numbers. A sequence may be anything that gives
    elements, but no text; an array, what numpy makes one of.

    A request's call (`offramp.kit.request.as_call`) is given back, as the request does this itself, and so is
    a function that is checked already.

    Raises InputError that names the argument, what was given, and what it may be.
    """
    if hasattr(function, "request") or hasattr(function, "checked"):
        return function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Returned:
        try:
            given = _signature(function).bind(*args, **kwargs)
        except TypeError:  # of which Python says best what they are
            parameters = _signature(function).parameters
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                require_named(function.__name__, kwargs, parameters)
            return function(*args, **kwargs)
        method = "self" in given.arguments  # which no command has options for
        for name, (wanted, hint) in _hints(function).items():
            if name in given.arguments:
                where = f"{name}=" if method else ""
                given.arguments[name] = settled(name, given.arguments[name], hint, wanted, where=where)
        if marks := _arguments_beside(function):
            _refuse_beside(function, given, marks)
        return function(*given.args, **given.kwargs)

    call.checked = True  # type: ignore[attr-defined]
    return call


def require_named(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a function has not. Raises TypeError that names a near one."""
    for name in given:
        if name not in known:
            near = nearest(name, known).rstrip()
            what = f"{function}() got an unexpected keyword argument {name!r}"
            raise TypeError(f"{what}: {near}" if near else what)


@functools.cache
def _arguments_beside(function: Callable[..., Any]) -> Mapping[str, tuple[Any, ...]]:
    """What the annotations of arguments say of them beside each other, by argument."""
    return _beside(_hints(function))


def _refuse_beside(
    function: Callable[..., Any], given: inspect.BoundArguments, marks: Mapping[str, tuple[Any, ...]]
) -> None:
    """Refuse an argument that does not fit the others. Raises InputError."""
    defaults = {name: parameter.default for name, parameter in _signature(function).parameters.items()}
    whole = types.SimpleNamespace(**{**defaults, **given.arguments})
    for name, rules in marks.items():
        if why := refusal_beside(name, whole, rules, defaults):
            raise InputError(why.what, where=f"{name}= (--{name.replace('_', '-')})", fix=why.fix)


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


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


def settled(
    name: str, value: Any, hint: Any, said: str, kind: type[OfframpError] = InputError, where: str = ""
) -> Any:
    """The value of an argument as what its annotation says.

    hint, said: the annotation read, and in words. kind: of the error. where: by default the argument.

    Raises an error of that kind.
    """
    try:
        return _fitting(value, hint)
    except _Refused as refused:
        why = refusal(name, refused.value, refused.rules)
        assert why is not None
        place = where or f"{name}= (--{name.replace('_', '-')})"
        raise kind(why.what, where=place, fix=why.fix) from None
    except _Unfit:
        shown = repr(value) if value is None else f"{type(value).__name__} {value!r}"
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        fix = f"give {in_words(said, hint)}{_ways_to(said)}"
        raise kind(
            f"{name.replace('_', ' ')} cannot be {shown}", where=where or f"{name}=", fix=fix
        ) from None


def settle_fields(
    made: Any, kind: type[OfframpError] = InputError, where: Callable[[str], str] | None = None
) -> None:
    """Let the fields of a dataclass that was just made be what their annotations say, as `checked` does.

    To be called first in its `__post_init__`. kind: of the error for one that is not. where: that is, by its
    name; by default the class, and the name.

    Raises an error of that kind.
    """
    own: Any = type(made)
    hints = _field_hints(own)
    place = where or f"{own.__name__}({{}}=)".format
    for name, (said, hint) in hints.items():
        value = getattr(made, name)
        fitting = value if type(value) is hint else settled(name, value, hint, said, kind, place(name))
        if fitting is not value:
            object.__setattr__(made, name, fitting)
    if fitted := _fitted_to_others(own):
        defaults = _defaults(own)
        for name, marks in fitted.items():
            if why := refusal_beside(name, made, marks, defaults):
                raise kind(why.what, where=place(name), fix=why.fix)


@functools.cache
def _defaults(made: type) -> Mapping[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(made)}


@functools.cache
def _fitted_to_others(made: type) -> Mapping[str, tuple[Any, ...]]:
    """What the annotations of a dataclass's fields say of them beside each other, by field."""
    return _beside(_field_hints(made))


def _beside(hints: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[Any, ...]]:
    marks = {
        name: tuple(mark for mark in typing.get_args(hint)[1:] if is_beside(mark))
        for name, (_, hint) in hints.items()
        if typing.get_origin(hint) is typing.Annotated
    }
    return {name: found for name, found in marks.items() if found}


def field_hints(kind: Any) -> Mapping[str, tuple[str, Any]]:
    """Each annotation of a dataclass's fields, in words and read, in the order of the fields."""
    found = {}
    for field in dataclasses.fields(kind):
        home = next(base for base in kind.__mro__ if field.name in inspect.get_annotations(base))
        said = inspect.get_annotations(home)[field.name]
        if isinstance(said, str):
            found[field.name] = said, evaluated(said, vars(sys.modules[home.__module__]))
        else:
            found[field.name] = getattr(said, "__name__", str(said)), said
    return found


_field_hints = functools.cache(field_hints)


MADE_BY = {
    "Trace": "offramp.Trace.load(FOLDER)",
    "Model": "offramp.load_model(NAME)",
    "ExitPolicy": "offramp.parse_policy(TEXT)",
    "Machine": "offramp.find_machine(NAME)",
    "Workload": "offramp.load_workload(NAME)",
    "ExitHeads": "offramp.fit_heads(MODEL, TEXT)",
    "Tuned": "offramp.tune(TRACE, FLOOR)",
    "Ladder": "offramp.Ladder([(0, POLICY), (8, POLICY)])",
}
"""By a public class, what gives one of it."""


def _ways_to(annotation: str) -> str:
    """What gives the objects that an annotation names, as people get hold of them."""
    named = dict.fromkeys(re.findall(r"\w+", annotation))
    ways = [MADE_BY[name] for name in named if name in MADE_BY]
    return f": {' or '.join(ways)}" if ways else ""


def in_words(annotation: str, hint: Any = None) -> str:
    """An annotation without the packages of its names. hint: the same read, whose choices are listed, and
    whose parts where the annotation is the name of several, or of a type with limits.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal or _is_limited(hint):
        return _name(hint)
    if origin in (types.UnionType, typing.Union):
        said = annotation.split(" | ")
        if len(said) == len(parts):
            return " or ".join(map(in_words, said, parts))
        if len(said) == 1:
            return _name(hint)
    return re.sub(r"\w[\w.]*\.(?=\w)", "", annotation).replace(" | ", " or ")


def _is_limited(hint: Any) -> bool:
    """Whether something in an annotation is more than a type."""
    return typing.get_origin(hint) is typing.Annotated or any(map(_is_limited, typing.get_args(hint)))


def _name(hint: Any) -> str:
    """An annotation in words, without limits."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _name(parts[0])
    if origin is Literal:
        *others, last = map(repr, parts)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_name, parts))
    if hint is Ellipsis:
        return "..."
    if hint is types.NoneType:
        return "None"
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(_name, parts))}]"
    return hint.__name__ if isinstance(hint, type) else str(hint)


_FORMS: dict[int, tuple[Any, tuple[Any, tuple[Any, ...], tuple[Any, ...]]]] = {}


def _form(hint: Any) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """The origin of an annotation, its parts and its rules: of one object once, since a search makes policies
    by the ten thousand. By identity: equal unions may name their parts in another order.
    """
    known = _FORMS.get(id(hint))
    if known is None:
        parts = typing.get_args(hint)
        rules = tuple(mark for mark in parts[1:] if is_rule(mark))
        known = _FORMS[id(hint)] = hint, (typing.get_origin(hint), parts, rules)
    return known[1]


def _fitting(value: Any, hint: Any) -> Any:
    """The value, if it is what an annotation says. Raises _Unfit."""
    if type(value) is hint:
        return value
    origin, parts, rules = _form(hint)
    if origin is typing.Annotated:
        fitting = _fitting(value, parts[0])
        if rules and refusal("", fitting, rules):
            raise _Refused(fitting, rules)
        return fitting
    if origin in (types.UnionType, typing.Union):
        why = _Unfit()
        for part in parts:
            try:
                return _fitting(value, part)
            except _Unfit as unfit:
                limited = isinstance(unfit, _Refused) and typing.get_origin(part) is not Literal
                why = unfit if limited else why
        raise why
    if origin is Literal:
        if not isinstance(value, tuple(map(type, parts))):
            raise _Unfit
        if value not in parts:
            near = nearest(value, parts) if isinstance(value, str) else ""
            raise _Refused(value, (Must(parts.__contains__, _name(hint), f"{near}give {_name(hint)}"),))
        return value
    if hint in PLAIN:
        return PLAIN[hint](value)
    kind = origin or hint
    if kind is Mapping and isinstance(value, Mapping):
        if not parts:
            return value
        return {_fitting(key, parts[0]): _fitting(each, parts[1]) for key, each in value.items()}
    if getattr(kind, "__module__", "") == "numpy" and kind.__name__ == "ndarray":
        return _array(value, *typing.get_args(parts[1]))
    if isinstance(kind, type) and issubclass(kind, Iterable) and kind is not Mapping and parts:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            raise _Unfit
        if not (isinstance(value, list | tuple) or kind is tuple or _is_plain(parts[0])):
            return value
        fitting = _all_fitting(_elements(value), kind, parts)
        # A tuple that knows more than its elements stays what it is.
        same = isinstance(value, tuple) and all(map(operator.is_, value, fitting))
        return value if same else fitting
    if kind is _Elsewhere or getattr(kind, "_is_protocol", False):
        plain = type(value).__module__ == "builtins" or isinstance(value, PathLike)
        if plain and not callable(value):
            raise _Unfit
    elif isinstance(kind, type) and kind is not Any and not isinstance(value, kind):
        raise _Unfit
    return value


def _is_plain(hint: Any) -> bool:
    """Whether an annotation is of numbers or texts, or of sequences of such."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN or kind is typing.Annotated:
        return True
    return isinstance(kind, type) and issubclass(kind, Iterable) and bool(parts) and _is_plain(parts[0])


def _elements(value: Iterable[Any]) -> tuple[Any, ...]:
    try:
        elements = iter(value)
    except TypeError as error:  # of a tensor without an axis
        raise _Unfit from error
    return tuple(elements)


def _all_fitting(values: tuple[Any, ...], kind: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The elements of a sequence, each as what it must be. parts: of the annotation."""
    if kind is tuple and parts[-1] is not Ellipsis:
        if len(values) != len(parts):
            raise _Unfit
        return tuple(map(_fitting, values, parts))
    each = parts[0]
    origin, of_each, _ = _form(each)
    plain, *marks = of_each if origin is typing.Annotated else (each,)
    exact = values and plain in EXACT and set(map(type, values)) == {plain}
    if exact and all(type(mark) in LIMITS for mark in marks):  # which all keep that both ends do
        for value in {min(values), max(values)} if marks else ():
            _fitting(value, each)
        return values
    return tuple(_fitting(value, each) for value in values)


def _array(value: Any, scalar: Any) -> Any:
    """An array of whole numbers, numbers or truths, as numpy's scalar of that kind says."""
    import numpy as np

    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise _Unfit
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged, or a tensor that numpy cannot read
        raise _Unfit from error
    wanted = np.dtype(scalar)
    if not array.size:
        return array.astype(wanted)
    if array.dtype.kind not in KINDS.get(wanted.kind, wanted.kind):
        raise _Unfit
    return array


def _whole(value: Any) -> int:
    """Any whole number as Python's, those of numpy and torch among them; no bool is one."""
    if isinstance(value, bool):
        raise _Unfit
    try:
        return operator.index(value)
    except TypeError as error:
        raise _Unfit from error


def _number(value: Any) -> int | float:
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool):
        raise _Unfit
    if isinstance(value, int):
        return int(value)
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


def _path(value: Any) -> Any:
    """A path as it is, of any class whose path is a text: who joins paths takes no bytes."""
    if not isinstance(value, PathLike) or not isinstance(fspath(value), str):
        raise _Unfit
    return value


PLAIN: Mapping[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    str: _only(str),
    bool: _truth,
    Path: _path,
    types.NoneType: _only(types.NoneType),
}
"""By annotation, what reads a value of it."""

EXACT = (int, str)
"""What a value is as it should be if its type is this very one: long sequences are of these alone."""

KINDS = {"i": "iu", "u": "iu", "f": "fiu"}
"""By the kind of numpy's scalar that an array should be of, those that do."""
