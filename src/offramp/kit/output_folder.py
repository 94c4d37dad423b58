"""A folder that offramp writes to: whose it is, what in it is its own, how one result takes another's place.

Each kind of folder is declared once, as an `OutputFolder`. What offramp wrote is listed, by name and SHA-256,
in a record that lies in the folder, unless it vouches for itself. Nothing else is ever replaced or removed: a
file that is not listed is somebody's, and one whose bytes are not those that were written is kept under
another name before anything is written there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from offramp.errors import DamagedFileError, InputError, OfframpError
from offramp.files import (
    PathBelow,
    asked_before,
    is_temporary,
    locked_folder,
    remove,
    require_no_links,
    require_writable,
    sha256_of_file,
    sweep_temporary_files,
    sync_folder,
)
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import to_json

RECORD_FILE = ".offramp.json"
NEW = ".offramp-new"
"""The folder in an output folder in which its replacement is made."""
WHOLE = ".offramp-whole.json"
"""What there says that a replacement is whole and is being put in its place: its files, as in RECORD_FILE."""

LOCK = ".lock"
CHANGED = ".changed"
"""What is added to the name of a file that was changed since it was written, to write a new one."""

PUT_THERE = "was put there by something else"
"""What is said of a file that is kept under another name where ours is written for the first time."""

UNKNOWN = ""
"""In the place of a SHA-256 that only the record of the folder may know."""
NAMED = 3
"""Files, or differences, that a refusal names."""

Asked = TypeVar("Asked")
Files = Mapping[str, str | None]
"""SHA-256 by path in a folder; None where a name alone, or a seal of its own, tells that a file is ours."""


@dataclass(frozen=True)
class Written:
    """What offramp wrote into a folder."""

    files: Mapping[PathBelow, str | None]
    """None while a file is written, so that whatever lies there is ours."""


WRITTEN = SealedFile(
    Written,
    what="{name}, which says what offramp wrote into the folder, is damaged",
    fix="remove it: what lies in the folder is then taken for yours",
    version=1,
)


def _nothing(folder: Path) -> Any:
    return None


@dataclass(frozen=True, kw_only=True)
class OutputFolder(Generic[Asked]):
    """A kind of folder, which belongs to one request: what may lie in it, and what is done with another's."""

    what: str
    """One of them, in messages: "a training"."""
    own: Callable[[Path], Files | None]
    """What in a folder is of this kind, whether or not its record lists it; None if the folder is none."""
    done: str | None = None
    """The file that makes a result a whole one, written last. A kind without one is only ever added to."""
    request: SealedFile[Asked] | None = None
    """What the folder is of. A kind that has none, but `done`, is made anew each time."""
    request_name: str = "request.json"
    elsewhere: Callable[[Path], Any] = _nothing
    """What it is of, as JSON, where that file is missing; None if nobody knows."""
    mends: bool = False
    """Whether that file is written again where it is damaged, and `elsewhere` says what it held."""
    assumed: Mapping[str, Any] = field(default_factory=dict)
    """Entries that requests of older versions lack."""
    writes: Collection[str] = ()
    """Files in whose place nothing of others may stand."""
    alone: bool = False
    """Whether files of others are refused even where they are in nothing's way."""
    kept: bool = False
    """Whether a whole result stays where it is overwritten by the same request."""
    choose: str = "choose another folder with -o"

    def files(self, path: Path) -> OwnFiles:
        """What of a folder is ours."""
        return OwnFiles(path, self.own(path))

    def require(
        self, path: Path, asked: Any = None, *, overwrite: bool = False, repair: bool = False
    ) -> None:
        """Make sure that a folder is absent, empty, that of this request, or one of this kind to overwrite.

        asked: as `request` writes it; None where that is not known yet. A result that is whole and was killed
        while it took another's place counts for that one. repair: as in `claimed`.

        Raises InputError if not, where a link lies in it, and where another process has begun to write;
        DamagedFileError if its request is gone or cannot be believed; nothing is written.
        """
        try:
            self._require(path, asked, overwrite=overwrite, repair=repair)
        except (InputError, DamagedFileError):
            if (path / LOCK).is_file():  # who has just begun has not said yet what is written there
                with locked_folder(path, f", or {self.choose}"):
                    pass
            raise

    def _require(self, path: Path, asked: Any, *, overwrite: bool, repair: bool) -> None:
        """The same of a folder as it is, whoever may write there."""
        require_writable(path)
        require_no_links(path)
        own = self.own(path)
        files = OwnFiles(path, own)
        left = files.left_whole
        is_ours = own is not None or (left is not None and self.own(left) is not None)
        others = (files.foreign() if self.alone else []) if is_ours else files.entries()
        if others:
            raise InputError(
                f"the output folder holds files that are not {self.what}: {_some(others)}",
                where=str(path),
                fix=("move them away, or " if is_ours else "") + self.choose,
            )
        files.require_free(self.writes)
        if not is_ours or overwrite:
            return
        if self.request is None and self.done is not None:
            raise self._another(path, "the output is there already")
        places = [path] if left is None else [left, path]
        there = next((one for place in places if (one := self._there(place, forgive=repair))), None)
        if there is None and self.request is not None and not repair:
            said = f"the output folder holds {self.what} whose {self.request_name} is missing"
            raise self._another(path, said, DamagedFileError)
        if asked is not None and there and (differing := self._differing(there, asked)):
            said = f"another {self.what.split(' ', 1)[1]} (it differs in: {_some(differing)})"
            raise self._another(path, f"the output folder holds {said}")

    def _another(self, path: Path, what: str, kind: type[OfframpError] = InputError) -> OfframpError:
        replace = "" if self.done is None else ", or give --overwrite (overwrite=True) to replace it"
        return kind(what, where=str(path), fix=self.choose + replace)

    @contextlib.contextmanager
    def claimed(
        self, path: Path | None, asked: Any = None, *, overwrite: bool = False, repair: bool = False
    ) -> Iterator[Path]:
        """The folder to write this request's result in, locked, and swept of what killed writers left.

        It is the folder itself, empty or with a result of this very request, to be gone on with; or, while
        another result lies there that is overwritten, one inside, which takes the other's place when the
        block has ended well. Without a path it is a temporary one.

        repair: go on also where the request there cannot be read. Raises as `require`, and InputError if
        another process writes into the folder. A block that fails before it left anything leaves nothing.
        """
        if path is None:
            with tempfile.TemporaryDirectory(prefix="offramp-") as name:
                yield Path(name)
            return
        self.require(path, asked, overwrite=overwrite, repair=repair)
        existed = path.exists()
        with locked_folder(path, f", or {self.choose}"):
            # As it is now that nobody else writes.
            self._require(path, asked, overwrite=overwrite, repair=repair)
            sweep_temporary_files(path)
            try:
                with self._prepared(path, asked, overwrite=overwrite, repair=repair) as place:
                    yield place
            except BaseException:
                if not existed:
                    OwnFiles(path).leave()
                raise

    @staticmethod
    @contextlib.contextmanager
    def held(path: Path) -> Iterator[None]:
        """A folder of this kind, locked as it is. Raises InputError if another process writes into it."""
        with locked_folder(path, another=""):
            yield

    @contextlib.contextmanager
    def _prepared(self, path: Path, asked: Any, *, overwrite: bool, repair: bool) -> Iterator[Path]:
        if self.done is None:
            yield path
            return
        finished = self.files(path).finish_replacing(self.done)
        self._let_vouch(path)
        own = self.own(path)
        there = self._there(path, forgive=overwrite or repair)
        same = there is not None and not self._differing(there, asked)
        goes_on = same and (finished or self.kept or not (path / self.done).exists())
        if self.request is None or (overwrite and own is not None and not goes_on):
            resumed = None if self.request is None else lambda made: self._is_of(made, asked)
            with OwnFiles(path, own).replaced(self.done, goes_on=resumed) as made:
                if self.request is not None and not (made / self.request_name).is_file():
                    self.request.write(made / self.request_name, asked)
                yield made
            self._let_vouch(path)
        else:
            with self._in_place(path, asked, begun=there is not None):
                yield path

    @contextlib.contextmanager
    def _in_place(self, path: Path, asked: Asked, *, begun: bool) -> Iterator[None]:
        assert self.request is not None
        if not self._is_of(path, asked):
            with self.files(path).writing(self.request_name):
                self.request.write(path / self.request_name, asked)
        self._let_vouch(path)
        own = self.own(path) or {}
        files = OwnFiles(path, own)
        ours = {RECORD_FILE, *(name for name, seal in files.listed().items() if seal != UNKNOWN)}
        new: list[str] = []

        def ask(file: Path) -> None:
            """What is written here for the first time replaces nothing: what stands there is somebody's."""
            if file.name in ours:
                return
            ours.add(file.name)
            if os.path.lexists(file):
                set_aside(file, PUT_THERE)
            if own.get(file.name) == UNKNOWN:
                new.append(file.name)
                files.expect(file.name)

        try:
            with asked_before(path, ask):
                yield
        except BaseException:
            files.adopt(*new)
            if not begun and files_below(path) == [self.request_name]:
                self.files(path).remove(self.request_name)  # the folder is as free as it was
            raise
        files.adopt(*files.expected(new))
        self._let_vouch(path)

    def _let_vouch(self, path: Path) -> None:
        """Let the record say nothing of files that vouch for themselves."""
        own = self.own(path) or {}
        OwnFiles(path).unlist(*(name for name, seal in own.items() if seal != UNKNOWN))

    def _is_of(self, path: Path, asked: Any) -> bool:
        """Whether a folder's own file says that it is of this request."""
        assert self.request is not None
        try:
            there = self.request.read(path / self.request_name)
        except (OSError, DamagedFileError):
            return False
        return not self._differing(to_json(there), asked)

    def _there(self, path: Path, *, forgive: bool) -> Any:
        """What a folder is of, as JSON; None without any, and where it is damaged and that is forgiven."""
        file, forgiven = path / self.request_name, (DamagedFileError,) if forgive else ()
        with contextlib.suppress(*forgiven):
            if self.request is not None and os.path.lexists(file):
                try:
                    return to_json(self.request.read(file))
                except DamagedFileError:
                    known = self.elsewhere(path) if self.mends and not forgive else None
                    if known is None:
                        raise
                    return known
        with contextlib.suppress(*forgiven):
            return self.elsewhere(path)
        return None

    def _differing(self, there: Mapping[str, Any], asked: Any) -> list[str]:
        """In what the request in a folder is another one, in words."""
        before, now = (_flat({**self.assumed, **to_json(request)}) for request in (there, asked))
        return [
            f"{name} ({_shown(before.get(name))} there, {_shown(now.get(name))} here)"
            for name in {**now, **before}
            if before.get(name) != now.get(name)
        ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every entry under its path: "recipe.seed"; numbers of lists are left together."""
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, Mapping):
            flat |= _flat(part, f"{prefix}{name}.")
        elif isinstance(part, Sequence) and part and isinstance(part[0], Mapping):
            flat |= _flat({str(place): item for place, item in enumerate(part)}, f"{prefix}{name}.")
        else:
            flat[prefix + name] = part
    return flat


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


Condition = Literal["absent", "own", "changed", "foreign"]


class OwnFiles:
    """What in a folder is ours, whose lock its writer holds.

    also: what is ours there though the record does not list it, because it vouches for itself, or because an
    older offramp wrote it.
    """

    def __init__(self, path: Path, also: Files | None = None) -> None:
        self.path = path
        self.made = path / NEW / (path.absolute().name or "result")
        self._also = dict(also or {})

    # --- what is there

    def listed(self) -> dict[str, str | None]:
        """What is ours by name."""
        return {**self._also, **self._recorded()}

    def _recorded(self) -> dict[str, str | None]:
        return _listed_in(self.path / RECORD_FILE)

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
        """What lies at the top of the folder, but for the lock, the record and what killed writers left:
        temporary files, and folders without files."""
        if not self.path.is_dir():
            return []
        apart = {LOCK, RECORD_FILE, *({NEW} & self.listed().keys())}
        entries = (entry for entry in self.path.iterdir() if not is_temporary(entry))
        names = {
            entry.name for entry in entries if entry.is_symlink() or not entry.is_dir() or files_below(entry)
        }
        return sorted(names - apart)

    def foreign(self) -> list[str]:
        """What lies in the folder and is not ours: entries at its top, and files in our own folders there."""
        listed = self.listed()
        own = {name.partition("/")[0] for name in listed}
        others = []
        for name in self.entries():
            if name not in own:
                others += [] if _is_kept_aside(name, own) else [name]
            elif name not in listed and (self.path / name).is_dir():
                paths = [f"{name}/{path}" for path in files_below(self.path / name)]
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
        the place of one. What was changed since it was written is kept under another name, unless it is what
        is written now.
        """
        listed = self.listed()
        conditions = self.require_free(names)
        aside = {name: _renamed(self.path / name) for name in names if conditions[name] == "changed"}
        self.expect(*names)
        try:
            yield
        finally:
            same = [name for name, kept in aside.items() if _are_same_files(kept, self.path / name)]
            if any(listed[name] == UNKNOWN for name in same):
                what = "which says what offramp wrote there, was missing or damaged: it is made again"
                _tell(f"{self.path / RECORD_FILE}, {what}")
            for name, kept in aside.items():
                if name in same:
                    kept.unlink()
                else:
                    _tell(f"{self.path / name} was changed since offramp wrote it: kept as {kept.name}")
            self.adopt(*names)

    def expect(self, *names: str) -> None:
        """Take whatever comes to lie under these names for ours."""
        if names:
            self._write({**self._recorded(), **dict.fromkeys(names)})

    def expected(self, names: Iterable[str]) -> list[str]:
        """Which of these names are still waited for, or were not listed since."""
        recorded = self._recorded()
        return [name for name in names if recorded.get(name) is None]

    def unlist(self, *names: str) -> None:
        """Let the record say nothing of these files any more: another record does."""
        recorded = self._recorded()
        if not recorded.keys().isdisjoint(names):
            self._write({name: seal for name, seal in recorded.items() if name not in names})

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
            with contextlib.suppress(OSError):  # a killed writer's temporary file lies there
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
        return self.made if NEW in self.listed() and _listed_in(self.made / WHOLE) else None

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
        names = _listed_in(new / WHOLE)
        if not names:
            sweep_temporary_files(new)
            names = {name: sha256_of_file(new / name) for name in files_below(new)}
            WRITTEN.write(new / WHOLE, Written(names))
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


def _listed_in(record: Path) -> dict[str, str | None]:
    """What a record lists. A damaged one lists nothing, so no file of the user's is overwritten."""
    try:
        return dict(WRITTEN.read(record).files)
    except (FileNotFoundError, NotADirectoryError, DamagedFileError):
        return {}


def files_below(folder: Path) -> list[str]:
    """The files in a folder and in those below it, by path, without locks, its own records and what killed
    writers left.
    """
    apart = (RECORD_FILE, WHOLE)
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    kept = (path for path in files if path.name != LOCK and not any(map(is_temporary, (path, *path.parents))))
    return sorted(name for path in kept if (name := path.as_posix()) not in apart)


def _are_same_files(one: Path, other: Path) -> bool:
    """Whether both are regular files of the same bytes."""
    regular = all(path.is_file() and not path.is_symlink() for path in (one, other))
    return regular and sha256_of_file(one) == sha256_of_file(other)


def _tell(what: str) -> None:
    print(f"offramp: {what}", file=sys.stderr)


def set_aside(path: Path, why: str) -> None:
    """Give what lies under a path another name, and say so. why: what of it."""
    _tell(f"{path} {why}: kept as {_renamed(path).name}")


def _renamed(path: Path) -> Path:
    """The new name of what lay under a path."""
    aside = _free(path.with_name(f"{path.name}{CHANGED}"))
    path.rename(aside)
    return aside


def _is_kept_aside(name: str, own: Container[str]) -> bool:
    """Whether this is what `OwnFiles.writing` kept under another name."""
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
