"""The short list of frequent tokens whose head columns a restricted head reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.tracing.features import SHORTLIST
from offramp.tracing.fitting.documents import FittingRows


def choose_shortlist(rows: FittingRows, vocabulary_size: int) -> NDArray[np.int32]:
    """The tokens that follow most often in some documents, ascending: int32 [SHORTLIST or the vocabulary].

    Tokens that never follow fill it up from the lowest id: a BPE vocabulary gives the frequent ones low ids.
    """
    followed = [token for context in rows.contexts for token in context.next_tokens]
    counts = np.bincount(np.array(followed, dtype=np.int64), minlength=vocabulary_size)
    frequent = np.argsort(-counts, kind="stable")[: min(SHORTLIST, vocabulary_size)]
    return np.sort(frequent).astype(np.int32)
