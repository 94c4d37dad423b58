from __future__ import annotations

import numpy as np
import pytest

from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tracing.trace import Trace
from policy_traces import make_shape


def trace_of(*lengths: int) -> Trace:
    document = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return Trace.from_facts({}, document=document, shape=make_shape())


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((16, 16, 16), " of 16 tokens"),
        ((1,), " of 1 token"),
        ((9, 14, 16), " of 9 to 16 tokens (median 14)"),
        ((3, 1200, 5, 4), " of 3 to 1,200 tokens (median 5)"),
    ],
)
def test_how_long_documents_are_in_words(lengths: tuple[int, ...], said: str) -> None:
    assert lengths_text(lengths_of(trace_of(*lengths))) == said


def test_documents_without_rows_are_not_counted() -> None:
    trace = trace_of(4, 8, 6)
    assert lengths_of(trace, np.array([1, 2])) == (6, 8, 8)
    assert lengths_of(trace.subset(np.array([0]))) == (4, 4, 4)
    assert lengths_of(trace, np.array([], dtype=np.int64)) is None
    assert lengths_text(None) == ""
