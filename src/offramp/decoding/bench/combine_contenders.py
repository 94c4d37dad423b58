"""Who takes part when accelerations are combined: one contender for each combination, on its own model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from offramp.decoding.bench.acceleration import (
    EXITS,
    PROMPT_LOOKUP,
    SPECULATE,
    Parts,
    decoder_of,
    name_of,
    transforms_of,
)
from offramp.decoding.bench.contenders import (
    FAILURES,
    PEERS,
    PLAIN,
    Setting,
    policies,
    seconds_in_trial,
    why,
)
from offramp.decoding.bench.entrant import Entrant, left_out
from offramp.decoding.bench.results import Contender
from offramp.decoding.bench.variants import Key, Variant
from offramp.models.model import Model
from offramp.models.stored import is_wrapped

ROLE = "combination"


@dataclass(frozen=True)
class Planned:
    """A combination that takes part, or why it does not. policy: that decides on its model, None without."""

    parts: Parts
    setting: Setting
    found: Entrant | Contender
    policy: str | None = None

    @property
    def name(self) -> str:
        """As shown."""
        return name_of(self.parts)

    @property
    def key(self) -> Key:
        """Its variant."""
        return tuple(one.name for one in transforms_of(self.parts))


def plain_entrants(setting: Setting) -> tuple[list[Entrant], list[Contender]]:
    """Every plain decoder of the untransformed model, and those left out."""
    found = [one for source in PLAIN.values() for one in source(setting)]
    return (
        [one for one in found if isinstance(one, Entrant)],
        [one for one in found if isinstance(one, Contender)],
    )


def planned_of(combinations: Sequence[Parts], variants: Mapping[Key, Variant]) -> list[Planned]:
    """One for each combination but the plain one."""
    return [_planned(parts, variants) for parts in combinations if parts]


def _planned(parts: Parts, variants: Mapping[Key, Variant]) -> Planned:
    variant = variants[tuple(one.name for one in transforms_of(parts))]
    setting, decoder, name = variant.setting, decoder_of(parts), name_of(parts)
    if decoder in (EXITS, SPECULATE) and variant.refused is not None:
        return Planned(parts, setting, left_out(name, ROLE, variant.refused))
    found = ENTRANTS[decoder](setting)
    if isinstance(found, Contender):
        return Planned(parts, setting, replace(found, name=name, role=ROLE))
    note = None if found.note is None else f"{name}: {found.note}"
    must = found.output_must_match and computes_exactly(setting.model)
    entrant = replace(found, name=name, role=ROLE, output_must_match=must, required=False, note=note)
    policy = str(setting.cells[0].policy) if decoder in (EXITS, SPECULATE) else None
    return Planned(parts, setting, entrant, policy)


def _plain(setting: Setting) -> Entrant | Contender:
    """The plain decoder that is fastest in a short run."""
    trials: dict[str, tuple[float, Entrant]] = {}
    failed = "no plain decoder works on it"
    for one in (one for source in PLAIN.values() for one in source(setting)):
        if isinstance(one, Contender):
            continue
        try:
            trials[one.name] = seconds_in_trial(setting, one.decode), one
        except FAILURES as error:
            failed = why(error)
    if not trials:
        return left_out("", ROLE, failed)
    _, best = min(trials.values(), key=lambda trial: trial[0])
    note = f"decoded plainly by {best.name}, the fastest of {', '.join(trials)} in a trial"
    return replace(best, output_must_match=False, note=note)


def _with_exits(setting: Setting) -> Entrant | Contender:
    return _only(policies(setting))


def _speculating(setting: Setting) -> Entrant | Contender:
    cells = (replace(setting.cells[0], kv=SPECULATE),)
    return _only(policies(replace(setting, cells=cells)))


def _prompt_lookup(setting: Setting) -> Entrant | Contender:
    found = _only(PEERS["prompt lookup"](setting))
    return found if isinstance(found, Contender) else replace(found, output_must_match=setting.exact)


def _only(found: Iterator[Entrant | Contender]) -> Entrant | Contender:
    (one,) = found
    return one


ENTRANTS: dict[str | None, Callable[[Setting], Entrant | Contender]] = {
    None: _plain,
    EXITS: _with_exits,
    SPECULATE: _speculating,
    PROMPT_LOOKUP: _prompt_lookup,
}
"""By the way to decode."""


def computes_exactly(model: Model) -> bool:
    """Whether all weights are ordinary float32 numbers: only then several tokens at once give what one gives.

    Kernels of quantised weights may add up in another order, or round otherwise, for several tokens at once.
    """
    return all(
        parameter.dtype == torch.float32 and not is_wrapped(parameter) for parameter in model.hf.parameters()
    )
