"""Bench results as JSON, and back: raw samples included."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.decoding.measurement.results import (
    BenchResult,
    Cluster,
    Contender,
    Counted,
    FloorCheck,
    Forecast,
    FreeRunning,
    Interval,
    PartError,
    TaskScore,
)
from offramp.errors import DamagedFileError
from offramp.files import read_sealed_json, write_sealed_json

SCHEMA_VERSION = 3

READ_OFF = ("answer", "resolution")
"""In the file for its readers; no fields of their own."""

# Which fields of a class hold one or several objects of another; all other fields are plain values.
PARTS: dict[type, dict[str, type]] = {
    Contender: {
        "ratio": Interval,
        "seconds_per_token": Interval,
        "clusters": Cluster,
        "counted": Counted,
        "executed_agreement": Interval,
    },
    FloorCheck: {"kept": Interval},
    Forecast: {"measured": Interval, "parts": PartError},
    FreeRunning: dict.fromkeys(
        ("tokens_before_divergence", "sequence_match", "agreement", "nll", "plain_nll"), Interval
    ),
    TaskScore: dict.fromkeys(("accuracy", "plain_accuracy", "loss"), Interval),
    BenchResult: {
        "contenders": Contender,
        "a_a": Interval,
        "floor": FloorCheck,
        "forecasts": Forecast,
        "free_running": FreeRunning,
        "tasks": TaskScore,
    },
}


def to_json(result: BenchResult) -> dict[str, Any]:
    """A result as a JSON object, tuples as lists, with what is read off it."""
    read_off = {name: getattr(result, name) for name in READ_OFF}
    plain: dict[str, Any] = json.loads(json.dumps({**dataclasses.asdict(result), **read_off}))
    return plain


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


def from_json(value: dict[str, Any]) -> BenchResult:
    """The result that `to_json` made an object of. Raises KeyError or TypeError for any other object."""
    found: BenchResult = built(BenchResult, {k: v for k, v in value.items() if k not in READ_OFF})
    return found


def built(kind: type, value: Any, parts: Mapping[type, Mapping[str, type]] = PARTS) -> Any:
    """An object of a class, or a tuple of them, from what `dataclasses.asdict` and JSON made of it."""
    if value is None:
        return None
    if isinstance(value, list):
        return tuple(built(kind, item, parts) for item in value)
    own = parts.get(kind, {})
    fields = {}
    for name, field in value.items():
        if name in own:
            fields[name] = built(own[name], field, parts)
        else:
            fields[name] = tuple(field) if isinstance(field, list) else field
    return kind(**fields)


def write_results(path: Path, results: Sequence[BenchResult]) -> None:
    """Keep results in a JSON file, in one step; a NaN or infinity in it is an error, not a file."""
    write_sealed_json(
        path, {"schema_version": SCHEMA_VERSION, "results": [to_json(result) for result in results]}
    )


def read_results(path: Path) -> tuple[BenchResult, ...]:
    """The results of a file that `write_results` wrote. Raises DamagedFileError for any other content."""
    try:
        version = json.loads(path.read_text(encoding="utf-8"))["schema_version"]
        if version != SCHEMA_VERSION:  # older ones have no seal
            raise ValueError(f"its schema is version {version}")
        value = read_sealed_json(path, _damaged)
        return tuple(from_json(result) for result in value["results"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"this is no file of offramp bench: {why}",
        where=str(path),
        fix="measure again: offramp bench MODEL --policy P -o FILE",
    )
