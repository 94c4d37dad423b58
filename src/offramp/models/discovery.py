"""Finding a model's stack of exits by tracing one short forward, and checking it against the model itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.models.calls import UNFIT_ERRORS, first_tensor, hooked
from offramp.models.conditioned import probing
from offramp.models.stack import READOUTS, ExitStack, LogitScaling, ReadoutKind, plain_linear
from offramp.models.tensors import largest_difference, largest_finite

PROBE_POSITIONS = 7
PROBE_TRIES = 1000
"""Tokens that are looked at for a probe, of which a vocabulary of ordinary size gives nearly all."""

# bfloat16 keeps 8 significant bits, float16 more; two units in the last place of the largest logit.
ROUNDED_TOLERANCE = 2.0**-7


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


def probe_ids(model: Any, positions: int = PROBE_POSITIONS) -> Tensor:
    """Fixed, varied token ids [1, positions] that avoid the special tokens, as far as there are others."""
    config = model.config.get_text_config()
    special = special_tokens(config)
    ids: list[int] = []
    candidate = 11
    for _ in range(PROBE_TRIES):
        candidate = (candidate * 31 + 17) % config.vocab_size
        candidate += candidate in ids
        if candidate % config.vocab_size not in special:
            ids.append(candidate % config.vocab_size)
        if len(ids) == positions:
            break
    else:  # of a few tokens, among which the walk goes in circles: those in a row, all but the first again
        few = range(min(config.vocab_size, PROBE_TRIES))
        plain = [token for token in few if token not in special] or list(few)
        again = itertools.cycle(plain[1:] or plain)
        ids = [*plain, *itertools.islice(again, positions)][:positions]
    return torch.tensor([ids], device=model.device)


def special_tokens(config: Any) -> set[int]:
    """Ids that a text config names as special; an entry may list several."""
    special: set[int] = set()
    for key, value in config.to_dict().items():
        if key.endswith("_token_id"):
            special.update(value if isinstance(value, list) else [value])
    return special


def find_stack(model: Any, *, name: str = "") -> ExitStack:
    """Trace one short forward, build the stack of exits and check that exit L gives the model's own logits.

    The readouts are tried from the fastest: "fast", "stub", "swap". In float32 the logits must be equal bit
    for bit; in bfloat16 and float16 within 2^-7 of the largest one.

    Raises ModelError if the forward fails or gives no numbers, if no list of layers is found, if the model
    looks ahead (its logits depend on later tokens), or if no readout reproduces the logits; the largest
    difference is named.
    """
    with probing(model):
        return _found_stack(model, name)


def _found_stack(model: Any, name: str) -> ExitStack:
    ids = probe_ids(model)
    try:
        root = record_calls(model, ids)
    except UNFIT_ERRORS as error:
        raise_if_out_of_memory(error)
        raise ModelError(
            f"a short forward pass of the model fails: {type(error).__name__}: {error}",
            where=name,
            fix="offramp reads causal language models that run on token ids alone",
        ) from error
    logits = getattr(root.output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"a {type(model).__name__} gives no logits: it has no output head",
            where=name,
            fix="use the causal language model with its head (AutoModelForCausalLM)",
        )
    _check_numbers(logits, name)
    _check_causal(model, ids, logits, name)
    stack = _unchecked_stack(model, root, ids, name)
    return _checked_stack(stack, first_tensor(stack.layer_outputs[-1]), ids, logits, name)


def _check_numbers(logits: Tensor, name: str) -> None:
    """Refuse a model whose logits are no numbers; -inf is one, by which families rule tokens out."""
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise ModelError(
            "the model's logits are NaN or infinite on a short text, though all of its weights are finite",
            where=name,
            fix="its numbers overflow, or its config is wrong (an epsilon that is no number, say): try "
            "--dtype float32, or another copy of the model",
        )


def _check_causal(model: Any, ids: Tensor, logits: Tensor, name: str) -> None:
    """Refuse a model whose logits at a position change with the tokens after it."""
    changed = ids.clone()
    changed[:, -1] = ids[:, 0]
    with torch.no_grad():
        other = model(input_ids=changed, use_cache=False).logits
    difference = largest_difference(other[:, :-1], logits[:, :-1])
    exact = logits.dtype == torch.float32
    if not difference <= (1e-4 if exact else 2e-2) * largest_finite(logits):
        raise ModelError(
            f"the model looks ahead: its logits change by up to {difference:.3g} when a later token changes",
            where=name,
            fix="use a causal language model (for BERT-like models set is_decoder to true in config.json)",
        )


def _unchecked_stack(model: Any, root: Call, ids: Tensor, name: str) -> ExitStack:
    expected = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    layer_calls = find_layer_calls(root, expected)
    if not layer_calls:
        raise ModelError(
            "no list of decoder layers was found in a forward pass of the model",
            where=name,
            fix="offramp reads models whose layers are elements of one module list, run one after another",
        )
    last, core_call = layer_calls[-1], layer_calls[-1].caller
    assert core_call is not None, "layers are called by the module that owns them"
    head = _find_head(model, root, last)
    tail = None if head is None else calls_before(calls_after(last, root), head)
    logit_scaling = None if head is None else find_logit_scaling(model, head, ids)
    layers = tuple(call.module for call in layer_calls)
    return ExitStack(
        hf=model,
        layers=layers,
        core=core_call.module,
        core_output=core_call.output,
        layer_outputs=tuple(call.output for call in layer_calls),
        tail=tuple(call.module for call in tail or ()),
        core_tail=tuple(call.module for call in calls_after(last, core_call)),
        head=head if tail is not None else None,
        logit_scaling=logit_scaling,
        position_axis=_position_axis(first_tensor(last.output), ids.shape[1]),
        handed_on=_handed_on(model, layers, layer_calls[0].output, ids),
    )


def _handed_on(model: Any, layers: tuple[nn.Module, ...], output: Any, ids: Tensor) -> tuple[int, ...]:
    """See `ExitStack.handed_on`. output: layer 1's."""
    if not isinstance(output, tuple) or not any(isinstance(part, Tensor) for part in output[1:]):
        return ()
    outputs: list[Any] = []
    given: list[list[Any]] = []
    with (
        torch.no_grad(),
        hooked(
            layers,
            lambda module, arguments, keywords: given.append([*arguments, *keywords.values()]),
            lambda module, arguments, keywords, output: outputs.append(output),
        ),
    ):
        model(input_ids=ids, use_cache=False)

    def goes_through(place: int) -> bool:
        part = outputs[0][place]
        taken = all(any(value is part for value in values) for values in given[1:])
        return isinstance(part, Tensor) and taken and all(other[place] is part for other in outputs)

    return tuple(place for place in range(1, len(output)) if goes_through(place))


