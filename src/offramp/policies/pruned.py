"""An exit policy moved to a model that has lost some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offramp.errors import PolicyError
from offramp.policies.policy import ExitPolicy
from offramp.policies.reading import Exits, read_exit, read_exit_list, read_exits

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
