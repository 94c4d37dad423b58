"""Writing files so that a kill, a full disk or a second process never leaves a half-written one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.errors import DamagedFileError, DiskFullError, InputError, refused_as, shortened

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

TEMPORARY_PREFIX = ".writing-"
_TEMPORARY = re.compile(r"\.writing-\d+-.+", re.DOTALL)
NO_FILE = "it is a folder, a device or a pipe, not a file"
NO_PATH = "a path cannot hold the character NUL"
LINKED = "it is a link, or has a second name: what is written to it would be written elsewhere"

LONGEST_NAME = 255
"""Bytes of the name of a file or folder that file systems take."""

LARGEST_GIVEN = 64_000_000
"""Bytes of a file that people name, read whole: a policy, a profile, a study, a picture or a sound."""

FIRST_BYTES = 512
"""Of a file that is written in place, which are looked at before."""

LARGEST_JSON = 250_000_000
"""Bytes of a JSON text that is read at all."""
DEEPEST_JSON = 64
"""Objects and lists within each other that a JSON text may have; what is written here has a dozen."""
LARGEST_INTEGER = 2**63 - 1
"""Of whole numbers in JSON, on either side of 0: what arrays and file formats hold."""

PACKAGE = Path(__file__).parent
"""Where the source of offramp itself lies."""

SEAL = "sha256"
"""Where a sealed JSON object holds the SHA-256 of everything else in it."""


class _Below:
    """How a path is read that must not lead out of the folder in which it is looked up."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, core_schema.str_schema())

    @staticmethod
    def _checked(name: str) -> str:
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise ValueError(f"{shortened(repr(name))} leads outside of the folder")
        return name


PathBelow = Annotated[str, _Below()]
"""A field with the path of a file in the record's own folder: relative, in POSIX form, without "..".
Whether a link lies on the way, `require_no_links` tells."""


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> io.BufferedReader:
    """A file of bytes, open for reading: the one way to open what people name.

    Raises OSError for what cannot be opened, and for what is no regular file: a pipe may never end.
    """
    require_regular(path)  # a device may act when it is opened
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # something else took the file's place meanwhile
        os.close(descriptor)
        raise OSError(errno.EINVAL, NO_FILE, str(path))
    return os.fdopen(descriptor, "rb")


def require_regular(path: Path) -> None:
    """Raise OSError for what is there and is no regular file: opening a pipe may wait for ever; and for what
    no path can be."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, NO_PATH, str(path))
    if is_irregular(path):
        raise OSError(errno.EINVAL, NO_FILE, str(path))


def require_alone(path: Path) -> None:
    """Raise OSError for what must not be written in place: no regular file, a link, or a file of two names
    (hard links), one of which may lie elsewhere. What is not there may be made."""
    require_regular(path)
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        raise OSError(errno.EMLINK, LINKED, str(path))


def why_not_ours(path: Path, begins_as_ours: Callable[[bytes], bool]) -> str | None:
    """Why a file must not be written in place, in words; None if it may, or is not there.

    begins_as_ours: of its first FIRST_BYTES, whether offramp writes such a file.
    """
    try:
        require_alone(path)
        if path.exists():
            with open_regular(path) as file:
                if not begins_as_ours(file.read(FIRST_BYTES)):
                    return "it is a file of something else"
    except OSError as error:
        return error.strerror
    return None


def require_lock(path: Path, begins_as_ours: Callable[[bytes], bool]) -> None:
    """Raise InputError for what stands where a lock's file is to be, and is none (see `why_not_ours`)."""
    why = why_not_ours(path, begins_as_ours)
    if why is not None:
        raise InputError(f"a lock's file cannot be used: {why}", where=str(path), fix="move it away")


def is_irregular(path: Path) -> bool:
    """Whether something is there that is no regular file: a folder, a device, a pipe or a socket."""
    return path.exists() and not path.is_file()