def _find_head(model: Any, root: Call, last: Call) -> nn.Module | None:
    """The output head: what the model names as such if it was called after the layers, else the last module
    whose output is as wide as the logits."""
    after = [call for outer in calls_after(last, root) for call in outer.walk()]
    named = model.get_output_embeddings()
    if any(call.module is named for call in after):
        return named  # type: ignore[no-any-return]
    width = root.output.logits.shape[-1]
    wide = [
        call.module
        for call in after
        if not call.children and isinstance(call.output, Tensor) and call.output.shape[-1] == width
    ]
    return wide[-1] if wide else None


def _position_axis(hidden: Any, positions: int) -> int:
    """The axis that counts positions, from the end; the usual -2 is looked at first."""
    axes: list[int] = [-2, *range(-hidden.dim(), -2)]
    for axis in axes:
        if -axis <= hidden.dim() and hidden.shape[axis] == positions:
            return axis
    return -2


def _checked_stack(stack: ExitStack, hidden: Tensor, ids: Tensor, logits: Tensor, name: str) -> ExitStack:
    differences: dict[ReadoutKind, str] = {}
    exact = logits.dtype == torch.float32 and hidden.dtype == torch.float32
    tolerance = 0.0 if exact else ROUNDED_TOLERANCE * largest_finite(logits)
    for kind, read in READOUTS.items():
        try:
            with torch.no_grad():
                # A model that is spread over several devices gives its logits where it took the ids.
                found = read(stack, hidden, None).to(logits.device)
        except UNFIT_ERRORS as error:
            differences[kind] = f"not possible ({type(error).__name__})"
            continue
        if found.shape != logits.shape:
            differences[kind] = f"shape {tuple(found.shape)} instead of {tuple(logits.shape)}"
            continue
        difference = largest_difference(found, logits)
        if difference <= tolerance and not math.isnan(difference):
            weight, bias = (
                plain_linear(stack.head, stack.tail_forward(hidden)) if kind == "fast" else (None, None)
            )
            return dataclasses.replace(
                stack, readout_kind=kind, largest_difference=difference, head_weight=weight, head_bias=bias
            )
        differences[kind] = f"largest difference {difference:.3g}"
    raise ModelError(
        "exit L does not reproduce the model's own logits: "
        + ", ".join(f"{kind}: {text}" for kind, text in differences.items()),
        where=name,
        fix="this model cannot be measured exactly; docs/families.md lists the families that can",
    )


