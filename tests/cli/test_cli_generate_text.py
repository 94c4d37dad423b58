"""Text of generated tokens: whole characters, as they come, in the colours of their exits."""

from __future__ import annotations

import functools
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.cli.token_text import PALETTE, Painter, Pieces, TokenStream
from tiny_models import write_tokenizer

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def console(**options: Any) -> Any:
    from rich.console import Console

    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", **options)


def test_early_exits_lie_at_one_end_of_the_scale() -> None:
    painter = Painter(console(), (10, 15, 20, 25), 30)
    colours = [PALETTE.index(str(painter.colour_of(exit))) for exit in (10, 15, 20, 25)]
    assert colours == sorted(set(colours))
    assert (colours[0], colours[-1]) == (0, len(PALETTE) - 1)
    assert painter.colour_of(30) is None
    assert Painter(console(), (7,), 30).colour_of(7) == PALETTE[0]
    legend = Painter(console(), tuple(range(1, 30)), 30).legend()
    assert legend is not None
    assert ESCAPE.sub("", legend).startswith("colour: the layer a token left after: 1-4, ")


def test_a_terminal_obeys_nothing_that_a_model_writes() -> None:
    painter = Painter(console(), (1,), 2)
    painter.write("\x1b]0;title\x07a\tb\x9b31m\n", 2)
    assert painter.console.file.getvalue() == "]0;titlea\tb31m\n"


def test_text_is_shown_as_it_comes_and_the_end_token_is_not() -> None:
    tokenizer = byte_tokenizer()
    words = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    painter = Painter(console(no_color=True), (1,), 2)
    stream = TokenStream(painter, tokenizer.decode, {tokenizer.eos_token_id})
    stream.put(np.array([[3, 4, 5]]))  # the prompt, as transformers' generate gives it
    seen = [painter.console.file.getvalue()]
    for token in (*words, tokenizer.eos_token_id):
        stream.put_exits(np.array([1]))
        stream.put(np.array([token]))
        seen.append(painter.console.file.getvalue())
    assert seen == [tokenizer.decode(words[:count]) for count in (*range(len(words) + 1), len(words))]
    stream.end()
    stream.end()
    assert painter.console.file.getvalue() == "the cat sat\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 319), max_size=30))
def test_pieces_together_are_the_text(tokens: list[int]) -> None:
    decode = byte_tokenizer().decode
    pieces = Pieces(lambda ids: str(decode(ids, clean_up_tokenization_spaces=False)))
    given = [pieces.add(token) for token in tokens]
    assert "".join(given) + pieces.rest() == decode(tokens, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer("naïve 🙂 ok", add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer.decode)
    given = [pieces.add(token) for token in tokens]
    assert "".join(given) == "naïve 🙂 ok"
    assert "🙂" in given
    assert given[given.index("🙂") - 3 : given.index("🙂")] == ["", "", ""]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in given)
    assert pieces.rest() == ""


@functools.cache
def byte_tokenizer() -> Any:
    """A byte-level tokenizer: every byte is a token."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def test_pieces_keep_spaces_that_a_tokenizer_strips_at_the_start() -> None:
    words = {1: "▁the", 2: "▁cat", 3: "s"}

    def decode(ids: list[int]) -> str:
        return "".join(words[token] for token in ids).replace("▁", " ").removeprefix(" ")

    pieces = Pieces(decode)
    assert [pieces.add(token) for token in (1, 2, 3, 1)] == ["the", " cat", "s", " the"]
