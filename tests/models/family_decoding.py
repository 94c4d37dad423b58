"""What each family can do when it is decoded layer by layer, tried on a small random model."""

from __future__ import annotations

from typing import Any, NamedTuple

PROMPT = 70
NEW = 6
COLUMNS = ("never_exit", "propagate", "recompute", "speculate", "monotone", "lockstep", "rebatch")


class Decoding(NamedTuple):
    """A family's decoding: the reason why it is refused, else why it cannot do some of COLUMNS."""

    refused: str | None = None
    reasons: tuple[tuple[str, str], ...] = ()


def check_decoding(model: Any) -> Decoding:
    """Try everything on a prompt that is longer than the small models' sliding windows."""
    from offramp.decoding.engine.build import engine_of
    from offramp.decoding.engine.capability_tests import random_ids, try_ability
    from offramp.errors import ModelError

    try:
        engine = engine_of(model)
    except ModelError as error:
        return Decoding(refused=error.what)
    reasons = {column: try_ability(engine, column, PROMPT) for column in COLUMNS}
    if reasons["never_exit"] is None:
        reasons["never_exit"] = _differs_from_generate(engine, random_ids(engine, 1, PROMPT))
    return Decoding(reasons=tuple((column, reason) for column, reason in reasons.items() if reason))


def _differs_from_generate(engine: Any, prompt: Any) -> str | None:
    """The loop's tokens against those of transformers' own greedy `generate()`."""
    import torch

    from offramp.models.conditioned import probing

    try:
        with probing(engine.hf):
            own = generate(engine.hf, prompt, torch.ones_like(prompt), NEW)
    except Exception as error:  # noqa: BLE001 - whatever a family raises is the reason in its row
        return f"generate() itself fails: {type(error).__name__}"
    with probing(engine.hf):
        found = decode_greedily(engine, prompt, own.shape[1] - PROMPT)
    return None if torch.equal(found, own[:, PROMPT:]) else "other tokens than generate()'s"


def generate(hf: Any, prompt: Any, mask: Any, new: int) -> Any:
    """Prompt and tokens of transformers' own greedy decoding, without tokens that a config forces."""
    return hf.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )


def decode_greedily(engine: Any, prompt: Any, new: int, mask: Any = None) -> Any:
    """Tokens chosen by the engine's own loop without exits: int64 [batch, new]."""
    import torch

    from offramp.decoding.engine.engine import Meter
    from offramp.decoding.engine.sequences import Sequences

    sequences = Sequences(engine, prompt, mask, Meter())
    start, chosen = 0, []
    for _ in range(new):
        inputs = sequences.inputs(start, sequences.length)
        hidden = sequences.run(inputs.hidden, inputs, 0, engine.layers)
        chosen.append(sequences.read_out(hidden).argmax(-1, keepdim=True))
        start = sequences.length
        sequences.feed(chosen[-1])
    return torch.cat(chosen, 1)
