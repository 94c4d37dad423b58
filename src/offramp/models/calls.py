"""The tree of module calls that one forward pass makes: which module called which, and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Call:
    """One call of a module: `index` is its place among its caller's calls, `output` what it returned."""

    module: nn.Module
    caller: Call | None
    index: int
    children: list[Call] = field(default_factory=list)
    output: Any = None

    @property
    def depth(self) -> int:
        """Calls around this one; 0 for the top-level module."""
        return 0 if self.caller is None else self.caller.depth + 1

    def walk(self) -> Iterator[Call]:
        """This call and all below it, in the order in which they began."""
        yield self
        for child in self.children:
            yield from child.walk()

    def calls(self, module: nn.Module | None) -> bool:
        """Whether `module` is called here or below."""
        return any(call.module is module for call in self.walk())


def first_tensor(output: Any) -> Any:
    """The hidden state of a layer's output: the output itself, or the first element of a tuple."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def hidden_argument(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """The hidden state among a layer's arguments: the first floating-point tensor."""
    found = place_of_hidden(arguments, keywords)
    return None if found is None else found[1]


def place_of_hidden(
    arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[int | str, Tensor] | None:
    """Place or keyword of the hidden state among a layer's arguments, and the state."""
    places: list[tuple[int | str, Any]] = [*enumerate(arguments), *keywords.items()]
    for place, value in places:
        if isinstance(value, Tensor) and value.is_floating_point():
            return place, value
    return None


def record_calls(model: nn.Module, ids: Tensor) -> Call:
    """Run one forward without a cache and record every module call.

    ids: int64 [batch, positions]. Returns the top-level call; its `output` is the model's.
    """
    root: Call | None = None
    stack: list[Call] = []

    def enter(module: nn.Module, arguments: Any) -> None:
        nonlocal root
        caller = stack[-1] if stack else None
        call = Call(module, caller, len(caller.children) if caller else 0)
        if caller is not None:
            caller.children.append(call)
        else:
            root = call
        stack.append(call)

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        stack.pop().output = output

    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    assert root is not None, "a forward pass calls at least the model itself"
    return root


def find_layer_calls(root: Call, expected: int | None) -> list[Call]:
    """The calls of the decoder layers, in execution order.

    Decoder layers are the elements of one module list that one caller runs one after the other. Among such
    lists the one with the `expected` number of executions comes first, then the outermost, then the longest:
    a list of experts is called from inside a layer, hence deeper. Lists that this forward never runs (a
    vision tower, an encoder, extra prediction heads) do not appear at all.
    """
    candidates = []
    calls_of: dict[nn.Module, list[Call]] = {}
    for call in root.walk():
        calls_of.setdefault(call.module, []).append(call)
    order = {call: number for number, call in enumerate(root.walk())}
    for module in root.module.modules():
        if not isinstance(module, nn.ModuleList):
            continue
        calls = [call for element in dict.fromkeys(module) for call in calls_of.get(element, [])]
        if not calls or any(call.caller is not calls[0].caller for call in calls):
            continue
        if not all(isinstance(first_tensor(call.output), Tensor) for call in calls):
            continue
        calls.sort(key=order.__getitem__)
        candidates.append(calls)
    if not candidates:
        return []
    return min(candidates, key=lambda calls: (len(calls) != expected, calls[0].depth, -len(calls)))


def calls_after(last: Call, until: Call) -> list[Call]:
    """The outermost calls between the end of `last` and the end of `until`, one of its callers."""
    after = []
    call = last
    while call is not until:
        caller = call.caller
        assert caller is not None, "`until` must be a caller of `last`"
        after.extend(caller.children[call.index + 1 :])
        call = caller
    return after


def calls_before(calls: list[Call], module: nn.Module) -> list[Call] | None:
    """The outermost of `calls` that ended before `module` was called, going into the call that holds it.

    None if none of them calls `module`.
    """
    before: list[Call] = []
    for call in calls:
        if call.module is module:
            return before
        if call.calls(module):
            inner = calls_before(call.children, module)
            return None if inner is None else before + inner
        before.append(call)
    return None
