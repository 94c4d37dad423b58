"""Trying what a family can do on short random prompts, against its own loop without exits and the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.sequences import Sequences, token_positions
from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.models.calls import UNFIT_ERRORS
from offramp.models.conditioned import Conditioned, probing, under
from offramp.models.discovery import special_tokens
from offramp.models.tensors import largest_difference, largest_finite, precision_of

# Tokens of a trial's prompt and those decoded after it.
PROMPT, NEW = 9, 4
# Largest difference of the logits, as a share of the largest one.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-5, torch.float16: 2.0**-8}
# Longest prompt of a trial that has to reach beyond the keys that attention picks.
LONGEST = 600

# Tried on three rows, which have different sources where a model reads any.
OF_ROWS = ("rebatch", "drop")

# Where several positions, or rows with padding, are given at once.
SEVERAL_AT_ONCE = ("recompute", "speculate", "lockstep")


def try_ability(engine: Engine, ability: str, prompt: int = PROMPT) -> str | None:
    """Why the family cannot do one of `offramp.decoding.engine.engine.ABILITIES` exactly, None if it can.

    prompt: tokens of the random prompts that it is tried on, more if attention picks blocks of the past.
    """
    if ability in SEVERAL_AT_ONCE:
        config = engine.hf.config.get_text_config()
        if getattr(config, "index_topk", None):
            # A trial would tell by luck: where scores nearly tie, rounding decides which keys are seen.
            return f"its attention picks {config.index_topk} keys, others where positions run together"
        picked = _keys_in_picked_blocks(config)
        if picked + PROMPT > LONGEST:
            return f"its attention picks {picked} keys, too many to try what happens beyond them"
        prompt = max(prompt, picked + PROMPT) if picked else prompt
    try:
        with torch.no_grad(), probing(engine.hf, 3 if ability in OF_ROWS else 1):
            return TRIALS[ability](engine, random_ids(engine, 3, prompt + NEW))
    except (*UNFIT_ERRORS, ModelError) as error:
        raise_if_out_of_memory(error)
        return f"it fails on a trial ({type(error).__name__}: {' '.join(str(error).split())})"


def _keys_in_picked_blocks(config: Any) -> int:
    """Keys that a layer attends to at most because it picks the best blocks of them, 0 if it picks none."""
    return (getattr(config, "index_topk_blocks", None) or 0) * (
        getattr(config, "index_block_size", None) or 0
    )


def random_ids(engine: Engine, rows: int, length: int) -> Tensor:
    """Random tokens that are not special ones, the same at every call: int64 [rows, length]."""
    config = engine.hf.config.get_text_config()
    special = special_tokens(config)
    usable = torch.tensor([token for token in range(config.vocab_size) if token not in special], device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    chosen = torch.randint(len(usable), (rows, length), generator=generator, device="cpu")
    return usable[chosen].to(engine.hf.device)


def own_logits(engine: Engine, ids: Tensor, new: int) -> list[Tensor]:
    """Logits [batch, vocabulary] after each of the last `new` tokens, from the model's own forward passes
    with a cache, called as `generate()` calls them."""
    name, places = engine.cache_name, [0, *range(ids.shape[1] - new, ids.shape[1])]
    cache: dict[str, Any] = {}
    logits = []
    for start, end in zip(places, [*places[1:], ids.shape[1]], strict=True):
        positions = {"position_ids": token_positions(ids, None, start, end)} if engine.takes_positions else {}
        output = engine.hf(input_ids=ids[:, start:end], use_cache=True, **positions, **cache)
        cache = {name: output[name]}
        logits.append(output.logits[:, -1])
    return logits[1:]


def _begun(engine: Engine, prompt: Tensor, mask: Tensor | None = None) -> Sequences:
    """Sequences whose prompt has run all layers."""
    sequences = Sequences(engine, prompt, mask, Meter())
    inputs = sequences.inputs(0, sequences.length)
    sequences.run(inputs.hidden, inputs, 0, engine.layers)
    return sequences


def _step(sequences: Sequences, tokens: Tensor, last: int | None = None) -> Tensor:
    """Feed tokens [batch, 1] and run all layers, or the first `last` ones; the state after them."""
    sequences.feed(tokens)
    inputs = sequences.inputs(sequences.length - 1, sequences.length)
    return sequences.run(inputs.hidden, inputs, 0, sequences.engine.layers if last is None else last)


def _full(engine: Engine, ids: Tensor, new: int = NEW, mask: Tensor | None = None) -> list[Tensor]:
    """Logits [batch, vocabulary] after each of the last `new` tokens, without exits."""
    start = ids.shape[1] - new
    sequences = _begun(engine, ids[:, :start], mask)
    return [
        sequences.read_out(_step(sequences, ids[:, position : position + 1]))
        for position in range(start, ids.shape[1])
    ]


def _comparison(engine: Engine) -> Callable[[Tensor, Tensor], bool]:
    """Whether found logits equal expected ones within the tolerance of what its products are rounded to."""
    tolerance = TOLERANCE[precision_of(engine.hf)]

    def same(found: Tensor, expected: Tensor) -> bool:
        return largest_difference(found, expected) <= tolerance * largest_finite(expected)

    return same


def _never_exit(engine: Engine, ids: Tensor) -> str | None:
    if all(map(_comparison(engine), _full(engine, ids[:1]), own_logits(engine, ids[:1], NEW))):
        return None
    return "layers called one by one give other logits than the model"


def _propagate(engine: Engine, ids: Tensor) -> str | None:
    """A token that leaves after a third of the layers: against running the others whole on its state."""
    ids, exit, start = ids[:1], _third(engine), ids.shape[1] - NEW
    logits = []
    for whole in (False, True):
        sequences = _begun(engine, ids[:, :start])
        for position in range(start, ids.shape[1] - 1):
            hidden = _step(sequences, ids[:, position : position + 1], exit)
            inputs = sequences.inputs(position, position + 1)
            if not whole:
                sequences.write(hidden, inputs, exit, engine.layers)
                continue
            for index in range(exit, engine.layers):
                sequences.run(hidden, inputs, index, index + 1)
        logits.append(sequences.read_out(_step(sequences, ids[:, -1:])))
    return (
        None if _comparison(engine)(*logits) else "a skipped layer that is stopped early leaves other K and V"
    )


def _recompute(engine: Engine, ids: Tensor) -> str | None:
    """Two tokens leave at different exits, the third runs deep and takes them along."""
    ids, early, late, start = ids[:1], 1, _third(engine) + 1, ids.shape[1] - NEW
    expected = _full(engine, ids)
    sequences = _begun(engine, ids[:, :start])
    first = _step(sequences, ids[:, start : start + 1], late)
    second = _step(sequences, ids[:, start + 1 : start + 2], early)
    hidden = torch.cat([second, _step(sequences, ids[:, start + 2 : start + 3], early)], 1)
    hidden = sequences.run_block(hidden, start + 1, start + 3, early, late)
    hidden = torch.cat([first, hidden], 1)
    hidden = sequences.run_block(hidden, start, start + 3, late, engine.layers)
    deep = [*sequences.read_out_all(hidden).unbind(1), sequences.read_out(_step(sequences, ids[:, -1:]))]
    fits = all(map(_comparison(engine), deep, expected))
    return None if fits else "positions that run later, several at once, get other logits"


def _speculate(engine: Engine, ids: Tensor) -> str | None:
    """Three drafted tokens are verified; two are taken back, and others follow."""
    drafted, ids, early, start = ids[1:2, -NEW:], ids[:1], _third(engine), ids.shape[1] - NEW
    drafts = torch.cat([ids[:, start : start + 1], drafted[:, 1:3]], 1)
    sequences = _begun(engine, ids[:, :start])
    sequences.record_past()
    past = sequences.snapshot(0, engine.layers)
    states = [_step(sequences, drafts[:, position : position + 1], early) for position in range(3)]
    hidden = sequences.run_block(torch.cat(states, 1), start, start + 3, early, engine.layers)
    verified = sequences.read_out_all(hidden).unbind(1)
    if engine.recurrent:
        sequences.restore(past)
        sequences.unfeed(start)
        _step(sequences, ids[:, start : start + 1])
    else:
        sequences.unfeed(start + 1)
        sequences.crop(start + 1, 0, engine.layers)
    after = [
        sequences.read_out(_step(sequences, ids[:, position : position + 1]))
        for position in range(start + 1, ids.shape[1])
    ]
    if not all(map(_comparison(engine), verified, _full(engine, torch.cat([ids[:, :start], drafts], 1), 3))):
        return "positions that are verified together get other logits than one by one"
    fits = all(map(_comparison(engine), after, _full(engine, ids)[1:]))
    return None if fits else "positions that are taken back leave traces"


def _monotone(engine: Engine, ids: Tensor) -> str | None:
    """The first layers go on alone: their states against those of a run without exits."""
    ids, exit, start = ids[:1], _third(engine), ids.shape[1] - NEW
    states = []
    for last in (exit, None):
        sequences = _begun(engine, ids[:, :start])
        for position in range(start, ids.shape[1] - 1):
            _step(sequences, ids[:, position : position + 1], last)
        states.append(_step(sequences, ids[:, -1:], exit))
    return None if _comparison(engine)(*states) else "the first layers depend on those after them"


def _lockstep(engine: Engine, ids: Tensor) -> str | None:
    if isinstance(engine.hf, Conditioned):
        return _lockstep_of_sources(engine, ids)
    alone, together = _padded(engine, ids)
    if all(map(_comparison(engine), together, alone)):
        return None
    return "a row with padding on its left gets other logits than alone"


def _lockstep_of_sources(engine: Engine, ids: Tensor) -> str | None:
    """Rows of one length whose sources are not: each alone, and all together."""
    condition = engine.hf.probing(len(ids))
    alone = []
    for row in range(len(ids)):
        with under(engine.hf, condition.of_rows([row])):
            alone.append(_full(engine, ids[row : row + 1]))
    with under(engine.hf, condition):
        together = _full(engine, ids)
    if all(map(_comparison(engine), together, map(torch.cat, zip(*alone, strict=True)))):
        return None
    return "a row gets other logits beside one with a longer source than alone"


def _padded(engine: Engine, ids: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Logits of rows of different lengths, each alone and all together."""
    lengths = (ids.shape[1], ids.shape[1] - 3, NEW + 1)
    rows = [row[-length:][None] for row, length in zip(ids, lengths, strict=True)]
    alone = [torch.cat(logits) for logits in zip(*(_full(engine, row) for row in rows), strict=True)]
    together, mask = _left_padded(ids, lengths)
    return alone, _full(engine, together, mask=mask)


