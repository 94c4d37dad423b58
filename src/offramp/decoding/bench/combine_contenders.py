"""Who takes part when accelerations are combined: one contender for each combination, on its own model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from offramp.decoding.bench.acceleration import (
    EXITS,
    PROMPT_LOOKUP,
    SHORT_LIST,
    SHORT_LIST_WITH_EXITS,
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
from offramp.decoding.options import DecodingOptions
from offramp.errors import PolicyError
from offramp.models.model import Model
from offramp.models.stored import is_wrapped
from offramp.policies.rules.shortlist import with_short_head
from offramp.tracing.features import SHORTLIST

ROLE = "combination"


@dataclass(frozen=True)
class Planned:
    """A combination that takes part, or why it does not.

    cell: how our loop decodes it, None if another one does.
    """

    parts: Parts
    setting: Setting
    found: Entrant | Contender
    cell: DecodingOptions | None = None

    @property
    def policy(self) -> str | None:
        """The policy that decides on its model, None without."""
        return None if self.cell is None else str(self.cell.policy)

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
    if variant.refused is not None and decoder in OF_THE_POLICY:
        return Planned(parts, setting, left_out(name, ROLE, variant.refused))
    try:
        cell = CELLS[decoder](setting) if decoder in CELLS else None
        found = ENTRANTS[decoder](setting) if cell is None else _decoding(setting, cell)
    except PolicyError as error:
        return Planned(parts, setting, left_out(name, ROLE, error.what))
    if isinstance(found, Contender):
        return Planned(parts, setting, replace(found, name=name, role=ROLE))
    note = None if found.note is None else f"{name}: {found.note}"
    must = found.output_must_match and computes_exactly(setting.model)
    entrant = replace(found, name=name, role=ROLE, output_must_match=must, required=False, note=note)
    return Planned(parts, setting, entrant, cell)


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


def _decoding(setting: Setting, cell: DecodingOptions) -> Entrant | Contender:
    """A policy in our loop; of a cut head it is said to which tokens."""
    found = _only(policies(replace(setting, cells=(cell,))))
    if isinstance(found, Contender) or not cell.policy.short_head:
        return found
    listed = None if cell.heads is None else cell.heads.shortlist
    first = f"first {min(SHORTLIST, setting.model.shape.vocabulary_size):,} ids of the vocabulary"
    tokens = first if listed is None else f"{len(listed):,} of the heads"
    return replace(found, note=f"its tokens are the {tokens}")


def _prompt_lookup(setting: Setting) -> Entrant | Contender:
    found = _only(PEERS["prompt lookup"](setting))
    return found if isinstance(found, Contender) else replace(found, output_must_match=setting.exact)


def _only(found: Iterator[Entrant | Contender]) -> Entrant | Contender:
    (one,) = found
    return one


ENTRANTS: dict[str | None, Callable[[Setting], Entrant | Contender]] = {
    None: _plain,
    PROMPT_LOOKUP: _prompt_lookup,
}
"""By the way to decode, where that is not our loop with a policy."""


def _cut(cell: DecodingOptions) -> DecodingOptions:
    return replace(cell, policy=with_short_head(cell.policy))


CELLS: dict[str | None, Callable[[Setting], DecodingOptions]] = {
    EXITS: lambda setting: setting.main,
    SPECULATE: lambda setting: replace(setting.main, kv=SPECULATE),
    SHORT_LIST: lambda setting: _cut(setting.main.full_model),
    SHORT_LIST_WITH_EXITS: lambda setting: _cut(setting.main),
}
"""Policy and strategy by the way to decode, where that is our loop."""

OF_THE_POLICY = (EXITS, SPECULATE, SHORT_LIST_WITH_EXITS)
"""Ways to decode that need the policy that was given."""


def computes_exactly(model: Model) -> bool:
    """Whether all weights are ordinary float32 numbers: only then several tokens at once give what one gives.

    Kernels of quantised weights may add up in another order, or round otherwise, for several tokens at once.
    """
    return all(
        parameter.dtype == torch.float32 and not is_wrapped(parameter) for parameter in model.hf.parameters()
    )
