"""Messages: how much of what was given they repeat, and what counts as memory running out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import LONGEST_PATH, LONGEST_WORD, InputError, is_out_of_memory, shortened
from offramp.policies.grammar import parse_policy


@given(st.text(max_size=300))
def test_short_texts_are_repeated_whole(text: str) -> None:
    if max(map(len, re.findall(r"\S+", text)), default=0) <= LONGEST_WORD:
        assert shortened(text) == text


@given(st.integers(1, 20_000), st.sampled_from(["x", "ab ", "é\n", "word " * 9, "x" * 40]))
def test_no_message_is_long_whatever_was_given(count: int, part: str) -> None:
    error = InputError(part * count, where=part * count, fix=part * count)
    for said in (error.what, error.where, error.fix):
        assert len(said) <= LONGEST_PATH
        assert max(map(len, said.split()), default=0) <= LONGEST_WORD + 3
        assert shortened(said) == said
    assert error.what.startswith((part * count)[:LONGEST_WORD])


def test_a_cut_word_says_how_long_it_was() -> None:
    assert shortened(f"no workload {'x' * 5000}!") == f"no workload {'x' * 200}... (5,001 characters)"


def test_paths_are_shown_whole() -> None:
    path = "/".join(["folder" * 10] * 60)
    assert InputError("it is not there", where=path).where == path


def test_of_a_long_policy_what_lies_around_the_fault_is_shown() -> None:
    of = "+".join(["[threshold:signal=max_prob,value=0.9,exits=2]"] * 20_000)
    with pytest.raises(InputError) as caught:
        parse_policy(f"votes:need=all,of={of}+[threshold:signal=max_prob,value=nine,exits=2]")
    assert len(caught.value.where) < 500
    shown, caret = caught.value.where.strip("\n").split("\n")
    assert shown[caret.index("^") :].startswith("nine")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), True),
        (ImportError("libtorch.so: failed to map segment: Cannot allocate memory"), True),
        (ImportError("libtorch.so: failed to map segment from shared object"), True),
        (ImportError("lib.so: failed to map segment from shared object: Operation not permitted"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_memory_running_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
