"""What parameters of policies may be: readers of their texts, checks, and their move to a pruned model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from offramp.errors import PolicyError
from offramp.kit.numbers import whole_number
from offramp.policies.policy import ExitPolicy, ParameterError, check_exits
from offramp.policies.signals import SIGNALS, Signal, suggest

Exits = tuple[int, ...]
ExitsOrAll = Exits | Literal["all"]

LARGEST_COUNT = 999_999_999
DEEPEST = 8
"""How deep policies may be nested in one another."""


def split_outside_brackets(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """The pieces of a text between separators that no bracket encloses, each with where it starts."""
    depth = start = 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            yield start, text[start:place]
            start = place + 1
    yield start, text[start:]


def require_balanced(text: str) -> None:
    """Raise ParameterError at a round bracket, one without its partner, or one that nests too deep."""
    for opening in ("=(", "+("):
        if opening in text:
            raise ParameterError(
                "a policy within another stands in square brackets [ ]",
                fix="write [threshold:...] instead of (threshold:...)",
                offset=text.index(opening) + 1,
            )
    opened: list[int] = []
    for place, character in enumerate(text):
        if character == "[":
            opened.append(place)
        elif character == "]":
            if not opened:
                raise ParameterError("this bracket closes nothing", fix="remove it", offset=place)
            opened.pop()
        if len(opened) > DEEPEST:
            raise ParameterError(
                f"policies are nested more than {DEEPEST} deep", fix="nest fewer of them", offset=place
            )
    if opened:
        raise ParameterError("this bracket is not closed", fix='add "]"', offset=opened[-1])


def _count(text: str) -> int | None:
    """A whole number of at least 1, None for any other text."""
    return whole_number(text, 1, LARGEST_COUNT)


def read_count(text: str) -> int:
    """A whole number of at least 1."""
    count = _count(text)
    if count is None:
        raise ParameterError(
            f"{text!r} is not a whole number of 1 or more",
            fix=f"write a whole number from 1 to {LARGEST_COUNT:,}",
        )
    return count


def read_exit(text: str) -> int:
    """An exit number of at least 1."""
    exit = _count(text)
    if exit is None:
        raise ParameterError(f"{text!r} is not an exit", fix="write a layer number, 1 or more")
    return exit


def read_exits(text: str) -> ExitsOrAll:
    """Ascending exits joined by "+", or "all"."""
    return "all" if text == "all" else read_exit_list(text)


def read_exit_list(text: str) -> Exits:
    """Ascending exits joined by "+"."""
    exits: list[int] = []
    for offset, item in split_outside_brackets(text, "+"):
        exit = _count(item)
        if exit is None:
            raise ParameterError(
                f"{item!r} is not an exit",
                fix='write layer numbers joined by "+", as in 10+15+20, or all',
                offset=offset,
            )
        if exits and exit <= exits[-1]:
            raise ParameterError(
                f"exit {item} comes after exit {exits[-1]}",
                fix="write each exit once, ascending",
                offset=offset,
            )
        exits.append(exit)
    return tuple(exits)


def read_number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError as error:
        raise ParameterError(f"{text!r} is not a number", fix="write a number such as 0.9") from error
    if not math.isfinite(value):
        raise ParameterError(f"{text} is not finite", fix="write a finite number such as 0.9")
    return value


def read_numbers(text: str) -> tuple[float, ...]:
    """Finite numbers joined by "+"."""
    numbers: list[float] = []
    for offset, item in split_outside_brackets(text, "+"):
        try:
            numbers.append(read_number(item))
        except ParameterError as error:
            raise error.moved(offset) from error
    return tuple(numbers)


def read_signal(text: str) -> str:
    """The name of a registered signal."""
    if text not in SIGNALS:
        raise ParameterError(f"unknown signal {text!r}", fix=suggest(text, SIGNALS))
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """A reader of one of a few words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ParameterError(f"{text!r} is not one of the choices", fix=suggest(text, choices))
        return text

    return read


@dataclass(frozen=True)
class PolicyText:
    """The text of a policy within another, which the grammar reads. offset: characters in front of it."""

    text: str
    offset: int


def read_nested(text: str) -> PolicyText:
    """A policy in brackets."""
    if not (text.startswith("[") and text.endswith("]")):
        raise ParameterError(
            "a policy within another stands in brackets", fix="write it as [threshold:signal=...]"
        )
    return PolicyText(text[1:-1], 1)


def read_nested_list(text: str) -> tuple[PolicyText, ...]:
    """Policies in brackets, joined by "+"."""
    found: list[PolicyText] = []
    for offset, item in split_outside_brackets(text, "+"):
        try:
            nested = read_nested(item)
        except ParameterError as error:
            raise error.moved(offset) from error
        found.append(PolicyText(nested.text, offset + nested.offset))
    return tuple(found)


