"""Prompts from the command line, from files and from standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from offramp.errors import InputError
from offramp.files import read_given_text

STANDARD_INPUT = "-"


def read_prompts(texts: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The prompts of `--prompt` and of `--prompt-file`, in this order; "-" is standard input.

    The line end that closes a file does not belong to its prompt.

    Raises InputError if there is none, if one is empty, if a file cannot be read, and if standard input is to
    be read twice.
    """
    named = [(text, "--prompt") for text in texts]
    named += [(_read_file(file), f"--prompt-file {file}") for file in files if str(file) != STANDARD_INPUT]
    inputs = [*texts, *map(str, files)].count(STANDARD_INPUT)
    if inputs > 1:
        raise InputError("standard input can be read once", where="--prompt -", fix="give one - only")
    if inputs and sys.stdin is None:
        raise InputError("standard input is closed", where="--prompt -", fix="give --prompt TEXT")
    if inputs:
        typed = _closed(_read_typed())
        named = [(typed if text == STANDARD_INPUT else text, where) for text, where in named]
        if STANDARD_INPUT not in texts:
            named.append((typed, "--prompt-file -"))
    if not named:
        raise InputError(
            "there is no prompt", where="--prompt", fix='give --prompt TEXT, --prompt-file FILE, or "-"'
        )
    for text, where in named:
        if not text.strip():
            raise InputError(
                "the prompt is empty: there is nothing to go on from", where=where, fix="write some text"
            )
    return [text for text, _ in named]


def _read_file(file: Path) -> str:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is no regular file" if file.exists() else "does not exist"
        raise InputError(f"the prompt's file {what}", where=str(file), fix="name a text file")
    try:
        return _closed(read_given_text(file))
    except OSError as error:
        raise InputError(
            f"the prompt's file cannot be read: {error.strerror}", where=str(file), fix="name a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("the prompt's file is not UTF-8 text", where=str(file), fix="convert it") from error


def _read_typed() -> str:
    """Standard input, which is UTF-8 as files are. Raises InputError."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("standard input is not UTF-8 text", where="--prompt -", fix="convert it") from error


def _closed(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
