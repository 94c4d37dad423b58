"""Commands whose options are the fields of a request."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from offramp.cli.console import Output
from offramp.kit.request import Field, Request, argument, fields_of, hidden, missing, python_only

Asked = TypeVar("Asked", bound=Request[Any])

READ = (bool, int, float, str, Path)
"""Types that a word of a command line can be read as."""
AS_JSON = "as_json"


def command(
    app: typer.Typer, name: str, request: type[Asked]
) -> Callable[[Callable[[Asked, Output], None]], Callable[[Asked, Output], None]]:
    """Make a function the command that is asked for by a request; the request's docstring is its help.

    Besides the fields it takes `--json`.
    """

    def register(carry_out: Callable[[Asked, Output], None]) -> Callable[[Asked, Output], None]:
        fields = [field for field in fields_of(request) if python_only not in field.marks]

        def run(**given: Any) -> None:
            out = Output(given.pop(AS_JSON))
            carry_out(request(**{field.name: _value(field, given[field.name]) for field in fields}), out)

        parameters = [_parameter(field) for field in sorted(fields, key=lambda field: not missing(field))]
        asked = Annotated[
            bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
        ]
        parameters.append(inspect.Parameter(AS_JSON, KEYWORD, default=False, annotation=asked))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, cls=_helped(request), help=inspect.getdoc(request))(run)
        return carry_out

    return register


KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _parameter(field: Field) -> inspect.Parameter:
    """As typer takes it; help is added when it is asked for."""
    kind, many, optional = _kind(field.hint)
    kind = list[kind] if many else kind  # type: ignore[valid-type]
    shown = not (many or field.default in (None, ""))
    declared: Any
    if argument in field.marks:
        declared = typer.Argument(metavar=field.metavar, show_default=shown)
    else:
        declared = typer.Option(
            *field.words, metavar=field.metavar, show_default=shown, hidden=hidden in field.marks
        )
    default = inspect.Parameter.empty if missing(field) else None if many else field.default
    annotation = kind | None if many or optional else kind
    annotation = kind if missing(field) else annotation
    return inspect.Parameter(field.name, KEYWORD, default=default, annotation=Annotated[annotation, declared])


def _kind(hint: Any) -> tuple[Any, bool, bool]:
    """What a word is read as, whether there may be several, and whether there may be none.

    Of several types the first that a word can be read as.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        optional = types.NoneType in parts
        read = [_kind(part) for part in parts if part is not types.NoneType]
        several = next((kind for kind in read if kind[1]), None)
        kind, many, _ = several or next(kind for kind in read if kind[0] in READ)
        return kind, many, optional
    if hint in READ:
        return hint, False, False
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, typing.Iterable)):
        kind = _kind(parts[0])[0]
        return kind if kind in READ else str, True, False
    return hint, False, False


def _value(field: Field, given: Any) -> Any:
    """What was given for a field, its default where nothing was."""
    if isinstance(given, list):
        return tuple(given) if given else field.default
    return field.default if given is None and not missing(field) else given


def _helped(request: Any) -> type[TyperCommand]:
    """A command that reads what its options are where help is asked for."""

    class Helped(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            docs = {field.name: field.doc for field in fields_of(request)}
            for parameter in self.params:
                if parameter.name in docs and hasattr(parameter, "help"):
                    parameter.help = docs[parameter.name]()
            super().format_help(ctx, formatter)

    return Helped
