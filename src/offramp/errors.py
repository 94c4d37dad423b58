"""The few errors offramp raises; each says what is wrong, where, and what to do."""

from __future__ import annotations


class OfframpError(Exception):
    """A failure that a user can understand: what is wrong, where, and what to do about it.

    The command line prints the three parts and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.fix:
            parts.append(f"what to do: {self.fix}")
        return "\n".join(parts)


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