def is_there(path: str) -> bool:
    """Whether a text, of whatever length and characters, is the path of a file."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # no path can be that
        return False


def sha256_of_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


@contextlib.contextmanager
def open_given(path: Path, what: str, kind: type[InputError] = InputError) -> Iterator[io.BufferedReader]:
    """A file of bytes that people name, open for reading within the block. what: it is called in errors.

    Raises an error of this kind for what cannot be opened or read, and for what is no regular file.
    """
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        fixes = {errno.EFBIG: "give a smaller file, or a part of it", errno.EACCES: "change its permissions"}
        fix = fixes.get(error.errno or 0, "check the path")
        raise kind(f"the {what} cannot be read: {error.strerror}", where=str(path), fix=fix) from error


def read_given(
    path: Path, what: str, kind: type[InputError] = InputError, *, largest: int = LARGEST_GIVEN
) -> bytes:
    """All bytes of such a file. Raises as `open_given`, and for a file of more than `largest` bytes."""
    with open_given(path, what, kind) as file:
        content = file.read(largest + 1)
        if len(content) > largest:
            raise OSError(errno.EFBIG, f"it is larger than {largest / 1e6:,g} MB", str(path))
    return content


def read_given_text(path: Path, what: str, kind: type[InputError] = InputError) -> str:
    """The text of a small file that people name, without a byte order mark. what: it is called in errors.

    Raises an error of this kind for what is not UTF-8, and as `read_given`.
    """
    content = read_given(path, what, kind)
    with refused_as(
        kind, f"the {what} is not UTF-8", UnicodeDecodeError, where=str(path), fix="save it as UTF-8"
    ):
        return content.decode("utf-8-sig")


class JsonError(ValueError):
    """A text is not the JSON that is wanted. Its text says why: "it is nested more than 64 deep"."""


def parse_json(text: str | bytes, kind: type = dict, *, lenient: bool = False) -> Any:
    """What a JSON text holds: the one reader of JSON that comes from a file, a pipe or the network.

    kind: what it has to hold. lenient: for files of models, which other programs read, too: numbers of any
    size, NaN and infinities, and the last one of equal keys.

    Raises JsonError for anything else, for numbers that are not finite or beyond LARGEST_INTEGER, a key that
    an object has twice, half a character (a lone surrogate), and a nesting beyond DEEPEST_JSON.
    """
    if len(text) > LARGEST_JSON:
        raise JsonError(f"it is larger than {LARGEST_JSON // 10**6} MB")
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        if decoded.startswith("\ufeff"):
            raise JsonError("it begins with a byte order mark: save it as UTF-8 without one")
        value = (_ANY_JSON if lenient else _STRICT_JSON).decode(decoded)
        if re.search(r"\\u[dD][89a-fA-F]", decoded):  # pairs of which are a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise JsonError(_TOO_DEEP) from error
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 at byte {error.start:,}") from error
    except UnicodeEncodeError as error:
        raise JsonError("it holds half a character (a lone surrogate)") from error
    except JsonError:
        raise
    except ValueError as error:  # no JSON, or more digits than Python reads
        raise JsonError(f"it is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise JsonError(f"it holds {_in_words(value)}, not {_WORDS[kind]}")
    _require_shallow(value)
    return value


def read_json(path: Path, kind: type = dict, *, lenient: bool = False) -> Any:
    """What a JSON file holds (see `parse_json`). Raises JsonError; OSError for what cannot be read."""
    with open_regular(path) as file:
        return parse_json(file.read(LARGEST_JSON + 1), kind, lenient=lenient)


def json_object_in(path: Path, *, lenient: bool = False) -> dict[str, Any] | None:
    """The JSON object in a file (see `parse_json`); None where there is none that can be read."""
    try:
        found: dict[str, Any] = read_json(path, lenient=lenient)
    except (OSError, JsonError):
        return None
    return found


_WORDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
_TOO_DEEP = f"it is nested more than {DEEPEST_JSON} deep"


def _in_words(value: Any) -> str:
    """What a JSON value is, in an error."""
    return "null" if value is None else _WORDS.get(type(value), "a number")


def _require_shallow(value: Any) -> None:
    depth, level = 0, [value] if isinstance(value, dict | list) else []
    while level:
        depth += 1
        if depth > DEEPEST_JSON:
            raise JsonError(_TOO_DEEP)
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > LARGEST_INTEGER:
        raise JsonError(f"it holds a number that is too large: {shortened(digits)}")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonError(f"it holds a number that is too large: {shortened(digits)}")
    return number


def _no_number(name: str) -> float:
    raise JsonError(f"it holds {name}, which is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        twice = next(key for key, times in counted.items() if times > 1)
        raise JsonError(f"it has the key {shortened(repr(twice))} twice")
    return value


_ANY_JSON = json.JSONDecoder()
_STRICT_JSON = json.JSONDecoder(
    parse_int=_whole, parse_float=_finite, parse_constant=_no_number, object_pairs_hook=_distinct
)


def is_disk_full(error: BaseException) -> bool:
    """Whether the operating system says that a disk or a quota is full."""
    return _system_number(error) in (errno.ENOSPC, errno.EDQUOT)


def _system_number(error: BaseException) -> int | None:
    """The operating system's number of an error. safetensors opens its files itself, and says it in words."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return None if said is None else int(said[1])


