"""An exit policy: the one object that decides where each token leaves, in replay and in decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.arguments import field_hints, settled
from offramp.kit.request import fields_of
from offramp.tracing.trace import Trace

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

Rows = NDArray[np.bool_]
FactsAtExit = Mapping[str, NDArray[Any]]


class ParameterError(PolicyError):
    """A parameter that does not fit.

    offset: characters before the one at fault. parameter: the name of the one at fault, where a policy finds
    out only from all of them together.
    """

    def __init__(self, what: str, *, fix: str, offset: int = 0, parameter: str | None = None) -> None:
        self.offset = offset
        self.parameter = parameter
        super().__init__(what, fix=fix)

    def moved(self, by: int) -> ParameterError:
        """The same error of a longer text that has `by` more characters in front."""
        return ParameterError(self.what, fix=self.fix, offset=self.offset + by)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a policy kind in the policy grammar: a field of its class.

    hint: the field's annotation, read, which says what it may be. default: the text used if it is left out,
    None if it must be given.
    """

    name: str
    hint: Any
    default: str | None
    doc: Callable[[], str]

    @property
    def meaning(self) -> str:
        """What it is, the string below the field."""
        return self.doc()


@cache
def _parameters_of(kind: type[ExitPolicy]) -> tuple[Parameter, ...]:
    def doc(name: str) -> str:
        return next(field.doc() for field in fields_of(kind) if field.name == name)

    hints = field_hints(kind)
    return tuple(
        Parameter(
            name=field.name,
            hint=hints[field.name][1],
            default=None if field.default is MISSING else text_of(field.default),
            doc=partial(doc, field.name),
        )
        for field in fields(kind)  # type: ignore[arg-type]
    )


class _Parameters:
    """The parameters of a policy's class, which are known once it is a dataclass."""

    def __get__(self, policy: ExitPolicy | None, kind: type[ExitPolicy]) -> tuple[Parameter, ...]:
        return _parameters_of(kind)


@dataclass(frozen=True)
class Tokens:
    """What is known of one token of every stream before any of its layers runs.

    index: int64 [streams], tokens of the same document or answer that came before it.
    facts: document-level facts by name, float64 [streams] (a prompt's difficulty, say).
    """

    index: NDArray[np.int64]
    facts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Decider(ABC):
    """A policy at work on several token streams side by side.

    A stream is a document in replay and a sequence in decoding. For every token: `begin`, then at each exit
    of `ExitPolicy.needs` from shallow to deep `checks` and `decide`, until the token leaves, then `end`. Rows
    that have left or are not checked may hold any values and their answers are not used.
    """

    def begin(self, tokens: Tokens) -> None:
        """A new token of every stream; forgets what belonged to the one before."""
        self.streams = len(tokens.index)

    def checks(self, exit: int) -> Rows:
        """Which streams read the facts at this exit, and pay for it: bool [streams]. By default all."""
        return np.ones(self.streams, dtype=np.bool_)

    @abstractmethod
    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        """Which streams leave at this exit: bool [streams].

        facts: by name, [streams], those that `ExitPolicy.needs` lists for this exit and no others.
        """

    # Not abstract: most policies remember nothing.
    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:  # noqa: B027
        """The exits taken, int64 [streams], and the facts of `ExitPolicy.final_facts` at exit L, [streams].

        The latter are known for streams that ran to exit L only; other rows hold any values.
        """


