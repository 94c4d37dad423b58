"""Commands whose options are the fields of a request, and what they print."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from offramp.errors import InputError, OfframpError, printable
from offramp.kit.request import (
    Field,
    Kinds,
    Request,
    argument,
    fields_of,
    hidden,
    missing,
    one_word,
    python_only,
)
from offramp.tracing.progress import console


class Output:
    """Human text goes to standard output, or to standard error if a machine reads the JSON there."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = console(sys.stderr if as_json else sys.stdout)

    def say(self, *lines: str) -> None:
        """Print lines as they are, however long."""
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)

    def finish(self, value: dict[str, Any]) -> None:
        """Print one JSON object as the last line, if it was asked for; a NaN or infinity becomes null."""
        from offramp.kit.typed import finite_json

        if self.as_json:
            print(json.dumps(finite_json(value), allow_nan=False), flush=True)


def show_error(error: OfframpError, *, as_json: bool) -> int:
    """Say what is wrong, where, what to do: on standard error, and as JSON if a machine reads.

    Gives the exit code.
    """
    print(f"offramp: {error.what}", file=sys.stderr)
    if error.where:
        # A text with a caret below it begins on its own line.
        print(f"  where:{'' if error.where.startswith(chr(10)) else ' '}{error.where}", file=sys.stderr)
    if error.fix:
        print(f"  what to do: {printable(error.fix)}", file=sys.stderr)
    if as_json:
        what = {"what": error.what, "where": error.where.strip("\n"), "fix": error.fix}
        # Where nothing can be written any more, what is said on standard error is all there is.
        with contextlib.suppress(OSError):
            print(json.dumps({"error": {**what, "exit_code": error.exit_code}}), flush=True)
    return error.exit_code


READ = (bool, int, float, str, Path)
"""Types that a word of a command line can be read as."""
AS_JSON = "as_json"
AT_WORK: ContextVar[Request | None] = ContextVar("at work", default=None)
"""What is carried out, and was where it was stopped."""
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def group(help: str, **settings: Any) -> typer.Typer:
    """Commands under one word; the word alone shows what there is, and exits as a wrong command line does.

    settings: of typer.
    """
    app = typer.Typer(help=help, **settings)

    @app.callback(invoke_without_command=True, help=help)
    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())
            raise typer.Exit(InputError.exit_code)

    return app


def command(
    app: typer.Typer,
    name: str,
    request: Any,
    carry_out: Callable[[Any, Output], None],
    *,
    doc: str | None = None,
) -> None:
    """Make a function the command that is asked for by a request, a class, or one of several `Kinds`.

    Besides the fields it takes `--json`. doc: the help, by default the request's docstring.
    """
    kinds = request if isinstance(request, Kinds) else None
    fields = [
        field
        for field in (fields_of(request) if kinds is None else kinds.fields())
        if python_only not in field.marks
    ]

    def run(**given: Any) -> None:
        out = Output(given.pop(AS_JSON))
        kind = given.pop(kinds.said_by) if kinds else ""
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        values = {name: value for name, value in values.items() if value is not None and value != ()}
        asked = kinds.request(kind, values) if kinds else request(**values)
        AT_WORK.set(asked)
        try:
            carry_out(asked, out)
        except EOFError as error:  # which the parser takes for Ctrl-D
            raise InputError(f"a file ends too early: {error}", fix="copy or make it again") from error

    parameters = [_parameter(field) for field in sorted(fields, key=lambda field: not missing(field))]
    if kinds:
        kind_option = typer.Option(f"--{kinds.said_by}", help=kinds.what)
        required = sum(map(missing, fields))
        parameters.insert(required, _keyword(kinds.said_by, Annotated[str, kind_option], kinds.usual))
    json_option = typer.Option("--json", help="Print one JSON object as the last line of stdout.")
    parameters.append(_keyword(AS_JSON, Annotated[bool, json_option], False))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    text = doc or inspect.getdoc(request)
    run.requests = tuple(kinds.requests.values()) if kinds else (request,)  # type: ignore[attr-defined]
    app.command(name, cls=_helped(fields), help=text)(run)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, KEYWORD, default=default, annotation=annotation)


def _parameter(field: Field) -> inspect.Parameter:
    """As typer takes it; help is added when it is asked for."""
    kind, many = (str, False) if one_word in field.marks else _kind(field.hint)
    read = NUMBERS.get(kind)
    kind = list[kind] if many else kind  # type: ignore[valid-type]
    named = None if read is None else f"<{kind if many else kind.__name__}>"
    how: dict[str, Any] = {"parser": read, "metavar": field.metavar or named}
    shown = not (many or field.default in (None, "", ()))
    declared: Any
    if argument in field.marks:
        declared = typer.Argument(show_default=shown, **how)
    else:
        declared = typer.Option(*field.words, show_default=shown, hidden=hidden in field.marks, **how)
    if missing(field):
        return _keyword(field.name, Annotated[kind, declared], inspect.Parameter.empty)
    if many or field.default is None:
        return _keyword(field.name, Annotated[kind | None, declared], None)
    return _keyword(field.name, Annotated[kind, declared], field.default)


def _number(kind: Any, what: str) -> Callable[[Any], Any]:
    """What reads a word as a number, in words of our own."""

    def read(word: Any) -> Any:
        try:
            return kind(word)
        except ValueError as error:
            raise typer.BadParameter(f"{word!r} is not {what}.") from error

    return read


NUMBERS: dict[Any, Callable[[Any], Any]] = {
    int: _number(int, "a whole number"),
    float: _number(float, "a number"),
}


def _kind(hint: Any) -> tuple[Any, bool]:
    """What a word is read as, and whether there may be several: of several types the first that can be."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _kind(parts[0])
    if origin in (types.UnionType, typing.Union):
        read = [_kind(part) for part in parts if part is not types.NoneType]
        several = next((kind for kind in read if kind[1]), None)
        return several or next(kind for kind in read if kind[0] in READ)
    if origin is typing.Literal:
        return str, False
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Iterable)):
        kind, _ = _kind(parts[0])
        return kind if kind in READ else str, True
    return hint, False


def _helped(fields: list[Field]) -> type[TyperCommand]:
    """A command that reads what its options are where help is asked for."""

    class Helped(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            docs = {field.name: field.doc for field in fields}
            for parameter in self.params:
                if parameter.name in docs and hasattr(parameter, "help"):
                    parameter.help = docs[parameter.name]()
            super().format_help(ctx, formatter)

    return Helped