def no_room(error: BaseException, path: Path, written: int) -> DiskFullError | None:
    """The error for a file of which only so many bytes could be written, None if that is not the reason."""
    if is_disk_full(error):
        return disk_full(path, written)
    if _system_number(error) != errno.EFBIG:
        return None
    return DiskFullError(
        f"a limit on the size of files is reached: {written:,} bytes of {path.name} were written",
        where=str(path.parent),
        fix="raise it (ulimit -f), then run the same command again",
    )


def disk_full(path: Path, written: int) -> DiskFullError:
    """The error for a file of which only so many bytes could be written, with what is free."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    return DiskFullError(
        f"the disk is full: {written:,} bytes of {path.name} were written, {free:,} bytes are free",
        where=str(path.parent),
        fix="free some space and run the same command again",
    )


_asked: dict[Path, Callable[[Path], None]] = {}


@contextlib.contextmanager
def asked_before(folder: Path, ask: Callable[[Path], None]) -> Iterator[None]:
    """Within the block, call `ask` with each path right in a folder just before `write_atomically` puts a
    file there."""
    place = folder.absolute()
    _asked[place] = ask
    try:
        yield
    finally:
        del _asked[place]


def write_atomically(path: Path, write: Callable[[Path], None], *, apart: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    The file is flushed to disk before the rename and the folder after it, so that `path` is either absent,
    the old file, or the whole new one. The temporary file is removed if `write` fails. apart: put it into a
    temporary folder, for safetensors, which writes files of its own beside it.

    Raises InputError if a folder is in its place or it cannot be a path, DiskFullError if the disk is full,
    with the free and the written sizes.
    """
    require_path(path)
    if path.is_dir():
        raise InputError(
            f"a folder stands where the file {path.name} is written",
            where=str(path),
            fix="move the folder away",
        )
    made = temporary_path(path)
    temporary = made / path.name if apart else made
    held = None
    try:
        if apart:
            made.mkdir(exist_ok=True)
        temporary.touch()
        # A library may remove what it could not write whole: while it is held, its size stays known.
        held = None if apart else os.open(temporary, os.O_RDONLY)
        readable = temporary.stat().st_mode  # by whom new files are; safetensors makes its own for one user
        write(temporary)
        if temporary.stat().st_mode != readable:
            temporary.chmod(readable)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if (ask := _asked.get(path.parent.absolute())) is not None:
            ask(path)
        os.replace(temporary, path)
        if apart:
            made.rmdir()
        sync_folder(path.parent)
    except Exception as error:
        kept = temporary if temporary.exists() else held
        written = 0 if kept is None else os.stat(kept).st_size
        if (full := no_room(error, path, written)) is not None:
            raise full from error
        if isinstance(error, OSError) and error.filename is None:  # of a descriptor
            error.filename = str(path)
        raise
    finally:
        if held is not None:
            os.close(held)
        remove(made)  # unless it is in its place


def temporary_path(path: Path) -> Path:
    """Where this process makes what it then puts in the place of `path`; `is_temporary` knows the name."""
    return path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"


def is_temporary(path: Path) -> bool:
    """Whether this is what a writer makes beside a file, and leaves behind where it is killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8 in one step (see `write_atomically`)."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def pretty_json(value: Any) -> str:
    """The text of a JSON file: sorted keys, one entry a line, no NaN."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_json_atomically(path: Path, value: Any) -> None:
    """Write JSON with sorted keys in one step; a NaN is an error, not a file."""
    write_text_atomically(path, pretty_json(value))


def seal_of(value: Mapping[str, Any], *, apart: Collection[str] = ()) -> str:
    """SHA-256 of a JSON object but for the seal itself and the keys in `apart`."""
    kept = {key: part for key, part in value.items() if key != SEAL and key not in apart}
    return sha256_of_text(canonical_json(kept))


