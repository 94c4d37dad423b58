"""How much text a trace is of: whole and partial characters, spaces at seams, gaps, special tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offramp
from offramp.errors import DamagedFileError
from offramp.models.model import Model
from offramp.scoring.documents import NOTHING, PARTIAL, TextSize, text_sizes
from offramp.studies.work.trace import TEXT, read_text_sizes, write_text_sizes
from offramp.tracing.manifest import DocumentRecord
from offramp.tracing.trace import Trace
from policy_traces import make_shape

END = 256
"""A special token; all other tokens are bytes."""

CHARACTERS = st.characters(codec="utf-8", exclude_characters=PARTIAL)


def trace_of(*documents: Sequence[tuple[int, int, int]]) -> Trace:
    """Documents of rows (position, token, next token)."""
    rows = [row for document in documents for row in document]
    position, token, following = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
    return Trace(
        exits=np.array([6]),
        tokens={
            "token": token,
            "next_token": following,
            "document": np.repeat(np.arange(len(documents)), list(map(len, documents))).astype(np.int32),
            "position": position,
            "generated": np.zeros(len(rows), dtype=np.bool_),
        },
        facts=lambda name: pytest.fail(f"{name} was read"),
        documents=tuple(DocumentRecord(f"d{place}", len(rows)) for place, rows in enumerate(documents)),
        marginal=lambda: pytest.fail("the marginal was read"),
        shape=make_shape(),
        provenance={},
    )


def rows_of(ids: Sequence[int], start: int = 0) -> list[tuple[int, int, int]]:
    return [(start + place, *pair) for place, pair in enumerate(itertools.pairwise(ids))]


def from_bytes(ids: Sequence[int]) -> str:
    return bytes(one for one in ids if one != END).decode("utf-8", errors="replace")


@settings(max_examples=100, deadline=None)
@given(st.text(CHARACTERS, min_size=2, max_size=20), st.data())
def test_characters_count_where_their_last_byte_is(text: str, data: st.DataObject) -> None:
    ids = list(text.encode())
    stop = data.draw(st.integers(2, len(ids)))
    size = text_sizes(trace_of(rows_of(ids[:stop])), from_bytes)["d0"]
    ends = np.cumsum([len(character.encode()) for character in text])
    # The first byte is given; a character that ends with it was not observed.
    assert size.characters == np.count_nonzero((ends > 1) & (ends <= stop))
    assert size.tokens == stop - 1
    if stop in ends and ends[0] == 1:
        assert size.bytes == stop - 1
    else:  # a mark stands for one to three bytes
        assert stop - 3 <= size.bytes <= stop + 1


def test_a_document_in_stretches_is_counted_stretch_by_stretch() -> None:
    """The token before a gap is given again: contexts that begin anew, and prompts that were not traced."""
    first, second = list(b"abcdef"), list("xyé!".encode())
    trace = trace_of([*rows_of(first), *rows_of(second)], rows_of(list(b"zz")))
    assert text_sizes(trace, from_bytes) == {"d0": TextSize(5 + 4, 5 + 3, 9), "d1": TextSize(1, 1, 1)}


def test_special_tokens_are_no_text() -> None:
    sizes = text_sizes(trace_of(rows_of([END, *b"ab", END])), from_bytes)
    assert sizes == {"d0": TextSize(2, 2, 3)}


def _metaspace() -> Callable[[Sequence[int]], str]:
    """A tokenizer that drops the space before the first word, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "\u2581the", "\u2581cat", "s", "\u2581sat"]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="s"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


@pytest.mark.parametrize(
    ("ids", "observed"),
    [([0, 1, 2, 3, 4], "the cats sat"), ([1, 2, 3, 4], " cats sat"), ([2, 3, 4], "s sat")],
)
def test_the_space_at_a_seam_belongs_to_the_text(ids: list[int], observed: str) -> None:
    size = text_sizes(trace_of(rows_of(ids)), _metaspace())["d0"]
    assert size == TextSize(len(observed), len(observed), len(ids) - 1)


def test_sizes_are_kept_sealed(tmp_path: Path) -> None:
    sizes = {"a": TextSize(5, 4, 3), "b": TextSize(2, 2, 1)}
    write_text_sizes(tmp_path, sizes)
    assert read_text_sizes(tmp_path) == sizes
    path = tmp_path / TEXT
    path.write_text(path.read_text().replace('"bytes": 5', '"bytes": 6'))
    with pytest.raises(DamagedFileError, match=TEXT):
        read_text_sizes(tmp_path)


@pytest.mark.real_model
def test_english_under_the_bundled_model_has_a_plausible_size(smollm2: Model) -> None:
    """About four bytes a token, one to two bits a byte."""
    trace = offramp.trace(smollm2, "prose", 96, document_tokens=4, exits=[30], progress=False)
    sizes = text_sizes(trace, smollm2.decode)
    assert len(sizes) == 24
    whole = sum(sizes.values(), start=NOTHING)
    assert 3 < whole.bytes / whole.tokens < 6
    bits = trace.nll[:, -1].astype(np.float64).sum() / math.log(2)
    assert 0.5 < bits / whole.bytes < 2.5
