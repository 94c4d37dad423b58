"""`Request`: one frozen dataclass is a command line, a call in Python, a folder's identity, and the help.

The string below a field says what it is: `--help` and the documentation show it. Braces in it name a constant
of the field's module: `{DECODE_MINUTES:g}`. How a field is given is said in its annotation:

    minutes: Annotated[float | None, added_later, not_identity, only_with("decode")] = None
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

from offramp.errors import InputError
from offramp.files import require_path
from offramp.kit.arguments import field_hints, require_named, settled
from offramp.kit.rules import is_rule, refusal_beside, suggest

P = ParamSpec("P")
Answer = TypeVar("Answer", covariant=True)

not_identity = "not identity"
"""Of what changes how an answer is had, and not which: a folder is the same request's with any value."""
not_repeated = "not repeated"
"""Of what is left out where a command is suggested that does the same again."""
added_later = "added later"
"""Of a field that older folders know nothing of: with its default it is no part of the identity."""
python_only = "python only"
"""Of what only a call in Python may give."""
hidden = "hidden"
"""Of an option that help does not show."""
argument = "argument"
"""Of what is given without an option's name on the command line."""
one_word = "one word"
"""Of what may be a sequence in Python, and is one word on the command line: `--at 12,20`."""


@dataclass(frozen=True)
class Flags:
    """How a field is spelt on the command line, if not `--its-name`, and what stands for its value."""

    names: tuple[str, ...]
    metavar: str | None = None


def flags(*names: str, metavar: str | None = None) -> Flags:
    """The names of a field's option: `flags("--output", "-o")`; `--on/--off` for a switch."""
    return Flags(names, metavar)


@dataclass(frozen=True)
class Writes:
    """A file or folder that is written: `--output`, `-o`, unless the field has a name of its own."""

    require: Callable[[Any, Path], None]
    """Of a request and a path: refuses one where something stands that offramp did not write."""


