"""What parameters of policies may be, as types, and their move to a pruned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from offramp.errors import PolicyError
from offramp.kit.numbers import Count, Number
from offramp.kit.rules import Beside, Must, OneOf
from offramp.policies.policy import ExitPolicy, ParameterError, check_exits
from offramp.policies.signals import SIGNALS


def _ascend(exits: tuple[int, ...]) -> bool:
    return bool(exits) and list(exits) == sorted(set(exits))


EXIT = "exit"
"""Of a number that is an exit's, not a count."""
Exit = Annotated[Count, EXIT]
Exits = Annotated[
    tuple[Exit, ...],
    Must(_ascend, "ascending, each given once", "write each exit once, ascending, as in 10+15+20"),
]
ExitsOrAll = Exits | Literal["all"]

SignalName = Annotated[str, OneOf("signal", lambda: SIGNALS)]
ConfidenceName = Annotated[
    SignalName,
    Must(
        lambda name: SIGNALS[name].is_confidence,
        "a confidence from 0 to 1",
        "choose one of: " + ", ".join(name for name, signal in SIGNALS.items() if signal.is_confidence),
    ),
]


def _of_signal(given: Any) -> str:
    signal = SIGNALS[given.signal]
    bound = "or more" if signal.high == float("inf") else f"to {signal.high:.6g}"
    return f"one that {signal.name} has, {signal.low:g} {bound} in {signal.unit}"


Limit = Annotated[Number, Beside(lambda value, given: SIGNALS[given.signal].holds(value), _of_signal)]
"""A threshold that tells tokens apart, in the unit of the policy's signal."""
Limits = Annotated[
    tuple[Number, ...],
    Beside(lambda values, given: all(map(SIGNALS[given.signal].holds, values)), _of_signal),
    Beside(
        lambda values, given: len(values) == len(given.exits),
        lambda given: f"one for each of {len(given.exits)} exits",
    ),
]
Inner = Annotated[
    ExitPolicy,
    Must(
        lambda policy: policy.reachable,
        "a policy that decides without the full model's answer",
        "replay it on its own",
    ),
]
"""A policy within another."""

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


def exits_below(exits: ExitsOrAll, layers: int) -> tuple[int, ...]:
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


SEVERAL_EXITS = (Exits, ExitsOrAll)
"""What lists of exits are annotated with."""


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
    hints = {parameter.name: parameter.hint for parameter in policy.parameters}
    values: dict[str, Any] = {name: getattr(policy, name) for name in hints}
    listed = [values[name] for name, hint in hints.items() if hint in SEVERAL_EXITS]
    exits: tuple[int, ...] = () if not listed or listed[0] == "all" else listed[0]
    places = _places(exits, kept) if exits else None
    for name, value in values.items():
        if EXIT in get_args(hints[name]):
            values[name] = _exit(value, kept)
        elif places is not None and hints[name] in SEVERAL_EXITS:
            values[name] = tuple(_exit(value[place], kept) for place in places)
        elif isinstance(value, ExitPolicy):
            values[name] = _moved(value, kept)
        elif isinstance(value, tuple) and any(isinstance(item, ExitPolicy) for item in value):
            values[name] = tuple(_moved(item, kept) for item in value)
        elif places is not None and isinstance(value, tuple) and len(value) == len(exits):
            values[name] = tuple(
                value[place] for place in places
            )  # one entry for each exit, as thresholds are
    return replace(policy, **values)  # type: ignore[type-var]


def _exit(exit: int, kept: Sequence[int]) -> int:
    return sum(layer <= exit for layer in kept)


def _places(exits: tuple[int, ...], kept: Sequence[int]) -> list[int]:
    """Which entries of a list of exits stand in the list after the move."""
    deepest = {_exit(exit, kept): place for place, exit in enumerate(exits)}
    return [place for exit, place in deepest.items() if 0 < exit < len(kept)]
