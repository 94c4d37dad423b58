"""The few errors offramp raises; each says what is wrong, where, and what to do."""

from __future__ import annotations

import re

LONGEST_WORD = 200
"""Characters of one unbroken word that a message repeats: what people gave may be of any size."""
LONGEST_TEXT = 2_000
"""Characters of one part of a message."""
OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to map segment",
)
"""How torch's RuntimeErrors and the system's loader call it."""


class OfframpError(Exception):
    """A failure that a user can understand: what is wrong, where, and what to do about it.

    The command line prints the three parts and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = shortened(what)
        self.where = shortened(where)
        self.fix = shortened(fix)
        super().__init__(self.what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.fix:
            parts.append(f"what to do: {self.fix}")
        return "\n".join(parts)


def shortened(text: str) -> str:
    """A text in which no word is longer than LONGEST_WORD characters, and which ends after LONGEST_TEXT."""
    if len(text) <= LONGEST_WORD:
        return text
    # Of anything larger the beginning is looked at only.
    words = re.sub(rf"\S{{{LONGEST_WORD},}}", _cut_word, text[: 4 * LONGEST_TEXT])
    if len(words) <= LONGEST_TEXT and len(text) <= 4 * LONGEST_TEXT:
        return words
    return f"{words[:LONGEST_TEXT]}... ({len(text):,} characters)"


def _cut_word(word: re.Match[str]) -> str:
    text = word.group()
    return text if len(text) == LONGEST_WORD else f"{text[:LONGEST_WORD]}... ({len(text):,} characters)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


class InputError(OfframpError):
    """Bad usage or input: an unknown name, an unusable file, an option that does not fit (exit code 2)."""

    exit_code = 2


class ModelError(InputError):
    """A model that cannot be loaded safely or whose exits cannot be read out exactly."""


class WorkloadError(InputError):
    """A workload that is unknown, empty or not text."""


class PolicyError(InputError):
    """A policy text or parameter that does not parse or does not fit the trace."""


class DamagedFileError(OfframpError):
    """A file whose bytes are not those that were written (checksum mismatch, truncated, unreadable)."""


class DiskFullError(OfframpError):
    """A disk without room for what is to be written; nothing half-written was left."""
