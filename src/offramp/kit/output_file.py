"""The one file that a command writes, and its page: what offramp did not write there is never replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import SEAL, json_object_in, open_regular, require_path

PAGE_MARK = b'<meta name="generator" content="offramp">'
"""In the head of every page (`report/templates/frame.html`)."""
CHOOSE = "choose another file with -o"


def require_json_file(
    path: Path, what: str, is_own: Callable[[Mapping[str, Any]], bool], *, page: bool = False
) -> None:
    """Refuse an output that cannot be a JSON file, or is another's.

    what: it is to be, such as "a tuned policy". is_own: whether a JSON object is one that the same command
    wrote, of whatever version; only such a one is replaced. page: whether a page is written beside it.

    Raises InputError, before anything is computed.
    """
    require_path(path)
    if path.suffix != ".json":
        raise InputError(
            "the output's name does not end in .json",
            where=str(path),
            fix=f"write -o {path.stem or 'result'}.json",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        lies = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise InputError(f"the output is {lies}", where=str(path), fix=CHOOSE)
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError("the output's folder may not be written", where=str(path), fix=CHOOSE)
    value = json_object_in(path)
    if os.path.lexists(path) and (value is None or SEAL not in value or not is_own(value)):
        what = f"the output is there already, and holds no {what.split(' ', 1)[1]}"
        raise InputError(what, where=str(path), fix=CHOOSE)
    beside = path.with_suffix(".html")
    if page and os.path.lexists(beside) and not _is_page(beside):
        raise InputError(
            "something else stands where the result's page is written",
            where=str(beside),
            fix="move it away, or choose another file with -o",
        )


def clear_for(path: Path, require: Callable[[Path], None]) -> None:
    """Give what somebody else put in an output's place while the work ran another name, and say so.

    require: refuses a path where something stands that offramp did not write.
    """
    if os.path.lexists(path):
        try:
            require(path)
        except InputError:
            from offramp.kit.output_folder import PUT_THERE, set_aside  # numpy comes with it

            set_aside(path, f"{PUT_THERE} meanwhile")


def _is_page(path: Path) -> bool:
    """Whether a file is a page of offramp."""
    try:
        with open_regular(path) as file:
            return PAGE_MARK in file.read(4096)
    except OSError:  # a link that leads nowhere, or what may not be read
        return False
