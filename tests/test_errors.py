"""Messages: how much of what was given they repeat, and what counts as memory running out."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import LONGEST_PATH, LONGEST_WORD, InputError, is_out_of_memory, printable, shortened
from offramp.policies.grammar import parse_policy
from offramp.tracing.progress import console, say


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


FOREIGN = "a \x1b[31mred\x1b]0;title\x07 \u202ename\r"
SHOWN = "a \\x1b[31mred\\x1b]0;title\\x07 \\u202ename\\r"


def test_nothing_that_a_terminal_would_obey_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError(FOREIGN, where=FOREIGN, fix=FOREIGN)
    assert (error.what, error.where, error.fix) == (SHOWN, SHOWN, SHOWN)
    say(FOREIGN)
    assert capsys.readouterr().err == f"- {SHOWN}\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_nor_shown_on_a_console(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    from rich.table import Table

    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    written = io.StringIO()
    table = Table(title=FOREIGN)
    table.add_column(FOREIGN, no_wrap=True)
    table.add_row(FOREIGN)
    shown = console(written)
    shown.print(table, width=200)
    shown.print(FOREIGN, style="bold", markup=False)
    assert written.getvalue().count("\\x1b[31mred") == 4
    assert "\x1b[31m" not in written.getvalue()
    assert terminal == ("\x1b[1m" in written.getvalue())  # what is rich's own is sent


@given(st.text())
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text
