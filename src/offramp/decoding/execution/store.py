"""Executions kept on disk, so that none is ever made twice, whatever stops a run."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offramp.decoding.execution.execution import Execution
from offramp.decoding.execution.prompts import Opening
from offramp.decoding.options import DecodingOptions
from offramp.errors import DamagedFileError
from offramp.files import (
    canonical_json,
    locked_folder,
    sha256_of_text,
    source_fingerprint,
    sweep_temporary_files,
)
from offramp.models.model import Model
from offramp.records.sealed_file import SealedFile
from offramp.tracing.request import library_versions

SCHEMA_VERSION = 1

CODE = (
    "models",
    "tracing",
    "policies",
    "decoding/engine",
    "decoding/generation",
    "decoding/options.py",
    "decoding/exit_readout",
    "decoding/strategies",
    "decoding/quality/judging.py",
    "decoding/quality/free_running.py",
    "decoding/execution/execution.py",
)
"""The source that an execution depends on."""


@dataclass(frozen=True)
class Kept:
    """What one file holds: a request (see `request_of`), and what answers it."""

    request: Mapping[str, Any]
    executions: tuple[Execution, ...]


FILE = SealedFile(Kept, "{name} is damaged", "nothing: it is decoded again")


def request_of(
    model: Model, options: DecodingOptions, openings: Sequence[Opening], *, rows: int
) -> dict[str, Any]:
    """Everything that changes what decoding some documents gives, as JSON.

    The documents belong together: in its last digits a row depends on those that share its batch, and so does
    which of two equally good tokens it takes.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"fingerprint": model.identity.fingerprint, "dtype": model.dtype},
        "transforms": list(model.identity.transforms),
        "policy": str(options.policy),
        "kv": options.kv,
        "draft_length": options.draft_length,
        "heads": None if options.heads is None else options.heads.fingerprint,
        "documents": [[opening.document, list(opening.ids)] for opening in openings],
        "new_tokens": options.new_tokens,
        "rows": rows,
        "device": model.stack.device.type,
        "threads": torch.get_num_threads(),
        "code": _code(),
        "versions": library_versions(model.identity.transforms),
    }


@functools.cache
def _code() -> str:
    return source_fingerprint(*CODE)


class ExecutionStore:
    """Executions by everything that changes them: in a folder, or in memory without one.

    made: how many documents were decoded since, not read. A folder belongs to one process at a time.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.made = 0
        self._memory: dict[str, tuple[Execution, ...]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path | None) -> Iterator[ExecutionStore]:
        """The executions in a folder, which is made if it is not there, and held until the end.

        Raises InputError if another process holds it, or if it cannot be made or written.
        """
        if folder is None:
            yield cls(None)
            return
        with locked_folder(folder):
            sweep_temporary_files(folder)
            yield cls(folder)

    def get_or_make(
        self, request: Mapping[str, Any], make: Callable[[], Sequence[Execution]]
    ) -> tuple[Execution, ...]:
        """What answers a request: kept from before, else made now and kept.

        A file whose bytes changed is said on standard error, and made again.
        """
        key = sha256_of_text(canonical_json(request))
        if key not in self._memory:
            self._memory[key] = self._read(key) or self._make(key, request, make)
        return self._memory[key]

    def _make(
        self, key: str, request: Mapping[str, Any], make: Callable[[], Sequence[Execution]]
    ) -> tuple[Execution, ...]:
        executions = tuple(make())
        self.made += len(executions)
        if self.folder is not None:
            FILE.write(self._path(key), Kept(request, executions))
        return executions

    def _read(self, key: str) -> tuple[Execution, ...] | None:
        if self.folder is None or not (path := self._path(key)).exists():
            return None
        try:
            kept = FILE.read(path)
            if sha256_of_text(canonical_json(kept.request)) != key:
                raise FILE.damaged(path, "it answers another request")
        except DamagedFileError as error:
            print(f"offramp: decoded again: {error.what}", file=sys.stderr)
            return None
        return kept.executions

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"