def require_threshold(signal: Signal, value: float, parameter: str = "value") -> None:
    """Raise ParameterError for a threshold that is not finite or that every fact lies on one side of."""
    if not math.isfinite(value):
        raise ParameterError(
            f"a threshold of {value} compares with nothing", fix="give a finite number", parameter=parameter
        )
    if not signal.holds(value):
        bounded = math.isfinite(signal.high)
        range_ = (
            f"lies between {signal.low:g} and {signal.high:.6g}" if bounded else f"is {signal.low:g} or more"
        )
        raise ParameterError(
            f"{signal.name} is never {value:g}: such a threshold tells no tokens apart",
            fix=f"{signal.name} {range_}, in the unit {signal.unit}",
            parameter=parameter,
        )


def require_confidence(signal: Signal) -> None:
    """Raise ParameterError for a signal that is not a confidence from 0 to 1 at every check."""
    if not signal.is_confidence:
        fitting = [name for name, other in SIGNALS.items() if other.is_confidence]
        raise ParameterError(
            f"{signal.name} is not a confidence from 0 to 1",
            fix="choose one of: " + ", ".join(fitting),
            parameter="signal",
        )


def require_within(value: float, low: float, high: float, parameter: str) -> None:
    """Raise ParameterError unless low <= value <= high."""
    if not low <= value <= high or not math.isfinite(value):
        range_ = f"from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise ParameterError(
            f"{parameter} is {value:g}", fix=f"give {parameter} as a number {range_}", parameter=parameter
        )


def require_ascending(exits: ExitsOrAll) -> None:
    """Raise ParameterError unless the exits of a policy built in Python ascend."""
    if exits != "all" and (not exits or list(exits) != sorted(set(exits))):
        raise ParameterError(
            f"{exits} are not exits to check", fix="give each exit once, ascending", parameter="exits"
        )


def require_reachable(policies: tuple[ExitPolicy, ...], parameter: str) -> None:
    """Raise ParameterError for an oracle among the policies that another one is made of."""
    for policy in policies:
        if not policy.reachable:
            raise ParameterError(
                f"{policy} cannot be part of another policy: it knows the full model's answer",
                fix="replay it on its own",
                parameter=parameter,
            )


def exits_below(exits: ExitsOrAll, layers: int) -> Exits:
    """The exits to check in a model of so many layers.

    Raises PolicyError for exit L, which ends a token anyway, or beyond.
    """
    check_exits(() if exits == "all" else exits, layers)
    if exits == "all":
        return tuple(range(1, layers))
    if layers in exits:
        raise PolicyError(
            f"exit {layers} is the full model: a check there can save nothing",
            fix=f"choose exits from 1 to {layers - 1}",
        )
    return exits


SEVERAL_EXITS = (read_exits, read_exit_list)
"""What reads parameters that are lists of exits."""


def pruned_policy(policy: ExitPolicy, kept: Sequence[int], layers: int) -> ExitPolicy:
    """The policy for a model of which only the layers `kept` (of 1 to `layers`, ascending) are left.

    Exit k becomes the exit after the last kept layer of the first k. Where several exits of a list come to
    the same one, the deepest of them stands for all, with its own threshold; exits before the first kept
    layer, and those after which no layer is left, are no longer in the list.

    Raises PolicyError if no exit is left below the last layer.
    """
    if len(kept) == layers:
        return policy
    lost = f"of {policy} no exit is left below the last of the {len(kept)} layers that are kept of {layers}"
    fix = "choose other exits, or prune fewer layers"
    try:
        moved = _moved(policy, kept)
        left = moved.needs(len(kept))
    except PolicyError as error:
        raise PolicyError(f"{lost}: {error.what}", where=str(policy), fix=fix) from error
    if policy.needs(layers) and not left:
        raise PolicyError(lost, where=str(policy), fix=fix)
    return moved


def _moved(policy: ExitPolicy, kept: Sequence[int]) -> ExitPolicy:
    fields = {parameter.name: getattr(policy, parameter.name) for parameter in policy.parameters}
    readers = {parameter.name: parameter.read for parameter in policy.parameters}
    listed = [fields[name] for name, read in readers.items() if read in SEVERAL_EXITS]
    exits: Exits = () if not listed or listed[0] == "all" else listed[0]
    places = _places(exits, kept) if exits else None
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if readers[name] is read_exit:
            value = _exit(value, kept)
        elif places is not None and readers[name] in SEVERAL_EXITS:
            value = tuple(_exit(value[place], kept) for place in places)
        elif isinstance(value, ExitPolicy):
            value = _moved(value, kept)
        elif isinstance(value, tuple) and any(isinstance(item, ExitPolicy) for item in value):
            value = tuple(_moved(item, kept) for item in value)
        elif places is not None and isinstance(value, tuple) and len(value) == len(exits):
            value = tuple(value[place] for place in places)  # one entry for each exit, as thresholds are
        values[name] = value
    return type(policy)(**values)


def _exit(exit: int, kept: Sequence[int]) -> int:
    return sum(layer <= exit for layer in kept)


def _places(exits: Exits, kept: Sequence[int]) -> list[int]:
    """Which entries of a list of exits stand in the list after the move."""
    deepest = {_exit(exit, kept): place for place, exit in enumerate(exits)}
    return [place for exit, place in deepest.items() if 0 < exit < len(kept)]
