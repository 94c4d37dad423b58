"""From a model to its engine: what must be known to drive it layer by layer, measured once per model."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.engine.cache_probe import KeptState, find_cache_keyword, find_kept_state
from offramp.decoding.engine.capability_tests import own_logits, try_ability
from offramp.decoding.engine.engine import Abilities, Engine, transposed_is_faster
from offramp.decoding.engine.meter import Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.models.discovery import UNFIT_ERRORS, find_stack, probe_ids
from offramp.models.model import Model
from offramp.models.stack import ExitStack
from offramp.models.tensors import largest_difference, largest_finite

PROMPT = 6
# Of the largest logit, our loop against the model's own forward with a cache.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


@dataclass
class _Known:
    """What is kept of a model between its engines; nothing in it may keep the model alive."""

    stack: ExitStack | None
    dtype: torch.dtype
    cache_name: str
    takes_positions: bool
    kept: tuple[KeptState, ...]
    transposed: bool = False
    answers: dict[str, str | None] = field(default_factory=dict)
    transforms: tuple[str, ...] = ()


_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()
_building = threading.RLock()


def engine_of(model: Model | Any) -> Engine:
    """The engine of an offramp model or of a bare transformers model, which must be in eval mode.

    What is found out about a model is kept as long as the model lives and keeps its dtype and transforms.

    Raises ModelError if the model cannot be driven layer by layer, with the reason; it can still be traced.
    """
    if isinstance(model, Model):
        model.require_loaded("decoding")
    hf = model.hf if isinstance(model, Model) else model
    name = model.name if isinstance(model, Model) else type(hf).__name__
    dtype = next(hf.parameters()).dtype
    _check_ready(hf, dtype, name)
    with _building:
        known = _known.get(hf)
        transforms = model.identity.transforms if isinstance(model, Model) else ()
        changed = isinstance(model, Model) and known is not None and known.transforms != transforms
        if known is not None and (known.dtype != dtype or changed):
            known = None
        stack = model.stack if isinstance(model, Model) else None
        if stack is None and known is not None and known.stack is not None:
            stack = dataclasses.replace(known.stack, hf=hf)
        if stack is None:
            stack = find_stack(hf, name=name)
        if known is None:
            known = _known[hf] = dataclasses.replace(_find_out(stack, name), transforms=transforms)
    return _engine(stack, known)


def _check_ready(hf: Any, dtype: torch.dtype, name: str) -> None:
    if hf.training:
        raise ModelError("the model is in training mode", where=name, fix="call its eval() first")
    if dtype not in TOLERANCE:
        raise ModelError(
            f"the model's weights are {str(dtype).removeprefix('torch.')}",
            where=name,
            fix="load it in float32 or bfloat16",
        )


def _engine(stack: ExitStack, known: _Known) -> Engine:
    kept = known.kept
    abilities = Abilities(lambda ability: try_ability(engine, ability), known.answers)
    engine = Engine(
        stack=stack,
        cache_name=known.cache_name,
        takes_positions=known.takes_positions,
        masks_steps=any(state.attends for state in kept),
        recurrent=tuple(state.recurrent for state in kept),
        updates=tuple(state.updates for state in kept),
        keeps=tuple(bool(state.entries) for state in kept),
        entries=tuple(state.entries for state in kept),
        abilities=abilities,
        transposed=known.transposed,
    )
    return engine


def _find_out(stack: ExitStack, name: str) -> _Known:
    """Measure the model by decoding a token of a short prompt, layer by layer.

    Raises ModelError if the model does not fit, or if the logits are not its own.
    """
    hf = stack.hf
    dtype = next(hf.parameters()).dtype
    nothing = KeptState((), False, 0, False, True)
    known = _Known(
        stack=None if stack.core is hf else dataclasses.replace(stack, hf=None),
        dtype=dtype,
        cache_name=find_cache_keyword(hf, name=name, dtype=str(dtype).removeprefix("torch.")),
        takes_positions="position_ids" in inspect.signature(hf.forward).parameters,
        kept=(nothing,) * len(stack),
        transposed=transposed_is_faster(stack),
    )
    ids = probe_ids(hf, PROMPT + 1)
    with torch.no_grad():
        expected = own_logits(_engine(stack, known), ids, 1)[-1]
        try:
            kept, logits = _decode_one(_engine(stack, known), ids, name)
        except UNFIT_ERRORS as error:
            raise_if_out_of_memory(error)
            raise _unfit(name, f"{type(error).__name__}: {error}") from error
    if not largest_difference(logits, expected) <= TOLERANCE[dtype] * largest_finite(expected):
        raise _unfit(name, "layers called one by one give other logits than the model")
    if any(state.elsewhere for state in kept):
        raise _unfit(name, "its layers keep a state outside the cache's list of layers")
    if not any(state.entries for state in kept):
        raise _unfit(name, "nothing that its layers keep is found in its cache")
    return dataclasses.replace(known, kept=tuple(kept))


def _decode_one(engine: Engine, ids: Tensor, name: str) -> tuple[list[KeptState], Tensor]:
    """Decode the last token after the others; what each layer leaves behind, and the logits."""
    sequences = Sequences(engine, ids[:, :-1], None, Meter())
    inputs = sequences.inputs(0, PROMPT)
    sequences.run(inputs.hidden, inputs, 0, engine.layers)
    sequences.feed(ids[:, -1:])
    inputs = sequences.inputs(PROMPT, PROMPT + 1)
    if inputs.hidden.dim() != 3:
        raise _unfit(name, f"its hidden state has {inputs.hidden.dim()} axes instead of 3")
    hidden, kept = inputs.hidden, []
    for layer, call in zip(engine.stack.layers, inputs.calls, strict=True):
        state, hidden = find_kept_state(layer, call, sequences.cache, hidden)
        kept.append(state)
    return kept, sequences.read_out(hidden)


def _unfit(name: str, why: str) -> ModelError:
    return ModelError(
        f"the model cannot be driven layer by layer: {why}",
        where=name,
        fix="it can still be traced, scored, and replayed: offramp trace; docs/families.md lists what fits",
    )
