"""The few errors offramp raises; each says what is wrong, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_WORD = 200
"""Characters of one unbroken word that a message repeats: what people gave may be of any size."""
LONGEST_PATH = 4096
"""Of one with a slash in it, which may be a path: those are of use only whole."""
LONGEST_TEXT = 2_000
"""Characters of one part of a message."""
CUT = "..."
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but line feed and tab, and those that turn the direction of what follows."""
OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "can't start new thread",
)
"""How torch's RuntimeErrors and the system's loader call it."""


class OfframpError(Exception):
    """A failure that a user can understand: what is wrong, where, and what to do about it.

    The command line prints the three parts and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = printable(shortened(what))
        self.where = printable(shortened(where))
        self.fix = printable(shortened(fix))
        super().__init__(self.what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.fix:
            parts.append(f"what to do: {self.fix}")
        return "\n".join(parts)


def printable(text: str) -> str:
    """A text with the codes of characters in their place that a terminal would obey instead of showing."""
    return text if text.isprintable() else OBEYED.sub(_code, text)


def _code(character: re.Match[str]) -> str:
    return character.group().encode("unicode_escape").decode("ascii")


def shortened(text: str) -> str:
    """A text of which long words show their beginnings only, and which itself ends after LONGEST_TEXT."""
    words = re.sub(rf"\S{{{LONGEST_WORD + len(CUT)},}}", _cut_word, text)
    if len(words) <= LONGEST_PATH:  # a path that is shown whole must not be cut here
        return words
    return f"{words[:LONGEST_TEXT]}{CUT} ({len(text):,} characters)"


def _cut_word(word: re.Match[str]) -> str:
    text = word.group()
    if "/" in text and len(text) <= LONGEST_PATH:
        return text
    if len(text) == LONGEST_WORD + len(CUT):  # what was cut before is left as it is
        return text
    return f"{text[:LONGEST_WORD]}{CUT} ({len(text):,} characters)"


def words_of(error: BaseException) -> str:
    """What an error of others says; its type where it fails to say anything."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - others make the text, and may raise anything
        return f"an error without words: {type(error).__name__}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short."""
    text = words_of(error).lower()
    # The loader says so too where a mount does not allow programs to be run.
    unmapped = "failed to map segment" in text and "not permitted" not in text
    return isinstance(error, MemoryError) or unmapped or any(words in text for words in OUT_OF_MEMORY)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise an error again that says that memory was short: whatever was tried may well be possible."""
    if is_out_of_memory(error):
        raise error


class InputError(OfframpError):
    """Bad usage or input: an unknown name, an unusable file, an option that does not fit (exit code 2)."""

    exit_code = 2


class ModelError(InputError):
    """A model that cannot be loaded safely or whose exits cannot be read out exactly."""


class BusyMachineError(ModelError):
    """Others kept the machine busy, so that no timing is fit to decide; later one may be (exit code 1)."""

    exit_code = 1


class WorkloadError(InputError):
    """A workload that is unknown, empty or not text."""


class PolicyError(InputError):
    """A policy text or parameter that does not parse or does not fit the trace."""


class DamagedFileError(OfframpError):
    """A file whose bytes are not those that were written (checksum mismatch, truncated, unreadable)."""


class ForeignFileError(DamagedFileError):
    """A whole file under a name of ours that another program wrote (exit code 2)."""

    exit_code = 2


class DiskFullError(OfframpError):
    """A disk without room for what is to be written; nothing half-written was left."""


@contextmanager
def refused_as(
    kind: type[OfframpError], what: str, *caught: type[Exception], where: str, fix: str
) -> Iterator[None]:
    """Let what a library refuses within the block be an error of offramp's: `what`, and the library's words.

    kind: of the error. caught: what the library raises. where, fix: what it cannot know. Errors that say that
    memory was short, and offramp's own, are left as they are.
    """
    try:
        yield
    except caught as error:
        if isinstance(error, OfframpError) or is_out_of_memory(error):
            raise
        raise kind(f"{what}: {str(error) or type(error).__name__}", where=where, fix=fix) from error
