"""Files of measurements: bench results and combined accelerations, raw samples included."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp.decoding.measurement.combined import CombineResult
from offramp.decoding.measurement.results import BenchResult
from offramp.records.sealed_file import SealedFile


@dataclasses.dataclass(frozen=True)
class _Results:
    results: tuple[BenchResult, ...]


@dataclasses.dataclass(frozen=True)
class _Combined:
    result: CombineResult


RESULTS = SealedFile(
    _Results,
    "this is no file of offramp bench",
    "measure again: offramp bench MODEL --policy P -o FILE",
    version=3,
)
COMBINED = SealedFile(
    _Combined,
    "this is no file of offramp bench --combine",
    "measure again: offramp bench MODEL --combine int8 --combine exits --policy P -o FILE",
    version=2,
    kind="combined",
)


def write_results(path: Path, results: Sequence[BenchResult]) -> None:
    """Keep results in a JSON file, in one step; a NaN or infinity in it is an error, not a file."""
    RESULTS.write(path, _Results(tuple(results)))


def read_results(path: Path) -> tuple[BenchResult, ...]:
    """The results of a file that `write_results` wrote. Raises DamagedFileError for any other content."""
    return RESULTS.read(path).results


def write_combined(path: Path, result: CombineResult) -> None:
    """Keep a result of accelerations together, likewise."""
    COMBINED.write(path, _Combined(result))


def read_combined(path: Path) -> CombineResult:
    """The result of a file that `write_combined` wrote. Raises DamagedFileError for any other content."""
    return COMBINED.read(path).result


def contenders_json(result: BenchResult) -> list[dict[str, Any]]:
    """Every contender that was timed in one line: its answer, with the figures that it is about."""
    return [
        {
            "name": one.name,
            "role": one.role,
            "answer": one.answer,
            "ratio": one.ratio.value,
            "low": one.ratio.low,
            "high": one.ratio.high,
            "resolution": one.resolution,
            "executed_agreement": None if one.executed_agreement is None else one.executed_agreement.value,
            "gain": None if one.gain is None else dict(one.gain),
            "seconds_per_token": None if one.seconds_per_token is None else one.seconds_per_token.value,
            "counted": None if one.counted is None else dataclasses.asdict(one.counted),
        }
        for one in result.contenders
        if one.ratio is not None
    ]
