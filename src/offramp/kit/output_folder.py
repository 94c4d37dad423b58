"""A folder that offramp writes to: what in it is its own, and how one result takes the place of another.

What offramp wrote is listed, by name and SHA-256, in a record that lies in the folder. Nothing else is ever
replaced or removed: a file that is not listed is somebody's, and one whose bytes are not those that were
written is kept under another name before anything is written there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offramp.errors import DamagedFileError, InputError
from offramp.files import is_temporary, remove, sha256_of_file, sweep_temporary_files, sync_folder
from offramp.kit.sealed_file import SealedFile

RECORD_FILE = ".offramp.json"
NEW = ".offramp-new"
"""The folder in an output folder in which its replacement is made."""
WHOLE = ".offramp-whole.json"
"""What there says that a replacement is whole and is being put in its place: its files, as in RECORD_FILE."""

LOCK = ".lock"
CHANGED = ".changed"
"""What is added to the name of a file that was changed since it was written, to write a new one."""

UNKNOWN = ""
"""In the place of a SHA-256 that nobody noted: by an offramp that kept no such record."""


@dataclass(frozen=True)
class Written:
    """What offramp wrote into a folder."""

    files: Mapping[str, str | None]
    """SHA-256 by path in the folder; None while it is written, so that whatever lies there is ours."""


WRITTEN = SealedFile(
    Written,
    what="{name}, which says what offramp wrote into the folder, is damaged",
    fix="remove it: what lies in the folder is then taken for yours",
    version=1,
)

Condition = Literal["absent", "own", "changed", "foreign"]


class OutputFolder:
    """A folder that offramp writes to, whose lock its writer holds.

    also: what is ours there though no record lists it (see `Written.files`), because another record does, or
    because an older offramp wrote it.
    """

    def __init__(self, path: Path, also: Mapping[str, str | None] | None = None) -> None:
        self.path = path
        self.made = path / NEW / (path.absolute().name or "result")
        self._also = dict(also or {})

    # --- what is there

    def listed(self) -> dict[str, str | None]:
        """What is ours by name."""
        return {**self._also, **self._recorded()}

    def _recorded(self) -> dict[str, str | None]:
        """What the record lists. One that is damaged lists nothing: nobody is robbed on its word."""
        try:
            return dict(WRITTEN.read(self.path / RECORD_FILE).files)
        except (FileNotFoundError, NotADirectoryError, DamagedFileError):
            return {}

    def condition(self, name: str) -> Condition:
        """Whose what lies under a name is: nobody's, ours, ours but changed since, or somebody's."""
        return self._condition(name, self.listed())

    def _condition(self, name: str, listed: Mapping[str, str | None]) -> Condition:
        path = self.path / name
        for parent in path.parents:
            if parent == self.path:
                break
            if os.path.lexists(parent) and (parent.is_symlink() or not parent.is_dir()):
                return "foreign"  # what a link leads to is somebody's
        if not os.path.lexists(path):
            return "absent"
        if name not in listed:
            return "foreign"
        if path.is_symlink() or not path.is_file():
            return "changed"
        return "own" if listed[name] in (None, sha256_of_file(path)) else "changed"

    def entries(self) -> list[str]:
        """What lies at the top of the folder, but for the lock, the record and what killed writers left."""
        if not self.path.is_dir():
            return []
        apart = {LOCK, RECORD_FILE, *({NEW} & self.listed().keys())}
        names = {entry.name for entry in self.path.iterdir() if not is_temporary(entry)}
        return sorted(names - apart)

    def foreign(self) -> list[str]:
        """What lies in the folder and is not ours: entries at its top, and files in our own folders there.

        Empty folders count for nothing: a process that was killed leaves some.
        """
        listed = self.listed()
        own = {name.partition("/")[0] for name in listed}
        others = []
        for name in self.entries():
            below = files_below(self.path / name)
            if (self.path / name).is_dir() and not below:
                continue
            if name not in own:
                others += [] if _is_kept_aside(name, own) else [name]
            elif name not in listed and (self.path / name).is_dir():
                paths = [f"{name}/{path}" for path in below]
                others += [path for path in paths if path not in listed and not _is_kept_aside(path, listed)]
        return others

    def require_free(self, names: Collection[str]) -> dict[str, Condition]:
        """The condition of each of these names. Raises InputError where what lies there is somebody's."""
        listed = self.listed()
        conditions = {name: self._condition(name, listed) for name in names}
        for name, condition in conditions.items():
            if condition == "foreign":
                standing = [
                    path for path in (self.path / name).parents if path.is_symlink() or path.is_file()
                ]
                below = [path for path in standing if self.path in path.parents]
                raise InputError(
                    f"something that offramp did not write stands where {name} is written",
                    where=str(below[-1] if below else self.path / name),
                    fix="move it away, or choose another folder with -o",
                )
        return conditions

    # --- changing it

    @contextlib.contextmanager
    def writing(self, *names: str) -> Iterator[None]:
        """Let these files be written, or removed, inside the block; afterwards they are listed as they are.

        Raises InputError, before anything is changed, where something that offramp did not write stands in
        the place of one. What was changed since it was written is kept under another name.
        """
        self.make_way(names)
        self._write({**self._recorded(), **dict.fromkeys(names)})
        try:
            yield
        finally:
            self.adopt(*names)

    def make_way(self, names: Collection[str]) -> None:
        """See `writing`."""
        for name, condition in self.require_free(names).items():
            if condition == "changed":
                aside = _free(self.path / f"{name}{CHANGED}")
                (self.path / name).rename(aside)
                print(
                    f"offramp: {self.path / name} was changed since offramp wrote it: kept as {aside.name}",
                    file=sys.stderr,
                )

    def unlist(self, *names: str) -> None:
        """Let the record say nothing of these files any more: another record does."""
        self._write({name: seal for name, seal in self._recorded().items() if name not in names})

    def adopt(self, *names: str) -> None:
        """List files as they are now."""
        if not names:
            return
        files = self._recorded()
        for name in names:
            path = self.path / name
            files.pop(name, None)
            if path.is_file() and not path.is_symlink():
                files[name] = sha256_of_file(path)
        self._write(files)

    def remove(self, *names: str) -> None:
        """Remove what of this is ours and unchanged, and folders that are empty then."""
        own = [name for name in names if self.condition(name) == "own"]
        with self.writing(*own):
            for name in own:
                (self.path / name).unlink()
        self._prune(own)

    def leave(self) -> None:
        """Remove the folder with its lock and record, unless something else lies in it."""
        if not self._recorded() and not self.entries():
            for name in (RECORD_FILE, LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    @contextlib.contextmanager
    def replaced(
        self,
        last: str,
        *,
        goes_on: Callable[[Path], bool] | None = None,
    ) -> Iterator[Path]:
        """A folder to make a whole result in, which then takes the place of everything that is ours here.

        What is here stays as it is until the block has ended, and if it does not end well. last: the file
        that makes the result a whole one. goes_on: whether what a killed block left is to be gone on with;
        by default it is made anew, and nothing is left of a block that failed.

        Raises InputError, before the block, if something else stands where the replacement is made.
        """
        self.finish_replacing(last)
        new = self.path / NEW
        if self.condition(NEW) == "foreign":
            raise InputError(
                "something that offramp did not write stands where the new result is made",
                where=str(new),
                fix="move it away, or choose another folder with -o",
            )
        if goes_on is None or not (self.made.is_dir() and goes_on(self.made)):
            remove(new)
        self._write({**self._recorded(), NEW: None})
        self.made.mkdir(parents=True, exist_ok=True)
        try:
            yield self.made
        except Exception:
            if goes_on is None:
                self._drop_new()
            raise
        self.take(self.made, last)
        self._drop_new()

    @property
    def left_whole(self) -> Path | None:
        """A whole replacement whose process was killed before all was in its place, None without one."""
        return self.made if NEW in self.listed() and (self.made / WHOLE).is_file() else None

    def finish_replacing(self, last: str) -> bool:
        """Put what is `left_whole` in its place; whether there was anything."""
        whole = self.left_whole is not None
        if whole:
            self.take(self.made, last)
            self._drop_new()
        return whole

    def _drop_new(self) -> None:
        remove(self.path / NEW)
        self.adopt(NEW)

    def take(self, new: Path, last: str, *, replaces: Collection[str] | None = None) -> None:
        """Move a whole result, made in a folder of its own, in here in the place of what is ours.

        A process that is killed meanwhile leaves the rest in `new`, to be taken again. last: the file that
        makes the result a whole one: it goes first and comes last. replaces: the old files that go, by
        default all that are listed.

        Raises InputError as `writing` does; the result then stays where it was made.
        """
        if not (new / WHOLE).is_file():
            sweep_temporary_files(new)
            files = {name: sha256_of_file(new / name) for name in files_below(new)}
            WRITTEN.write(new / WHOLE, Written(files))
        names = WRITTEN.read(new / WHOLE).files
        listed = self.listed()
        old = [
            name
            for name in (listed if replaces is None else replaces)
            if name not in names and name != NEW and self._condition(name, listed) == "own"
        ]
        with self.writing(*names, *old):
            if (new / last).is_file():
                (self.path / last).unlink(missing_ok=True)
            for name in old:
                (self.path / name).unlink()
            for name in sorted(names, key=lambda name: (name == last, name)):
                if (new / name).is_file():
                    (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(new / name, self.path / name)
            sync_folder(self.path)
        self._prune(old)
        shutil.rmtree(new)

    def _prune(self, names: Collection[str]) -> None:
        """Remove the folders of files that are gone, where they are empty."""
        parents = {parent for name in names for parent in (self.path / name).parents}
        for parent in sorted(parents, key=lambda path: -len(path.parts)):
            if self.path in parent.parents:
                with contextlib.suppress(OSError):  # something else lies there
                    parent.rmdir()

    def _write(self, files: Mapping[str, str | None]) -> None:
        if files:
            WRITTEN.write(self.path / RECORD_FILE, Written(files))
        elif (self.path / RECORD_FILE).is_file():
            (self.path / RECORD_FILE).unlink()


def files_below(folder: Path) -> list[str]:
    """The files in a folder and in those below it, by path; locks and its own records left out."""
    apart = (RECORD_FILE, WHOLE)
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name not in apart and name.rpartition("/")[2] != LOCK)


def _is_kept_aside(name: str, own: Container[str]) -> bool:
    """Whether this is what `OutputFolder.make_way` kept under another name."""
    stem, mark, number = name.rpartition(CHANGED)
    return bool(mark) and stem in own and (not number or number[1:].isdecimal())


def _free(path: Path) -> Path:
    """A path under which nothing lies."""
    number = 2
    free = path
    while os.path.lexists(free):
        free = path.with_name(f"{path.name}-{number}")
        number += 1
    return free