def sealed(value: Mapping[str, Any], *, apart: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object with its own SHA-256 in it (see `seal_of`)."""
    return {**value, SEAL: seal_of(value, apart=apart)}


def write_sealed_json(path: Path, value: Mapping[str, Any], *, apart: Collection[str] = ()) -> None:
    """Write a JSON object with its own SHA-256 in one step (see `write_atomically`, `seal_of`)."""
    write_json_atomically(path, sealed(value, apart=apart))


def read_sealed_json(
    path: Path, damaged: Callable[[Path, str], DamagedFileError], *, apart: Collection[str] = ()
) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote, without its seal.

    Raises what `damaged` makes of the path and a reason, if its bytes are not those that were written.
    """
    if is_irregular(path):
        raise damaged(path, NO_FILE)
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_JSON + 1).decode("utf-8")
        value = parse_json(text)
        seal = value.pop(SEAL)
        whole = seal == seal_of(value, apart=apart) and text == pretty_json({**value, SEAL: seal})
    except JsonError as error:
        raise damaged(path, str(error)) from error
    except (ValueError, KeyError) as error:
        missing = f"no {SEAL}" if isinstance(error, KeyError) else "no UTF-8"
        raise damaged(path, f"it is not what offramp writes ({missing})") from error
    if not whole:
        raise damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    return dict(value)


def remove(path: Path) -> None:
    """Remove what is there, if anything: a file, a link, or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(folder)
        raise
    finally:
        os.close(descriptor)


def safe_name(name: str) -> str:
    """A name that is good for a file or folder; one that had to be changed keeps a key of the original."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:] or "model"
    return safe if safe == name else f"{safe}-{sha256_of_text(name)[:6]}"


def sweep_temporary_files(folder: Path) -> None:
    """Remove what killed writers left behind. Call it only while holding the folder's lock."""
    for leftover in list(folder.rglob(f"{TEMPORARY_PREFIX}*")):
        if is_temporary(leftover):
            remove(leftover)


@contextlib.contextmanager
def locked_folder(folder: Path, another: str = ", or choose another folder with -o") -> Iterator[None]:
    """Hold a folder for one process; a second one is refused at once.

    another: how another folder is chosen, "" where none can be. The lock is the operating system's: it ends
    with the process, however that ends.

    Raises InputError if the folder is held by another process, or cannot be made or written.
    """
    require_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_alone(folder / ".lock")
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise InputError(
            f"the output folder cannot be made or written: {error.strerror}",
            where=str(error.filename or folder),
            fix=f"{'move it away' if error.strerror == NO_FILE else 'change its permissions'}{another}",
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another offramp process is writing into this folder",
                where=str(folder),
                fix=f"wait for it to end{another}",
            ) from error
        yield


def source_fingerprint(*places: str) -> str:
    """SHA-256 of the source in some packages or files of offramp: "tracing", "scoring/components.py"."""
    files = {name: digest for place in places for name, digest in _sources(place)}
    return sha256_of_text(canonical_json(sorted(files.items())))


@functools.cache
def _sources(place: str) -> tuple[tuple[str, str], ...]:
    """Name and SHA-256 of every source file of one package or file."""
    path = PACKAGE / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return tuple((file.relative_to(PACKAGE).as_posix(), sha256_of_file(file)) for file in files)


def require_path(path: str | Path) -> None:
    """Refuse what cannot be the path of an output, and a text without a name: a `Path` of it is the current
    folder. Raises InputError.
    """
    try:
        # Names of files are kept in JSON, and arrow takes no others. Each is written beside its place first.
        longest = max(len(part.encode()) for part in temporary_path(Path(path)).parts)
        why = "the output has no name" if not str(path) else NO_PATH if "\0" in str(path) else None
        why = "the output's name is too long" if longest > LONGEST_NAME else why
    except UnicodeEncodeError:
        why = "the output's path is not UTF-8"
    if why is not None:
        raise InputError(why, where=ascii(str(path))[1:-1], fix="choose another output with -o")


def require_no_links(folder: Path) -> None:
    """Make sure that nothing that is written below a folder is written elsewhere: a link may lead anywhere.

    The folder itself may be one: who names it knows. Raises InputError for the first link.
    """
    folders = [folder] if folder.is_dir() else []
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise InputError(
                        "the folder holds a link, which may lead out of it",
                        where=entry.path,
                        fix="remove the link, or put a copy of what it leads to in its place",
                    )
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))


def require_writable(folder: Path) -> None:
    """Make sure, without making anything, that a folder can be written or made here.

    Raises InputError if a file stands in the way or the folder may not be written.
    """
    require_path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        kind = "a file" if existing.exists() else "a link that leads nowhere"
        what = f"is {kind}, not a folder" if existing == folder else f"lies below {kind}"
        raise InputError(f"the output {what}", where=str(existing), fix="choose another folder with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            "the output folder may not be written"
            if existing == folder
            else "the output folder may not be made here",
            where=str(existing),
            fix="choose another folder with -o, or change its permissions",
        )