def record_calls(model: nn.Module, ids: Tensor) -> Call:
    """Run one forward without a cache and record every module call.

    ids: int64 [batch, positions]. Returns the top-level call; its `output` is the model's.
    """
    root: Call | None = None
    stack: list[Call] = []

    def enter(module: nn.Module, arguments: Any, keywords: Any) -> None:
        nonlocal root
        caller = stack[-1] if stack else None
        call = Call(module, caller, len(caller.children) if caller else 0)
        if caller is not None:
            caller.children.append(call)
        else:
            root = call
        stack.append(call)

    def leave(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        stack.pop().output = output

    with hooked(model.modules(), enter, leave), torch.no_grad():
        model(input_ids=ids, use_cache=False)
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


SATURATING_LOGIT = 1e9


def find_logit_scaling(model: nn.Module, head: nn.Module, ids: Tensor) -> LogitScaling | None:
    """Find it by putting known float32 logits in place of the head's output.

    ids: int64 [batch, positions]. Returns None if what the model does is none of the three kinds, bit for
    bit.
    """
    known: list[Tensor] = []

    def put_known_logits(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        count = output.numel()
        values = torch.linspace(-90.0, 90.0, count, dtype=torch.float32, device=output.device)
        values[0], values[-1] = 1.0, SATURATING_LOGIT
        known.append(values.reshape(output.shape))
        return known[-1]

    handle = head.register_forward_hook(put_known_logits)
    try:
        with torch.no_grad():
            returned = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if not known or known[-1].shape != returned.shape:
        return None
    given, returned = known[-1].to(returned.device), returned.float()
    for candidate in _candidates(model, returned):
        if torch.equal(candidate.apply(given), returned):
            return candidate
    return None


def _candidates(model: nn.Module, returned: Tensor) -> list[LogitScaling]:
    """Scalings that fit the two telling logits: 1 shows a scale, a saturating one shows a soft-cap."""
    at_one, at_saturation = float(returned.flatten()[0]), float(returned.flatten()[-1])
    candidates = [LogitScaling()]
    for value in _with_config_values(model, at_one):
        candidates.append(LogitScaling("scale", value))
    for divisor in _with_config_values(model, 1.0 / at_one if at_one else 0.0):
        if divisor:
            candidates.append(LogitScaling("scale", 1.0 / divisor, divisor))
    if 0.0 < at_saturation < SATURATING_LOGIT:
        for cap in _with_config_values(model, at_saturation):
            candidates.append(LogitScaling("softcap", cap))
    return candidates


def _with_config_values(model: nn.Module, measured: float) -> list[float]:
    """The measured value and any number of the model's config that float32 cannot tell from it.

    The config's number is the unrounded one, which bit-exactness may need; its key is not looked at.
    """
    config: Any = model.config
    numbers = [
        float(number)
        for number in config.get_text_config().to_dict().values()
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    ]
    near = [number for number in numbers if abs(number - measured) <= 1e-6 * abs(measured)]
    return [*dict.fromkeys([*near, measured])]
