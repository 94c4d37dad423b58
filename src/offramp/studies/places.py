"""Places in a study file, for the errors of what its entries ask for; and paths relative to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.errors import InputError, OfframpError

if TYPE_CHECKING:
    from offramp.studies.study import Study


@contextlib.contextmanager
def placed(study: Study, *location: str | int) -> Iterator[None]:
    """Give the errors of what is done within the place in the study file that they come from."""
    try:
        yield
    except OfframpError as error:
        place = study.where(*location)
        where = f"{place}: {error.where}" if error.where else place
        raise InputError(error.what, where=where, fix=error.fix) from error


def resolved(study: Study, text: str) -> str:
    """A path of the file as this process finds it; a text that names nothing there stays as it is."""
    path = study.folder / Path(text).expanduser()
    return str(path) if path.exists() else text
