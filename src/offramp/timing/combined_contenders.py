"""A combination of accelerations as a contender on the model that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.options import DecodingOptions
from offramp.defaults import SHORTLIST
from offramp.errors import InputError, PolicyError
from offramp.heads.at_work import restricted_tokens
from offramp.models.model import Model
from offramp.models.tensors import is_wrapped
from offramp.policies.rules.short_list import with_short_head
from offramp.timing.accelerations import (
    EXITS,
    LLAMA_CPP,
    PROMPT_LOOKUP,
    SHORT_LIST,
    SHORT_LIST_WITH_EXITS,
    SHORT_LIST_WITH_LOOKUP,
    SPECULATE,
    Parts,
    decoder_of,
    name_of,
    transforms_of,
)
from offramp.timing.contenders import (
    CONTENDERS,
    FAILURES,
    plain_decoders,
    policies,
    seconds_in_trial,
    why,
)
from offramp.timing.decoder import (
    Candidates,
    DecodedBatch,
    Decoder,
    Setting,
    left_out,
    parted,
)
from offramp.timing.native_runtime import NativeRuntime
from offramp.timing.results import (
    LOOKUP,
    Contender,
)
from offramp.timing.variants import Key, ModelVariant, key_of, load_variants

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
        return None if self.cell is None else str(self.cell.policy)


def candidate_of(parts: Parts, variant: ModelVariant) -> CombinedContender:
    """A combination on its model."""
    setting, way, name = variant.setting, decoder_of(parts), name_of(parts)
    exits = way in OF_THE_POLICY
    if variant.refused is not None and exits:
        return CombinedContender(parts, setting, left_out(name, ROLE, variant.refused))
    if way == LLAMA_CPP:
        return _native(parts, setting)
    try:
        cell = CELLS[way](setting) if way in CELLS else None
        if way in ELSEWHERE:
            found = ELSEWHERE[way](setting)
        else:
            assert cell is not None  # all others decode in our loop
            found = _decoding(setting, cell)
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


def contenders_beside(setting: Setting, combinations: Sequence[Parts]) -> Candidates:
    """Combinations without exits as what users would pick instead of the policies of a setting.

    Raises ModelError for a transform that does not fit the model.
    """
    own = setting.main.heads
    variants = load_variants(setting, combinations, heads=() if own is None else (own,))
    for parts in combinations:
        found = candidate_of(parts, variants[key_of(parts)]).contender
        if isinstance(found, Decoder) and transforms_of(parts):
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


def _prompt_lookup(setting: Setting) -> Decoder | Contender:
    """Its drafts are verified with the whole output head."""
    (found,) = CONTENDERS[LOOKUP].make(setting)
    return found if isinstance(found, Contender) else replace(found, output_must_match=setting.exact)


def _lookup_through_cut_head(setting: Setting) -> Decoder | Contender:
    """The same with drafts verified through the head cut to the short list."""
    hf = setting.model.hf
    listed = restricted_tokens(setting.main.heads, setting.model.shape.vocabulary_size)
    head = CutHead(hf.get_output_embeddings(), listed)
    with reading_through(hf, head):
        (found,) = CONTENDERS[LOOKUP].make(setting)
    if isinstance(found, Contender):
        return found
    whole = found.whole
    assert whole is not None  # it decodes at a stretch

    def decode(prompts: PromptBatch, new_tokens: int) -> DecodedBatch:
        with reading_through(hf, head):
            return whole(prompts, new_tokens)

    return replace(found, whole=decode)


@contextmanager
def reading_through(hf: Any, head: nn.Module) -> Iterator[None]:
    """Meanwhile a transformers model has another output head."""
    whole = hf.get_output_embeddings()
    hf.set_output_embeddings(head)
    try:
        yield
    finally:
        hf.set_output_embeddings(whole)


class CutHead(nn.Module):
    """An output head that computes the logits of some tokens alone: [..., hidden] -> [..., vocabulary].

    The logits of all others are the lowest number of their type.
    """

    def __init__(self, head: nn.Linear, tokens: Tensor) -> None:
        """tokens: int64 [listed]."""
        super().__init__()
        self.tokens, self.vocabulary_size = tokens.to(head.weight.device), len(head.weight)
        self.weight = nn.Parameter(head.weight[self.tokens].contiguous(), requires_grad=False)
        self.bias = None if head.bias is None else nn.Parameter(head.bias[self.tokens], requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits."""
        listed = nn.functional.linear(hidden, self.weight, self.bias)
        lowest = torch.finfo(listed.dtype).min
        logits = listed.new_full((*listed.shape[:-1], self.vocabulary_size), lowest)
        return logits.index_copy_(-1, self.tokens, listed)


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


def _cut(cell: DecodingOptions) -> DecodingOptions:
    return replace(cell, policy=with_short_head(cell.policy))


CELLS: dict[str | None, Callable[[Setting], DecodingOptions]] = {
    EXITS: lambda setting: setting.main,
    SPECULATE: lambda setting: replace(setting.main, kv=SPECULATE),
    SHORT_LIST: lambda setting: _cut(setting.main.full_model),
    SHORT_LIST_WITH_EXITS: lambda setting: _cut(setting.main),
    SHORT_LIST_WITH_LOOKUP: lambda setting: _cut(setting.main.full_model),
}
"""Policy and strategy by the way to decode, where that is our loop, or gives what our loop would give."""


ELSEWHERE: dict[str | None, Callable[[Setting], Decoder | Contender]] = {
    None: _fastest_plain,
    PROMPT_LOOKUP: _prompt_lookup,
    SHORT_LIST_WITH_LOOKUP: _lookup_through_cut_head,
}
"""What decodes where that is not our loop; None is plain decoding."""


OF_THE_POLICY = (EXITS, SPECULATE, SHORT_LIST_WITH_EXITS)
"""Ways to decode that need the policy that was given."""


def computes_exactly(model: Model) -> bool:
    """Whether all weights are ordinary float32 numbers: only then several tokens at once give what one gives.

    Kernels of quantised weights may add up in another order, or round otherwise, for several tokens at once.
    """
    return all(
        parameter.dtype == torch.float32 and not is_wrapped(parameter) for parameter in model.hf.parameters()
    )


Chosen = Callable[[Sequence[int], Sequence[int]], float]
"""Of a prompt and an answer: the share of its tokens that a decoder chooses too, given those before."""
