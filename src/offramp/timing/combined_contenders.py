"""A combination of accelerations as a contender on the model that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from offramp.decoding.options import DecodingOptions
from offramp.defaults import SHORTLIST
from offramp.errors import InputError, PolicyError
from offramp.models.model import Model
from offramp.models.tensors import is_wrapped
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.short_list import with_short_head
from offramp.timing.accelerations import (
    EXITS,
    JOINED,
    LLAMA_CPP,
    OF_THE_POLICY,
    PROMPT_LOOKUP,
    SHORT_LIST,
    SPECULATE,
    Parts,
    decoder_of,
    name_of,
    transforms_of,
)
from offramp.timing.contenders import (
    FAILURES,
    LOOKUP_LENGTHS,
    plain_decoders,
    policies,
    seconds_in_trial,
    why,
)
from offramp.timing.decoder import (
    Candidates,
    Decoder,
    Setting,
    left_out,
    parted,
)
from offramp.timing.native_runtime import NativeRuntime
from offramp.timing.results import NO_TIME, Contender
from offramp.timing.stopping import Budget
from offramp.timing.variants import PREPARING_SHARE, Key, ModelVariant, key_of, load_variants

ROLE = "combination"


@dataclass(frozen=True)
class CombinedContender:
    """A combination, and its contender on the model that its transforms make, or why it has none."""

    parts: Parts
    setting: Setting
    contender: Decoder | Contender
    cell: DecodingOptions | None = None
    """How our loop decodes it, or would, None if that is not possible."""
    forced: Chosen | None = None
    """None where the model of the setting says that."""

    @property
    def name(self) -> str:
        """As shown."""
        return name_of(self.parts)

    @property
    def key(self) -> Key:
        """Its variant."""
        return key_of(self.parts)

    @property
    def policy(self) -> str | None:
        """The policy that decides on its model, None without."""
        if self.cell is None or isinstance(self.cell.policy, Never):
            return None
        return str(self.cell.policy)


def candidate_of(parts: Parts, variant: ModelVariant) -> CombinedContender:
    """A combination on its model."""
    setting, way, name = variant.setting, decoder_of(parts), name_of(parts)
    exits = any(part.text in OF_THE_POLICY for part in parts)
    if variant.refused is not None and exits:
        return CombinedContender(parts, setting, left_out(name, ROLE, variant.refused))
    if variant.unfit is not None:
        return CombinedContender(parts, setting, left_out(name, ROLE, variant.unfit, full_depth=not exits))
    if way == LLAMA_CPP:
        return _native(parts, setting)
    try:
        cell = None if way is None else _cell_of(way, setting)
        found = _fastest_plain(setting) if cell is None else _decoding(setting, cell)
    except PolicyError as error:
        return CombinedContender(parts, setting, left_out(name, ROLE, error.what, full_depth=not exits))
    if isinstance(found, Contender):
        missing = replace(found, name=name, role=ROLE, full_depth=not exits)
        return CombinedContender(parts, setting, missing)
    decoder = replace(
        found,
        name=name,
        role=ROLE,
        output_must_match=found.output_must_match and computes_exactly(setting.model),
        required=False,
        note=None if found.note is None else f"{name}: {found.note}",
        full_depth=not exits,
        on=setting,
        # What a lossless decoder must give is its own model's answer, whatever was done to the model.
        own_plain=name_of(transforms_of(parts)),
    )
    return CombinedContender(parts, setting, decoder, cell)


def candidates_within(
    base: Setting, combinations: Sequence[Parts], variants: Mapping[Key, ModelVariant], budget: Budget
) -> list[CombinedContender]:
    """Every combination on its model; left out where there was no time to load that, or to try ways on it."""
    end, found = budget.until(PREPARING_SHARE), list[CombinedContender]()
    for parts in combinations:
        variant = variants.get(key_of(parts))
        if variant is None or (found and budget.spent > end):
            exits = any(part.text in OF_THE_POLICY for part in parts)
            missing = left_out(name_of(parts), ROLE, NO_TIME, full_depth=not exits)
            found.append(CombinedContender(parts, base, missing))
        else:
            found.append(candidate_of(parts, variant))
    return found


def contenders_beside(setting: Setting, combinations: Sequence[Parts], budget: Budget) -> Candidates:
    """Combinations without exits as what users would pick instead of the policies of a setting.

    budget: in which their models are loaded, as far as there is time. One that a transform does not fit is
    left out, with the reason.
    """
    own = setting.main.heads
    heads = () if own is None else (own,)
    variants = load_variants(setting, combinations, heads=heads, budget=budget, demanded=False)
    for candidate in candidates_within(setting, combinations, variants, budget):
        found = candidate.contender
        if isinstance(found, Decoder) and transforms_of(candidate.parts):
            # Its own model's plain decoder does not take part: what it must give is not known.
            found = replace(found, output_must_match=False)
        yield replace(found, role="peer")


def _fastest_plain(setting: Setting) -> Decoder | Contender:
    """The plain decoder that is fastest in a short run."""
    trials: dict[str, tuple[float, Decoder]] = {}
    failed = "no plain decoder works on it"
    decoders, _ = parted(plain_decoders(setting))
    for decoder in decoders:
        try:
            trials[decoder.name] = seconds_in_trial(setting, decoder.decode), decoder
        except FAILURES as error:
            failed = why(error)
    if not trials:
        return left_out("", ROLE, failed)
    _, best = min(trials.values(), key=lambda trial: trial[0])
    note = f"decoded plainly by {best.name}, the fastest of {', '.join(trials)} in a trial"
    return replace(best, output_must_match=False, note=note)


def _decoding(setting: Setting, cell: DecodingOptions) -> Decoder | Contender:
    """A policy in our loop; of a cut head it is said to which tokens."""
    (found,) = policies(replace(setting, cells=(cell,)))
    if isinstance(found, Contender) or not cell.policy.short_head:
        return found
    listed = None if cell.heads is None else cell.heads.shortlist
    first = f"first {min(SHORTLIST, setting.model.shape.vocabulary_size):,} ids of the vocabulary"
    tokens = first if listed is None else f"{len(listed):,} of the heads"
    return replace(found, note=f"its tokens are the {tokens}")


def _native(parts: Parts, setting: Setting) -> CombinedContender:
    """llama.cpp with the file that the model was made from, or why it cannot take part."""
    name = name_of(parts)
    try:
        runtime = NativeRuntime.of(setting)
    except InputError as error:
        why_not = f"{error.what} ({error.fix})"
        return CombinedContender(parts, setting, left_out(name, ROLE, why_not, full_depth=True))
    decoder = Decoder(name, ROLE, whole=runtime.decode, full_depth=True, on=setting)
    return CombinedContender(parts, setting, decoder, forced=runtime.forced_agreement)


LONGEST = max(LOOKUP_LENGTHS)
"""Tokens that our loop copies from the text at once, at most."""


def _cell_of(way: str, setting: Setting) -> DecodingOptions:
    """How our loop decodes some ways at once, as "shortlist + exits". Raises PolicyError if it cannot."""
    ways = way.split(JOINED)
    cell = setting.main if {*OF_THE_POLICY} & {*ways} else setting.main.full_model
    for part in ways:
        cell = IN_OUR_LOOP[part](cell)
    return cell


IN_OUR_LOOP: dict[str, Callable[[DecodingOptions], DecodingOptions]] = {
    EXITS: lambda cell: cell,
    SPECULATE: lambda cell: replace(cell, kv=SPECULATE),
    SHORT_LIST: lambda cell: replace(cell, policy=with_short_head(cell.policy)),
    PROMPT_LOOKUP: lambda cell: replace(cell, lookup=LONGEST),
}
"""What each way to decode makes of how our loop does."""


def computes_exactly(model: Model) -> bool:
    """Whether all weights are ordinary float32 numbers: only then several tokens at once give what one gives.

    Kernels of quantised weights may add up in another order, or round otherwise, for several tokens at once.
    """
    return all(
        parameter.dtype == torch.float32 and not is_wrapped(parameter) for parameter in model.hf.parameters()
    )


Chosen = Callable[[Sequence[int], Sequence[int]], float]
"""Of a prompt and an answer: the share of its tokens that a decoder chooses too, given those before."""
