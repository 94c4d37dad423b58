"""The cache of dense folders made from GGUF files: written whole or not at all, checked on reading."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from offramp.errors import InputError, OfframpError
from offramp.files import (
    TEMPORARY_PREFIX,
    sha256_of_file,
    sha256_of_text,
    sync_folder,
    write_json_atomically,
)

CACHE_VARIABLE = "OFFRAMP_CACHE"
MANIFEST = "manifest.json"
# Raise it when the converted folder's content changes: old folders are then left alone and new ones written.
FORMAT_VERSION = 1
LONGEST_CONVERSION = 1800.0
"""Seconds that another process is waited for."""

Convert = Callable[[Path, Path], None]


def cache_folder() -> Path:
    """The user cache directory for offramp, or what the environment variable OFFRAMP_CACHE names."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("offramp"))


def dense_folder(source: Path, source_sha256: str, convert: Convert) -> Path:
    """The dense folder of a GGUF file, converted now if it is not there or no longer as it was written.

    source: the GGUF file; convert(source, folder) fills an empty folder. One process converts while others
    wait for it. A conversion that is killed leaves only a temporary folder, which the next one sweeps.

    Raises OfframpError if the disk is too small, with sizes; whatever `convert` raises, with nothing left
    behind.
    """
    root = cache_folder() / "dense"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache for converted models cannot be made: {error.strerror}",
            where=str(root),
            fix=f"set {CACHE_VARIABLE} to a folder that can be written",
        ) from error
    versions = f"{importlib.metadata.version('transformers')} {FORMAT_VERSION}"
    folder = root / f"{source_sha256[:24]}-{sha256_of_text(versions)[:8]}"
    with _only_one_process(root / f"{folder.name}.lock"):
        if folder.is_dir():
            problem = find_damage(folder)
            if problem is None:
                return folder
            _say(f"the cached copy of {source.name} is damaged ({problem}); converting it again")
            shutil.rmtree(folder)
        else:
            _say(f"converting {source.name} to safetensors, once; kept in {root}")
        _sweep(root, folder.name)
        _convert_atomically(source, folder, convert)
    return folder


def _convert_atomically(source: Path, folder: Path, convert: Convert) -> None:
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        convert(source, temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {path.relative_to(temporary).as_posix(): sha256_of_file(path) for path in files}
        write_json_atomically(temporary / MANIFEST, {"files": manifest, "source": source.name})
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        written = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder.parent).free
        raise OfframpError(
            f"the converted model could not be written ({error}): {written:,} bytes were, {free:,} are free",
            where=str(folder.parent),
            fix=f"free some space, or set {CACHE_VARIABLE} to a folder on a larger disk",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_damage(folder: Path) -> str | None:
    """What differs from the manifest written with the folder, None if nothing does."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if sha256_of_file(folder / name) != expected:
                return f"{name} changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sweep(root: Path, name: str) -> None:
    """Remove what killed conversions of this folder left. Called while holding its lock."""
    for leftover in root.glob(f"{TEMPORARY_PREFIX}{name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _only_one_process(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock; the operating system frees it when a process ends.

    Raises OfframpError where one holds it for longer than any conversion takes.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is converting this model; waiting for it")
            _wait_for(file, path)
        yield


def _wait_for(file: IO[str], path: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < LONGEST_CONVERSION:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.2)
    raise OfframpError(
        f"another process has been converting this model for {LONGEST_CONVERSION / 60:.0f} minutes",
        where=str(path),
        fix="end that process (it may be stopped), then run the same command again",
    )


def _say(message: str) -> None:
    print(f"offramp: {message}", file=sys.stderr, flush=True)
