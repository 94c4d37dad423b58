"""Reading text files that people point at: what is not UTF-8 text is refused before a model is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path

from offramp.errors import WorkloadError

LARGEST_FILE = 1_000_000_000
"""Bytes of a text file: the whole of it is held in memory."""


def require_exists(path: Path) -> None:
    """Raise WorkloadError for a path that is missing, with near matches in its folder."""
    if path.exists():
        return
    if path.is_symlink():
        raise WorkloadError("the file is a link that leads nowhere", where=str(path), fix="check the link")
    folder = path.parent
    if not folder.is_dir():
        raise WorkloadError("the folder does not exist", where=str(folder), fix="check the path")
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=3)
    fix = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
    raise WorkloadError("the file does not exist", where=str(path), fix=fix)


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark.

    Raises WorkloadError for a path that is missing or no regular file, and for a file that is unreadable, of
    more than LARGEST_FILE bytes, empty, binary or not UTF-8.
    """
    require_exists(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        raise WorkloadError(f"this is {kind}, not a file", where=str(path), fix="give a regular text file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise WorkloadError(
            f"the file cannot be read: {error.strerror}", where=str(path), fix="check its permissions"
        ) from error
    if len(content) > LARGEST_FILE:
        raise WorkloadError(
            f"the file is larger than {LARGEST_FILE / 1e9:g} GB, which is as much as is read",
            where=str(path),
            fix="give a part of it: a trace needs a few thousand tokens",
        )
    if (offset := content.find(0)) >= 0:
        raise WorkloadError(
            f"the file is not text: it has a NUL byte at offset {offset:,}",
            where=str(path),
            fix="give a text file in UTF-8 (a UTF-16 file: convert it first)",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from after a byte order mark; the offset is that in the file.
        offset = error.start + len(content) - len(error.object)
        raise WorkloadError(
            f"the file is not UTF-8: byte 0x{content[offset]:02x} at offset {offset:,}",
            where=str(path),
            fix="convert it, for example: iconv -f ISO-8859-1 -t UTF-8 FILE > NEW",
        ) from error
    if not text.strip():
        raise WorkloadError("the file is empty", where=str(path), fix="give a file with text in it")
    return text
