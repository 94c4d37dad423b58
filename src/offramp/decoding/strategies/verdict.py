"""What the full model says to a draft: its best token, or a sample with the full model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.decoding.generation.choosing import Choice, Chooser


@dataclass(frozen=True)
class Verdict:
    """The full model on one token of every sequence.

    chosen, fed: int64 [batch], its choice and what is to be fed. scores: float32 [batch, vocabulary], its
    processed logits. right: bool [batch], whether the draft stands; true where there was none.
    """

    chosen: Tensor
    fed: Tensor
    scores: Tensor
    right: Tensor


def judge(chooser: Chooser, ids: Tensor, logits: Tensor, draft: Choice | None) -> Verdict:
    """Choose the tokens after `ids`, int64 [batch, length], from the full model's logits [batch, vocabulary].

    Raises NonFiniteLogits as `Chooser.scores` does.
    """
    scores = chooser.scores(ids, logits)
    if draft is None:
        chosen = chooser.pick(scores)
        right = torch.ones_like(chosen, dtype=torch.bool)
    elif chooser.sampling:
        chosen, right = accept_or_resample(draft.chosen, draft.scores, scores, chooser.random)
    else:
        chosen = chooser.pick(scores)
        right = chosen == draft.chosen
    return Verdict(chosen, chooser.forced_after(ids, chosen), scores, right)


def accept_or_resample(
    drafted: Tensor, draft_scores: Tensor, scores: Tensor, random: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens with the distribution p of `scores`, given some drawn from q of `draft_scores`.

    A draft x stands with probability min(1, p(x) / q(x)); else a token of norm(max(p - q, 0)) takes its place
    (Leviathan et al., arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318, algorithm 2).
    drafted: int64 [batch]. scores: float32 [batch, vocabulary]. random: as in `Chooser`. Returns the tokens
    and whether drafts stand.
    """
    wanted, offered = scores.softmax(-1), draft_scores.softmax(-1)
    place = drafted[:, None]
    luck = torch.rand((len(wanted), 1), generator=random, device=wanted.device)
    right = luck * offered.gather(1, place) < wanted.gather(1, place)
    right = right.squeeze(1)
    if bool(right.all()):
        return drafted, right
    rest = (wanted - offered).clamp(min=0)
    # Equal distributions leave no rest; then only rounding can have refused the draft.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted)
    return torch.where(right, drafted, torch.multinomial(rest, 1, generator=random).squeeze(1)), right