@dataclass(frozen=True)
class Field:
    """One field of a request, read."""

    name: str
    hint: Any
    """Its annotation without what is said of it, a type."""
    said: str
    """The same as it was written."""
    default: Any
    """MISSING of one that must be given."""
    doc: Callable[[], str]
    """What it is. Reading it reads the source."""
    marks: tuple[Any, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """How it is spelt on the command line."""
        given = next((mark for mark in self.marks if isinstance(mark, Flags)), None)
        if given is not None and given.names:
            return given.names
        return (f"--{self.name.replace('_', '-')}", *(("-o",) if self.name == "output" else ()))

    @property
    def writes(self) -> Writes | None:
        """What refuses a path, of what is written."""
        return next((mark for mark in self.marks if isinstance(mark, Writes)), None)

    def switch(self, value: Any) -> str:
        """The long name with which a value is given, "_" for "-": a switch has one for on and one for off."""
        long = next(word for word in self.words if word.startswith("--"))
        on, _, off = long.partition("/")
        return (off if off and value is False else on)[2:].replace("-", "_")

    @property
    def metavar(self) -> str | None:
        """What stands for a value in the help."""
        return next((mark.metavar for mark in self.marks if isinstance(mark, Flags)), None)


def fields_of(request: Any) -> tuple[Field, ...]:
    """The fields of a request, a class: its own first, then those of each of its bases."""
    return _fields_of(request)


@functools.cache
def _fields_of(request: type) -> tuple[Field, ...]:
    declared = {field.name: field for field in dataclasses.fields(request)}
    hints = field_hints(request)
    homes: dict[str, list[type]] = {}
    for base in request.__mro__:
        for name in inspect.get_annotations(base):
            if name in declared:
                homes.setdefault(name, []).append(base)
    found = []
    for name, classes in homes.items():
        said, hint = hints[name]
        marks: tuple[Any, ...] = ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *listed = typing.get_args(hint)
            marks = tuple(mark for mark in listed if not is_rule(mark))
            if rules := tuple(mark for mark in listed if is_rule(mark)):
                hint = Annotated[(hint, *rules)]
            if said.startswith("Annotated["):
                said = ast.unparse(_first_of(said))
        doc = functools.partial(_doc, tuple(classes), name)
        found.append(Field(name, hint, said, declared[name].default, doc, marks))
    return tuple(found)


def _first_of(annotated: str) -> ast.expr:
    """The type in the text of an `Annotated[...]`."""
    parsed = ast.parse(annotated, mode="eval").body
    assert isinstance(parsed, ast.Subscript)
    return parsed.slice.elts[0] if isinstance(parsed.slice, ast.Tuple) else parsed.slice


def _doc(homes: tuple[type, ...], name: str) -> str:
    """The string below a field, with the constants that it names; of one that a class declares again without
    a string, that of the class above."""
    for home in homes:
        text = _docs(home.__module__).get((home.__qualname__, name), "")
        if text:
            return text.format_map(vars(sys.modules[home.__module__])) if "{" in text else text
    return ""


@functools.cache
def _docs(module: str) -> Mapping[tuple[str, str], str]:
    """The strings below the fields of a module's classes, by class and field."""
    file = inspect.getfile(sys.modules[module])
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    if said and isinstance(below.value.value, str):  # type: ignore[attr-defined]
                        text = inspect.cleandoc(below.value.value)  # type: ignore[attr-defined]
                        found[node.name, field.target.id] = " ".join(text.split())
    return found


class Options:
    """A part of a request that several share."""

    def settle(self) -> dict[str, Any]:
        """Fields whose values become others: a text becomes what it means. Raises InputError."""
        return {}

    def check(self) -> None:
        """Refuse what makes no sense, before anything is read. Raises InputError."""

    def given(self) -> dict[str, Any]:
        """What is not as by default, by the names of options with "_", as `command_line` takes them."""
        found: dict[str, Any] = {}
        for field in fields_of(type(self)):
            value = getattr(self, field.name)
            if value == field.default or {argument, python_only, not_repeated} & set(field.marks):
                continue
            if isinstance(value, bool):
                found[field.switch(value)] = True
            else:
                plain = list(value) if isinstance(value, tuple) else value
                found[field.switch(True)] = str(plain) if isinstance(plain, Path) else plain
        return found


class Request(Options):
    """What is asked for: its fields are what the command takes, and its call in Python.

    A request that exists is whole: values are of their annotations' types (numbers of numpy become Python's,
    a sequence a tuple) and keep their rules, what means nothing beside the rest is refused, and so is an
    output in whose place something stands that offramp did not write, and what `check` refuses.
    """

    def __post_init__(self) -> None:
        fields = fields_of(type(self))
        for field in fields:
            value = getattr(self, field.name)
            option = f"--{field.switch(value).replace('_', '-')}"
            where = "" if option[2:].replace("-", "_") == field.name else option
            object.__setattr__(
                self, field.name, settled(field.name, value, field.hint, field.said, where=where)
            )
        self._refuse_beside({field.name: field for field in fields})
        for name, value in self.settle().items():
            object.__setattr__(self, name, value)
        for field in fields:
            if field.writes is not None and (output := getattr(self, field.name)) is not None:
                require_path(output)
                field.writes.require(self, Path(output))
        self.check()
        for field in fields:  # what nothing above refused would be taken for not given
            if getattr(self, field.name) == "" != field.default:
                option = f"--{field.switch('').replace('_', '-')}"
                leave = "" if missing(field) else f", or leave {option} out"
                raise InputError("the value is empty", where=option, fix=f"give one{leave}")

    def identity(self) -> dict[str, Any]:
        """What makes it another request, by name."""
        return {
            field.name: value
            for field in fields_of(type(self))
            if not {not_identity, python_only} & set(field.marks)
            and ((value := getattr(self, field.name)) != field.default or added_later not in field.marks)
        }

    @property
    def resumes(self) -> bool:
        """Whether the same request goes on with what was finished when it was stopped."""
        return False

    def _refuse_beside(self, fields: Mapping[str, Field]) -> None:
        """Refuse a field that is given and means nothing beside the rest, or does not fit it."""

        def option(name: str, value: Any) -> str:
            return f"--{fields[name].switch(value).replace('_', '-')}"

        defaults = {name: field.default for name, field in fields.items()}
        for name, field in fields.items():
            if why := refusal_beside(name, self, field.marks, defaults, option):
                where = option(name, getattr(self, name))
                raise InputError(why.what, where=where, fix=why.fix)


class CarriedOut(Protocol[Answer]):
    """A request that is also a call in Python."""

    def carry_out(self) -> Answer:
        """Do what is asked for."""


def as_call(request: Callable[P, CarriedOut[Answer]]) -> Callable[P, Answer]:
    """The function with a request's fields as its arguments, which carries it out."""

    def call(*args: P.args, **kwargs: P.kwargs) -> Answer:
        require_named(call.__name__, kwargs, signature.parameters)
        return request(*args, **kwargs).carry_out()

    assert isinstance(request, type)
    told = [textwrap.fill(f"{field.name}: {field.doc()}", 104) for field in fields_of(request)]
    call.__doc__ = "\n".join([inspect.getdoc(request) or "", "", *told])
    signature = inspect.signature(request)
    said = {field.name: field.said for field in fields_of(request)}
    parameters = [
        parameter.replace(annotation=said[name]) for name, parameter in signature.parameters.items()
    ]
    answer = inspect.signature(request.carry_out).return_annotation  # type: ignore[attr-defined]
    call.__annotations__["return"] = answer
    call.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=answer
    )
    call.__module__, call.__name__ = request.__module__, request.__name__.lower()
    call.request = request  # type: ignore[attr-defined]
    return call