class ExitPolicy(ABC):
    """Decides, exit by exit from shallow to deep, whether a token leaves. At exit L every token leaves.

    A subclass is a frozen dataclass whose fields are its parameters, in order. Values are texts, numbers,
    other policies, or tuples of these, so that they survive text and JSON. Annotations say what they may be,
    limits and what fits beside another included (`offramp.kit.rules`), the string below a field what it is;
    values are held against them before the subclass's own `__post_init__` runs, and others' answers to what
    is said here (`offramp.policies.policy_checks`).

    reachable: whether it decides from what a decoder knows; an oracle does not, and has `exits_of` instead.
    """

    kind: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]] = _Parameters()  # type: ignore[assignment]
    reachable: ClassVar[bool] = True
    never_deepens: ClassVar[bool] = False
    AS_TEXT: ClassVar[bool] = True
    """In the JSON of records it is its text (`offramp.kit.typed`)."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A field of a record is read from its text."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(_of_text, core_schema.str_schema())

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        from offramp.policies.policy_checks import hold  # which stands on this module

        hold(cls)

    def __post_init__(self) -> None:
        """Let parameters be of the types of their fields. Raises ParameterError."""
        from offramp.policies.policy_checks import settle

        settle(self)

    @property
    def remembers(self) -> bool:
        """Whether a decision depends on earlier tokens of the same document."""
        return False

    @property
    def short_list(self) -> bool:
        """Whether a token that leaves early gets the best token of the short list, not of the whole head."""
        return False

    @property
    def short_head(self) -> bool:
        """Whether a token that runs to exit L gets the best token of the short list too, as then all do."""
        return False

    @property
    def full_depth(self) -> bool:
        """Whether every token runs every layer, whatever is saved elsewhere: no early exit at all."""
        return False

    @property
    def final_facts(self) -> tuple[str, ...]:
        """Facts at exit L that `Decider.end` is given, of tokens that ran so far.

        Those that the full head gives come with the model's own output; any other is charged as a probe at L.
        """
        return ()

    @property
    def document_facts(self) -> tuple[str, ...]:
        """Document-level facts that `Decider.begin` is given."""
        return ()

    @abstractmethod
    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The exits below L = `layers` where it is asked, ascending, and the facts that it reads there.

        An exit without facts costs no probe. Raises PolicyError if the policy does not fit a model of so many
        layers.
        """

    @abstractmethod
    def decider(self, layers: int, streams: int) -> Decider:
        """The policy at work on so many streams, knowing nothing of them yet."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The workload classes for which `for_task` gives a policy of their own."""
        return ()

    def for_task(self, task: str | None) -> ExitPolicy:
        """The policy for a workload class (the workload's name); itself unless it holds one per class."""
        return self

    def exits_of(self, trace: Trace) -> NDArray[np.int64]:
        """The exits that an unreachable policy takes, int64 [tokens]; raises PolicyError for any other."""
        raise PolicyError(
            f"{self.kind} looks nothing up", where=str(self), fix="ask its decider, token by token"
        )

    def leaves_at(self, layers: int) -> tuple[int, ...]:
        """The exits below L where a token may leave, ascending: by default all where it is asked."""
        return tuple(self.needs(layers))

    def checked_exits(self, layers: int) -> tuple[int, ...]:
        """The exits below L, ascending, where facts are read."""
        return tuple(exit for exit, facts in self.needs(layers).items() if facts)

    def parameter_values(self) -> Mapping[str, Any]:
        """Parameters by name, as JSON holds them: tuples become lists, policies their text in brackets."""
        return {parameter.name: _plain(getattr(self, parameter.name)) for parameter in self.parameters}

    def __str__(self) -> str:
        """The policy's text, which `parse_policy` reads back."""
        settings = ",".join(
            f"{parameter.name}={text_of(getattr(self, parameter.name))}" for parameter in self.parameters
        )
        return f"{self.kind}:{settings}" if settings else self.kind


def _of_text(text: str) -> ExitPolicy:
    """The policy of a text in a record's file. Raises ValueError for any other text, a file's name too."""
    from offramp.policies.grammar import parse_policy

    if text.endswith(".json"):
        raise ValueError(f"{text!r} stands where a policy's text should")
    try:
        return parse_policy(text)
    except PolicyError as error:
        raise ValueError(error.what) from error


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return text_of(value) if isinstance(value, ExitPolicy) else value


def text_of(value: Any) -> str:
    """A parameter value in the policy grammar.

    Numbers in their shortest exact form, lists joined by "+", in brackets a policy within another, and what
    in a list holds a "+" or a "," itself.
    """
    if isinstance(value, list | tuple):
        items = [text_of(item) for item in value]
        return "+".join(f"[{text}]" if {"+", ","} & set(text) and text[0] != "[" else text for text in items)
    if isinstance(value, ExitPolicy):
        return f"[{value}]"
    # A list is joined by "+", so an exponent has none.
    return value if isinstance(value, str) else repr(value).replace("e+", "e")


class ExitBeyondError(PolicyError):
    """A policy names an exit that the model has not."""

    def __init__(self, exit: int, layers: int) -> None:
        what = f"exit {exit} is beyond the model, which has {layers} layers"
        super().__init__(what, fix=f"choose exits from 1 to {layers}")
        self.exit = exit


def check_exits(exits: tuple[int, ...], layers: int) -> None:
    """Raise PolicyError unless every exit is one of the model's exits 1..L, InputError for what is no L."""
    layers = settled("layers", layers, int, "int")
    beyond = [exit for exit in exits if not 1 <= exit <= layers]
    if beyond:
        raise ExitBeyondError(beyond[0], layers)


def columns_of(trace: Trace, exits: tuple[int, ...]) -> NDArray[np.int64]:
    """The trace's columns that hold these exits: int64 [exits].

    Raises PolicyError for an exit that the model lacks, or that was not traced (with the option to do so).
    """
    check_exits(exits, trace.layers)
    traced = [int(exit) for exit in trace.exits]
    untraced = [exit for exit in exits if exit not in traced]
    if untraced:
        together = ",".join(str(exit) for exit in sorted({*traced, *exits}))
        named = ", ".join(str(exit) for exit in untraced[:8]) + (" ..." if len(untraced) > 8 else "")
        raise PolicyError(
            f"exit {named} was not traced",
            where=str(trace.folder or "the trace"),
            fix=f'trace again with exits="{together}" (--exits {together})',
        )
    return np.searchsorted(trace.exits, np.array(exits, dtype=np.int64)).astype(np.int64)
