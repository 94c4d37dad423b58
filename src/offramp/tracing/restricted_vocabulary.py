"""The restricted vocabulary, or short list: the few tokens that the `restricted` facts are taken over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.kit.defaults import SHORTLIST
from offramp.tracing.exit_heads import ExitHeads
from offramp.workloads.packing import Context


def restricted_tokens(heads: ExitHeads | None, vocabulary_size: int) -> Tensor:
    """The tokens, int64, ascending: the heads' own, else the first ids: the frequent ones in BPE."""
    if heads is None or heads.shortlist is None:
        return torch.arange(min(SHORTLIST, vocabulary_size), device="cpu")
    return torch.from_numpy(np.unique(heads.shortlist).astype(np.int64))


def frequent_tokens(
    contexts: Sequence[Context], vocabulary_size: int, listed: int = SHORTLIST
) -> NDArray[np.int32]:
    """Those that follow most often in some contexts, for heads to bring: int32, ascending. listed: how
    many.

    Tokens that never follow fill it up from the lowest id: a BPE vocabulary gives the frequent ones low ids.
    """
    followed = [token for context in contexts for token in context.next_tokens]
    counts = np.bincount(np.array(followed, dtype=np.int64), minlength=vocabulary_size)
    frequent = np.argsort(-counts, kind="stable")[: min(listed, vocabulary_size)]
    return np.sort(frequent).astype(np.int32)