@dataclass(frozen=True)
class Kinds:
    """Requests of several kinds, of which one field says which is meant: each has fields of its own."""

    what: str
    """What the field says, in the help."""
    requests: Mapping[str, Any]
    """A request, a class, by kind; the first is the usual one."""
    said_by: str = "kind"

    @property
    def usual(self) -> str:
        """The kind where none is named."""
        return next(iter(self.requests))

    def fields(self) -> tuple[Field, ...]:
        """The fields of all kinds, each once; their strings say of which kinds they are, where not of all.

        The default of one that not all have, or not with the same default, is None: it is not given. Its
        string says it.
        """
        having: dict[str, dict[str, Field]] = {}
        for kind, request in self.requests.items():
            for field in fields_of(request):
                having.setdefault(field.name, {})[kind] = field
        fields = []
        for own in having.values():
            field = next(iter(own.values()))
            of_all = len(own) == len(self.requests)
            if not of_all or len({repr(other.default) for other in own.values()}) > 1:
                doc = functools.partial(_said_of, own, of_all)
                field = dataclasses.replace(field, default=None, doc=doc)
            fields.append(field)
        return tuple(fields)

    def named(self, kind: str) -> Any:
        """The request of a kind, a class. Raises InputError, with a near one, where there is no such kind."""
        if kind not in self.requests:
            raise InputError(
                f"there is no {self.said_by} {kind!r}",
                where=f"{self.said_by}= (--{self.said_by})",
                fix=suggest(kind, self.requests),
            )
        return self.requests[kind]

    def request(self, kind: str, given: Mapping[str, Any], call: str = "") -> Any:
        """The request of a kind. given: its fields by name, those of other kinds only if they were given.

        call: the function that was given them. Raises InputError for an unknown kind, and for a field of
        another one; TypeError for what is none of any.
        """
        request = self.named(kind)
        own = {field.name: field for field in fields_of(request)}
        require_named(call, given, own | {field.name: field for field in self.fields()})
        for field in self.fields():
            if field.name in given and field.name not in own:
                option = f"--{field.switch(given[field.name]).replace('_', '-')}"
                raise InputError(
                    f"{option} means nothing with --{self.said_by} {kind}",
                    where=option,
                    fix=f"leave {option} out",
                )
        return request(**given)


def _said_of(own: Mapping[str, Field], of_all: bool) -> str:
    """What a field is, by the kinds that have it, and what it is by default."""
    usual, *others = ((kind, _default(field)) for kind, field in own.items())
    differing = [f"{default} of {kind}" for kind, default in others if default != usual[1]]
    text = next(iter(own.values())).doc()
    text = text if of_all else f"{', '.join(own)}: {text}"
    return f"{text} By default {', '.join([usual[1], *differing])}." if usual[1] else text


def _default(field: Field) -> str:
    """A field's default in words, "" where it has none."""
    value = field.default
    if isinstance(value, bool):
        return f"--{field.switch(True).replace('_', '-')}" if value else ""
    if value in (MISSING, None, "", ()):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def missing(field: Field) -> bool:
    """Whether a field must be given."""
    return field.default is MISSING