def _left_padded(ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The last tokens of each row, zeros before them, and the mask of the prompt."""
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    return ids * mask, mask[:, :-NEW]


def _drop(engine: Engine, ids: Tensor) -> str | None:
    """After a token two of three rows of different lengths go on alone."""
    lengths, rows, start = (ids.shape[1], ids.shape[1] - 3, NEW + 1), [2, 1], ids.shape[1] - NEW
    together, mask = _left_padded(ids, lengths)
    expected = _full(engine, together, mask=mask)
    sequences = _begun(engine, together[:, :start], mask)
    _step(sequences, together[:, start : start + 1])
    sequences.select_rows(rows)
    remaining = [
        sequences.read_out(_step(sequences, together[rows, position : position + 1]))
        for position in range(start + 1, ids.shape[1])
    ]
    fits = all(map(_comparison(engine), remaining, [logits[rows] for logits in expected[1:]]))
    return None if fits else "rows that go on without the others get other logits"


def _rebatch(engine: Engine, ids: Tensor) -> str | None:
    if engine.recurrent:
        return "a layer with a recurrent state moves all rows at once"
    if any(state.entries and state.updates != 1 for state in engine.kept):
        return "a layer leaves more than one pair of K and V"
    exit, start = _third(engine), ids.shape[1] - NEW
    token, rest = ids[:, start : start + 1], ids[:, start + 1 : start + 2]
    goes_on, leaves = np.array([0, 2]), np.array([1])
    together = _begun(engine, ids[:, :start])
    hidden = _step(together, token, exit)
    deep = together.run_rows(hidden[goes_on], hidden[leaves], goes_on, start, exit, engine.layers)
    alone = _begun(engine, ids[:, :start])
    hidden = _step(alone, token, exit)
    past = alone.snapshot(0, engine.layers)
    expected = alone.run(hidden, alone.inputs(start, start + 1), exit, engine.layers)
    fits = _comparison(engine)(deep, expected[goes_on])
    stays = _step(alone, rest)[goes_on]
    alone.restore(past)
    alone.unfeed(start + 1)
    alone.write(hidden, alone.inputs(start, start + 1), exit, engine.layers)
    left = _step(alone, rest)[leaves]
    after = _step(together, rest)
    if fits and _comparison(engine)(after[goes_on], stays) and _comparison(engine)(after[leaves], left):
        return None
    return "layers that run for some rows only give other states"


def _third(engine: Engine) -> int:
    return max(1, engine.layers // 3)


TRIALS: Mapping[str, Callable[[Engine, Tensor], str | None]] = {
    "never_exit": _never_exit,
    "propagate": _propagate,
    "recompute": _recompute,
    "speculate": _speculate,
    "monotone": _monotone,
    "lockstep": _lockstep,
    "rebatch": _rebatch,
    "drop": _drop,
}
